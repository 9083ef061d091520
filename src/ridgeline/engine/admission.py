"""What a request must be to enter the engine: the checks that need the model.

Everything that can be known of a request alone was checked when its `SamplingParams` were made. These are the rest, in
one place below every front door.
"""

from __future__ import annotations

from collections.abc import Iterable

from ridgeline.engine.client import EngineModel
from ridgeline.engine.text import EngineText
from ridgeline.errors import ContextLengthError, RequestError
from ridgeline.request.request import Request


def check_request(request: Request, model: EngineModel) -> None:
    """Raise RequestError if this model cannot run the request, naming the field and what is allowed."""
    num_tokens = len(request.prompt_token_ids)
    if num_tokens == 0:
        raise RequestError("the prompt is empty; it must have at least one token", field="prompt")
    if num_tokens >= model.context_tokens:
        raise ContextLengthError(
            f"the prompt has {num_tokens} tokens; with at least one token of output at most "
            f"{model.context_tokens} fit into the context",
            hint="shorten the prompt, or start the engine with a longer context or more memory",
            field="prompt",
        )
    sampling = request.sampling
    _check_ids("prompt", request.prompt_token_ids, model)
    _check_ids("stop_token_ids", sampling.stop_token_ids, model)
    _check_ids("logit_bias", sampling.logit_bias, model)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids or (), model)
    room = model.context_tokens - num_tokens
    if sampling.min_tokens > room:
        raise RequestError(
            f"min_tokens is {sampling.min_tokens}; after the prompt's {num_tokens} tokens {room} fit into the context",
            field="min_tokens",
        )
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(sampling, name)
        if count is not None and count > model.vocabulary_size:
            raise RequestError(
                f"{name} is {count}; the vocabulary has {model.vocabulary_size} tokens",
                field=name,
            )


def bad_word_ids(request: Request, text: EngineText, model: EngineModel) -> tuple[tuple[int, ...], ...]:
    """The tokens of each bad word, at the start of a text and after a space, which many vocabularies tell apart."""
    words: dict[tuple[int, ...], None] = {}
    for word in request.sampling.bad_words:
        for prefix in ("", " "):
            token_ids = tuple(text.encode(prefix + word.lstrip()))
            if token_ids:
                _check_ids("bad_words", token_ids, model)
                words[token_ids] = None
    return tuple(words)


def max_output_tokens(request: Request, model: EngineModel) -> int:
    """After how many tokens a sample ends for its length: the request's own bound, or the end of the context."""
    room = model.context_tokens - len(request.prompt_token_ids)
    bound = request.sampling.max_tokens
    return room if bound is None else min(bound, room)


def _check_ids(field: str, token_ids: Iterable[int], model: EngineModel) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < model.vocabulary_size:
            raise RequestError(
                f"{field} holds the token id {token_id}; ids go from 0 to {model.vocabulary_size - 1}", field=field
            )
