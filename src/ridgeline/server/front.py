"""What every route works with: the engine, the model's text side, and how a wire request becomes an engine request."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest

from ridgeline.engine.admission import check_request
from ridgeline.engine.client import EngineClient
from ridgeline.errors import ContextLengthError, RequestError
from ridgeline.request.output import RequestTiming, TokenChunk, TokenLogprob
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.server.errors import HttpError
from ridgeline.server.wire import Message, PromptLogprobs, PromptToken, SamplingFields, Timing, Usage

MAX_PROMPTS_PER_REQUEST = 256
MAX_PROMPT_CHARACTERS_PER_TOKEN = 64
"""A prompt of more characters than this for each token of context cannot fit, and is refused before it is tokenised."""

_SAMPLING_NAMES = (
    "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "allowed_token_ids", "bad_words", "min_tokens", "max_tokens", "stop", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "seed", "prompt_logprobs",
)  # fmt: skip


class Tokens(Protocol):
    """The part of a tokenizer that routes use."""

    def encode(self, text: str, *, add_special_tokens: bool = ..., parse_special: bool = ...) -> list[int]:
        """Text as token ids."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """Token ids as text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token."""


class ChatTokens(Protocol):
    """A conversation as the tokens that the model was trained on; see `ridgeline.text.chat_prompt`."""

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        add_generation_prompt: bool = ...,
        continue_final_message: bool = ...,
        extra: Mapping[str, Any] | None = ...,
    ) -> list[int]:
        """The tokens. Raises RequestError if the template refuses the conversation."""


class RequestRecorder(Protocol):
    """Who is told what became of each request (metrics)."""

    def finished(
        self,
        *,
        reason: str,
        num_prompt_tokens: int,
        num_output_tokens: int,
        seconds: float,
        timing: RequestTiming | None,
    ) -> None:
        """A sample reached its end."""

    def token_gap(self, seconds: float) -> None:
        """The time between two tokens of a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Everything a route needs, handed to it."""

    engine: EngineClient
    tokens: Tokens
    chat_tokens: ChatTokens
    model_name: str
    recorder: RequestRecorder
    created: int

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served. Raises HttpError 404."""
        if name is not None and name != self.model_name:
            raise HttpError(
                404,
                f"model {name[:100]!r} is not served here; there is {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    async def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """The text's tokens; long texts are tokenised off the event loop."""
        self._refuse_beyond_context(len(text))
        if len(text) < 4096:
            return self.tokens.encode(text, add_special_tokens=add_special_tokens, parse_special=parse_special)
        return await asyncio.to_thread(
            self.tokens.encode, text, add_special_tokens=add_special_tokens, parse_special=parse_special
        )

    async def encode_chat(self, messages: Sequence[Message], **how: Any) -> list[int]:
        """The conversation's tokens."""
        if not messages:
            raise RequestError("messages is empty; give at least one message", field="messages")
        plain = [plain_message(message) for message in messages]
        self._refuse_beyond_context(sum(len(message["content"]) for message in plain))
        return await asyncio.to_thread(self.chat_tokens, plain, **how)

    def _refuse_beyond_context(self, num_characters: int) -> None:
        """Raise ContextLengthError for a text that cannot fit, before any work is done on it."""
        context_tokens = self.engine.model.context_tokens
        if num_characters > context_tokens * MAX_PROMPT_CHARACTERS_PER_TOKEN:
            raise ContextLengthError(
                f"the prompt has {num_characters} characters, which cannot fit into the context of "
                f"{context_tokens} tokens",
                field="prompt",
            )

    def request(self, prompt: Sequence[int], sampling: SamplingParams, fields: SamplingFields) -> Request:
        """The engine's request for these tokens. Raises RequestError for what no engine with this model could run."""
        priority = fields.priority or 0
        if not -(2**31) <= priority < 2**31:
            raise RequestError("priority is out of range; it must be a 32-bit number", field="priority")
        salt = fields.cache_salt or ""
        if len(salt) > 1024:
            raise RequestError("cache_salt is too long; it may have 1024 characters", field="cache_salt")
        request = Request(
            request_id=uuid.uuid4().hex,
            prompt_token_ids=tuple(prompt),
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            priority=priority,
            cache_salt=salt,
        )
        # Here and not only in the engine, so that ids no message can carry are told as what they are.
        check_request(request, self.engine.model)
        return request

    async def chunks(self, request: Request) -> AsyncIterator[TokenChunk]:
        """The request's chunks, watched by the recorder. Raises HttpError when a sample ends in an error."""
        begin = time.monotonic()
        last: dict[int, float] = {}
        num_tokens: dict[int, int] = {}
        async with aclosing(self.engine.generate(request)) as stream:  # type: ignore[type-var]
            async for chunk in stream:
                now = time.monotonic()
                index = chunk.sample_index
                if chunk.token_ids:
                    if index in last:
                        self.recorder.token_gap((now - last[index]) / len(chunk.token_ids))
                    last[index] = now
                    num_tokens[index] = num_tokens.get(index, 0) + len(chunk.token_ids)
                if chunk.finish_reason is not None:
                    self.recorder.finished(
                        reason=chunk.finish_reason.value,
                        num_prompt_tokens=len(request.prompt_token_ids),
                        num_output_tokens=num_tokens.get(index, 0),
                        seconds=now - begin,
                        timing=chunk.timing,
                    )
                    if chunk.error is not None:
                        raise HttpError(500, chunk.error, code="request_failed")
                yield chunk


async def front_of(http: HttpRequest) -> Front:
    """The server's front; waits while the model is being loaded."""
    opening: asyncio.Future[Front] = http.app.state.opening
    return await asyncio.shield(opening)


def plain_message(message: Message) -> dict[str, Any]:
    """The message as templates want it: content as one string, absent fields absent."""
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise RequestError(
                    f"a content part of type {part.type[:40]!r} was given; this model reads text parts only",
                    field="messages",
                )
        content = "".join(part.text or "" for part in content)
    plain: dict[str, Any] = {"role": message.role, "content": content if content is not None else ""}
    for name in ("name", "tool_calls", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    return plain


def sampling_params(fields: SamplingFields, **overrides: Any) -> SamplingParams:
    """The sampling that a wire request asks for. Raises RequestError."""
    said = {name: getattr(fields, name) for name in _SAMPLING_NAMES if getattr(fields, name) is not None}
    if fields.logit_bias:
        said["logit_bias"] = {_token_id(token): bias for token, bias in fields.logit_bias.items()}
    if isinstance(said.get("stop"), str):
        said["stop"] = (said["stop"],)
    said.setdefault("max_tokens", None)
    return SamplingParams(**{**said, **overrides})


def _token_id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise RequestError(f"logit_bias has the key {text[:40]!r}; keys must be token ids", field="logit_bias")
    return int(text)


def refuse_in_stream(fields: SamplingFields) -> None:
    """Raise RequestError for what only a whole answer can carry."""
    if fields.prompt_logprobs is not None:
        raise RequestError(
            "prompt_logprobs and stream were given; a stream does not carry the prompt's log-probabilities",
            hint="ask without stream",
            field="prompt_logprobs",
        )


def prompt_logprobs(tokens: Tokens, entries: Sequence[TokenLogprob | None] | None) -> PromptLogprobs | None:
    """Log-probabilities of a prompt in vLLM's shape, less the ranks."""
    if entries is None:
        return None

    def told(token_id: int, logprob: float) -> PromptToken:
        return PromptToken(logprob, tokens.token_bytes(token_id).decode("utf-8", "replace"))

    return [
        None if entry is None
        else {token: told(token, logprob) for token, logprob in (*entry.top, (entry.token_id, entry.logprob))}
        for entry in entries
    ]  # fmt: skip


def usage_of(num_prompt_tokens: int, num_output_tokens: int, timing: RequestTiming | None) -> Usage:
    """The usage object."""
    usage = Usage(num_prompt_tokens, num_output_tokens, num_prompt_tokens + num_output_tokens)
    if timing is not None:
        usage.prompt_tokens_details.cached_tokens = timing.num_cached_tokens
        usage.completion_tokens_details.accepted_prediction_tokens = timing.num_accepted_tokens
        usage.completion_tokens_details.rejected_prediction_tokens = (
            timing.num_drafted_tokens - timing.num_accepted_tokens
        )
    return usage


def timing_of(timing: RequestTiming | None) -> Timing | None:
    """The timing object."""
    if timing is None:
        return None
    return Timing(
        queue_seconds=timing.queue_seconds,
        prefill_seconds=timing.prefill_seconds,
        decode_seconds=timing.decode_seconds,
        stall_seconds=timing.stall_seconds,
        time_to_first_token_seconds=timing.time_to_first_token_seconds,
        num_preemptions=timing.num_preemptions,
    )
