"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.errors import RequestError
from ridgeline.request.output import RequestTiming, TokenChunk, TokenLogprob
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.server import sse
from ridgeline.server.body import json_answer, parsed_body
from ridgeline.server.front import (
    MAX_PROMPTS_PER_REQUEST,
    Front,
    Tokens,
    front_of,
    prompt_logprobs,
    refuse_in_stream,
    sampling_params,
    timing_of,
    usage_of,
)
from ridgeline.server.wire import CompletionAnswer, CompletionChoice, CompletionLogprobs, CompletionRequest


async def completions(http: HttpRequest) -> Response:
    """Continue one prompt or several, at once or as a stream."""
    front = await front_of(http)
    wire = await parsed_body(http, CompletionRequest)
    front.check_model(wire.model)
    if wire.suffix:
        raise RequestError("suffix is not supported", field="suffix")
    if wire.best_of is not None and wire.best_of != (wire.n or 1):
        raise RequestError("best_of is not supported; it may only equal n", field="best_of")
    prompts = await _prompts(front, wire.prompt)
    sampling = _sampling(wire)
    requests = [front.request(prompt, sampling, wire) for prompt in prompts]
    answer = _Answer(
        id=f"cmpl-{uuid.uuid4().hex}",
        front=front,
        wire=wire,
        requests=requests,
        has_output=wire.max_tokens != 0,
    )
    if wire.stream:
        refuse_in_stream(wire)
        if wire.echo and wire.logprobs is not None and (wire.n or 1) > 1:
            raise RequestError(
                "echo, logprobs and n > 1 were given with stream; the prompt's log-probabilities come with one sample",
                hint="ask without stream, or with n = 1",
                field="echo",
            )
        return await sse.stream(answer.stream())
    return json_answer(await sse.while_connected(http, answer.whole()))


def _sampling(wire: CompletionRequest) -> SamplingParams:
    overrides: dict[str, object] = {}
    if wire.max_tokens is None:
        overrides["max_tokens"] = 16  # OpenAI's default for this route
    elif wire.max_tokens == 0:
        if not wire.echo:
            raise RequestError("max_tokens is 0; it must be at least 1 unless echo is set", field="max_tokens")
        overrides["max_tokens"] = 1  # the prompt's log-probabilities come with the first token, which is not shown
    if wire.logprobs is not None:
        overrides["logprobs"] = wire.logprobs
        if wire.echo:
            overrides["prompt_logprobs"] = max(wire.logprobs, wire.prompt_logprobs or 0)
    return sampling_params(wire, **overrides)


async def _prompts(front: Front, prompt: str | list[str | int | list[int]]) -> list[list[int]]:
    entries: list[str | list[int]]
    if isinstance(prompt, str):
        entries = [prompt]
    elif prompt and all(isinstance(entry, int) for entry in prompt):
        entries = [[entry for entry in prompt if isinstance(entry, int)]]
    else:
        entries = [entry for entry in prompt if not isinstance(entry, int)]
        if not entries or len(entries) < len(prompt):
            raise RequestError("prompt must be a string, tokens, or a list of either", field="prompt")
    if len(entries) > MAX_PROMPTS_PER_REQUEST:
        raise RequestError(
            f"prompt has {len(entries)} entries; at most {MAX_PROMPTS_PER_REQUEST} are allowed", field="prompt"
        )
    return [
        await front.encode(entry, add_special_tokens=True, parse_special=True) if isinstance(entry, str) else entry
        for entry in entries
    ]


