"""/tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.errors import RequestError
from ridgeline.server.body import json_answer, parsed_body
from ridgeline.server.front import front_of
from ridgeline.server.wire import DetokenizeRequest, TokenizeRequest


async def tokenize(http: HttpRequest) -> Response:
    """A text's or a conversation's tokens."""
    front = await front_of(http)
    wire = await parsed_body(http, TokenizeRequest)
    front.check_model(wire.model)
    if (wire.prompt is None) == (wire.messages is None):
        raise RequestError("give either prompt or messages", field="prompt")
    if wire.messages is not None:
        token_ids = await front.encode_chat(wire.messages, add_generation_prompt=wire.add_generation_prompt)
    else:
        assert wire.prompt is not None
        token_ids = await front.encode(wire.prompt, add_special_tokens=wire.add_special_tokens, parse_special=True)
    context_tokens = front.engine.model.context_tokens
    return json_answer({"count": len(token_ids), "max_model_len": context_tokens, "tokens": token_ids})


async def detokenize(http: HttpRequest) -> Response:
    """Tokens' text."""
    front = await front_of(http)
    wire = await parsed_body(http, DetokenizeRequest)
    front.check_model(wire.model)
    for token in wire.tokens:
        if not 0 <= token < front.engine.model.vocabulary_size:
            raise RequestError(f"token id {token} is not in the vocabulary", field="tokens")
    return json_answer({"prompt": front.tokens.decode(wire.tokens, skip_special_tokens=False)})
