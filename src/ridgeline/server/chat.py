"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.errors import RequestError
from ridgeline.request.output import RequestTiming, TokenLogprob
from ridgeline.request.request import Request
from ridgeline.server import sse
from ridgeline.server.body import json_answer, parsed_body
from ridgeline.server.front import (
    Front,
    Tokens,
    front_of,
    prompt_logprobs,
    refuse_in_stream,
    sampling_params,
    timing_of,
    usage_of,
)
from ridgeline.server.wire import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatRequest,
    ContentLogprob,
    Delta,
    TopLogprob,
)


async def chat_completions(http: HttpRequest) -> Response:
    """Answer a conversation, at once or as a stream."""
    front = await front_of(http)
    wire = await parsed_body(http, ChatRequest)
    front.check_model(wire.model)
    _refuse_unsupported(wire)
    prompt = await front.encode_chat(
        wire.messages,
        add_generation_prompt=wire.add_generation_prompt and not wire.continue_final_message,
        continue_final_message=wire.continue_final_message,
        extra=wire.chat_template_kwargs,
    )
    overrides: dict[str, object] = {}
    if wire.max_completion_tokens is not None:
        overrides["max_tokens"] = wire.max_completion_tokens
    if wire.top_logprobs is not None and not wire.logprobs:
        raise RequestError("top_logprobs was given without logprobs: true", field="top_logprobs")
    if wire.logprobs:
        overrides["logprobs"] = wire.top_logprobs or 0
    request = front.request(prompt, sampling_params(wire, **overrides), wire)
    answer_id = f"chatcmpl-{request.request_id}"
    if wire.stream:
        refuse_in_stream(wire)
        return await sse.stream(_stream(front, wire, request, answer_id))
    answer = await sse.while_connected(http, _whole(front, wire, request, answer_id))
    return json_answer(answer)


def _refuse_unsupported(wire: ChatRequest) -> None:
    if wire.tools and wire.tool_choice != "none":
        raise RequestError("tools were given; tool calls are not supported yet", field="tools")
    if wire.response_format is not None and wire.response_format.get("type") != "text":
        raise RequestError('response_format must be {"type": "text"}; structured output is not supported yet',
                           field="response_format")  # fmt: skip
    if wire.chat_template is not None:
        raise RequestError("chat_template in a request is not accepted", field="chat_template")
    for name in ("audio", "functions", "web_search_options"):
        if getattr(wire, name) is not None:
            raise RequestError(f"{name} is not supported", field=name)


@dataclass(slots=True)
class _Sample:
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


async def _whole(front: Front, wire: ChatRequest, request: Request, answer_id: str) -> ChatAnswer:
    samples = [_Sample() for _ in range(request.sampling.n)]
    timing: RequestTiming | None = None
    prompt_entries: tuple[TokenLogprob | None, ...] | None = None
    async with aclosing(front.chunks(request)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            prompt_entries = chunk.prompt_logprobs or prompt_entries
            sample = samples[chunk.sample_index]
            sample.pieces.append(chunk.text)
            sample.token_ids.extend(chunk.token_ids)
            sample.logprobs.extend(chunk.logprobs)
            if chunk.finish_reason is not None:
                sample.finish_reason, sample.stop_reason = chunk.finish_reason.value, chunk.stop_reason
                timing = chunk.timing or timing
    choices = [
        ChatChoice(
            index=index,
            message=AnswerMessage(content="".join(sample.pieces)),
            finish_reason=sample.finish_reason,
            stop_reason=sample.stop_reason,
            logprobs=chat_logprobs(front.tokens, sample.logprobs) if wire.logprobs else None,
            token_ids=sample.token_ids if wire.return_token_ids else None,
        )
        for index, sample in enumerate(samples)
    ]
    num_output_tokens = sum(len(sample.token_ids) for sample in samples)
    return ChatAnswer(
        id=answer_id,
        created=int(time.time()),
        model=front.model_name,
        choices=choices,
        usage=usage_of(len(request.prompt_token_ids), num_output_tokens, timing),
        timing=timing_of(timing),
        prompt_logprobs=prompt_logprobs(front.tokens, prompt_entries),
    )


async def _stream(front: Front, wire: ChatRequest, request: Request, answer_id: str) -> AsyncIterator[bytes]:
    created = int(time.time())
    options = wire.stream_options
    has_begun = [False] * request.sampling.n
    num_output_tokens = 0
    timing: RequestTiming | None = None

    def piece(choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(id=answer_id, created=created, model=front.model_name, choices=choices)
        if options is not None and (options.continuous_usage_stats or not choices):
            chunk.usage = usage_of(len(request.prompt_token_ids), num_output_tokens, timing)
        return chunk

    async with aclosing(front.chunks(request)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            index = chunk.sample_index
            num_output_tokens += len(chunk.token_ids)
            timing = chunk.timing or timing
            if not has_begun[index]:
                has_begun[index] = True
                yield sse.event(piece([ChatChunkChoice(index, Delta(role="assistant", content=""))]))
            token_ids = list(chunk.token_ids) if wire.return_token_ids else None
            if chunk.text or chunk.logprobs or token_ids:
                logprobs = chat_logprobs(front.tokens, chunk.logprobs) if wire.logprobs else None
                yield sse.event(piece([ChatChunkChoice(index, Delta(content=chunk.text), None, logprobs, token_ids)]))
            if chunk.finish_reason is not None:
                yield sse.event(piece([ChatChunkChoice(index, Delta(), chunk.finish_reason.value)]))
    if options is not None and options.include_usage:
        last = piece([])
        last.timing = timing_of(timing)
        yield sse.event(last)


def chat_logprobs(tokens: Tokens, entries: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> ChatLogprobs:
    """Log-probabilities in the shape of the chat API."""

    def top(token_id: int, logprob: float) -> TopLogprob:
        raw = tokens.token_bytes(token_id)
        return TopLogprob(raw.decode("utf-8", "replace"), logprob, list(raw))

    content = []
    for entry in entries:
        chosen = top(entry.token_id, entry.logprob)
        likeliest = [top(token_id, logprob) for token_id, logprob in entry.top]
        content.append(ContentLogprob(chosen.token, chosen.logprob, chosen.bytes, likeliest))
    return ChatLogprobs(content)