@dataclass(slots=True)
class _Sample:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(slots=True)
class _Answer:
    """One answer over all prompts; choice number = prompt number * n + sample number."""

    id: str
    front: Front
    wire: CompletionRequest
    requests: list[Request]
    has_output: bool
    created: int = field(default_factory=lambda: int(time.time()))
    num_output_tokens: int = 0
    timing: RequestTiming | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.requests)

    async def whole(self) -> CompletionAnswer:
        n = self.requests[0].sampling.n
        samples = [_Sample() for _ in range(n * len(self.requests))]
        async with aclosing(self._chunks()) as chunks:  # type: ignore[type-var]
            async for number, chunk in chunks:
                sample = samples[number * n + chunk.sample_index]
                self._take(sample, chunk)
        choices = []
        for index, sample in enumerate(samples):
            # The engine tells a prompt's log-probabilities once, with the first sample.
            sample.prompt_logprobs = samples[index - index % n].prompt_logprobs
            if self.wire.echo:
                self._put_prompt_before(sample, self.requests[index // n])
            logprobs = (
                completion_logprobs(self.front.tokens, sample.logprobs) if self.wire.logprobs is not None else None
            )
            wants_prompt = self.wire.prompt_logprobs is not None
            choices.append(
                CompletionChoice(
                    index=index,
                    text=sample.text,
                    finish_reason=sample.finish_reason,
                    stop_reason=sample.stop_reason,
                    logprobs=logprobs,
                    token_ids=sample.token_ids if self.wire.return_token_ids else None,
                    prompt_logprobs=prompt_logprobs(self.front.tokens, sample.prompt_logprobs)
                    if wants_prompt
                    else None,
                )
            )
        return self._piece(choices, with_usage=True)

    async def stream(self) -> AsyncIterator[bytes]:
        n = self.requests[0].sampling.n
        options = self.wire.stream_options
        offsets: dict[tuple[int, int], int] = {}
        """Of each sample that has begun: where in its text the next token begins."""
        async with aclosing(self._chunks()) as chunks:  # type: ignore[type-var]
            async for number, chunk in chunks:
                sample = _Sample()
                key = (number, chunk.sample_index)
                self._take(sample, chunk)
                if self.wire.echo and key not in offsets:
                    self._put_prompt_before(sample, self.requests[number])
                offset = offsets.setdefault(key, 0)
                logprobs = None
                if self.wire.logprobs is not None:
                    logprobs = completion_logprobs(self.front.tokens, sample.logprobs, offset)
                    offsets[key] += sum(len(token) for token in logprobs.tokens)
                wants_ids = bool(self.wire.return_token_ids and sample.token_ids)
                if sample.text or sample.finish_reason or logprobs is not None or wants_ids:
                    choice = CompletionChoice(
                        index=number * n + chunk.sample_index,
                        text=sample.text,
                        finish_reason=sample.finish_reason,
                        stop_reason=sample.stop_reason,
                        logprobs=logprobs,
                        token_ids=sample.token_ids if self.wire.return_token_ids else None,
                    )
                    continuous = options is not None and options.continuous_usage_stats
                    yield sse.event(self._piece([choice], with_usage=continuous))
        if options is not None and options.include_usage:
            yield sse.event(self._piece([], with_usage=True))

    def _put_prompt_before(self, sample: _Sample, request: Request) -> None:
        sample.text = self.front.tokens.decode(request.prompt_token_ids, skip_special_tokens=False) + sample.text
        if sample.prompt_logprobs is not None:
            first = TokenLogprob(token_id=request.prompt_token_ids[0], logprob=float("nan"))
            sample.logprobs = [first, *sample.prompt_logprobs[1:], *sample.logprobs]

    def _take(self, sample: _Sample, chunk: TokenChunk) -> None:
        sample.prompt_logprobs = chunk.prompt_logprobs or sample.prompt_logprobs
        if self.has_output:
            sample.text += chunk.text
            sample.token_ids.extend(chunk.token_ids)
            sample.logprobs.extend(chunk.logprobs)
            self.num_output_tokens += len(chunk.token_ids)
        if chunk.finish_reason is not None:
            sample.finish_reason, sample.stop_reason = chunk.finish_reason.value, chunk.stop_reason
            self.timing = chunk.timing or self.timing

    def _piece(self, choices: list[CompletionChoice], *, with_usage: bool) -> CompletionAnswer:
        return CompletionAnswer(
            id=self.id,
            created=self.created,
            model=self.front.model_name,
            choices=choices,
            usage=usage_of(self.num_prompt_tokens, self.num_output_tokens, self.timing) if with_usage else None,
            timing=timing_of(self.timing),
        )

    async def _chunks(self) -> AsyncIterator[tuple[int, TokenChunk]]:
        """The chunks of all prompts as they come, each with its prompt's number."""
        if len(self.requests) == 1:
            async with aclosing(self.front.chunks(self.requests[0])) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield 0, chunk
            return
        arrived: asyncio.Queue[tuple[int, TokenChunk | Exception | None]] = asyncio.Queue()

        async def follow(number: int) -> None:
            try:
                async with aclosing(self.front.chunks(self.requests[number])) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        arrived.put_nowait((number, chunk))
                arrived.put_nowait((number, None))
            except Exception as error:
                arrived.put_nowait((number, error))

        tasks = [asyncio.create_task(follow(number)) for number in range(len(self.requests))]
        try:
            num_open = len(tasks)
            while num_open:
                number, item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    yield number, item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def completion_logprobs(tokens: Tokens, entries: Sequence[TokenLogprob | None], offset: int = 0) -> CompletionLogprobs:
    """Log-probabilities in the shape of the completions API; a prompt's first token has none.

    `offset` says where in the whole text the first of these tokens begins.
    """

    def shown(token_id: int) -> str:
        return tokens.token_bytes(token_id).decode("utf-8", "replace")

    result = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    assert result.top_logprobs is not None
    for entry in entries:
        if entry is None:
            continue
        text = shown(entry.token_id)
        has_value = entry.logprob == entry.logprob
        result.tokens.append(text)
        result.token_logprobs.append(entry.logprob if has_value else None)
        result.top_logprobs.append({shown(token): value for token, value in entry.top} if has_value else None)
        result.text_offset.append(offset)
        offset += len(text)
    return result
