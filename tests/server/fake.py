"""An EngineClient that makes up its tokens: token i of a sample is the byte at i of "echo:" plus the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from ridgeline.engine.client import EngineModel, EngineStatistics
from ridgeline.errors import EngineDeadError, OverloadedError, RequestError
from ridgeline.request import FinishReason, Request, RequestTiming, TokenChunk, TokenLogprob

CONTEXT_TOKENS = 512


class ByteTokens:
    """One token a byte."""

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def plain_chat_tokens(messages, *, tools=None, add_generation_prompt=True, continue_final_message=False, extra=None):
    """Role, colon, content, newline."""
    return list("".join(f"{m['role']}:{m['content']}\n" for m in messages).encode())


class EchoEngine:
    """Answers at once; misbehaves when the prompt says so."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.seen: list[Request] = []
        self.is_ready = True
        self.is_alive = True
        self.num_running = 0

    @property
    def model(self) -> EngineModel:
        return EngineModel(
            name="echo", family="fake", format_name="F32", vocabulary_size=256, context_tokens=CONTEXT_TOKENS,
            num_pages=8, page_slots=64, weight_bytes=1, kv_format="bf16", chip="none",
        )  # fmt: skip

    async def generate(self, request: Request) -> AsyncIterator[TokenChunk]:
        self.seen.append(request)
        text = bytes(request.prompt_token_ids).decode("utf-8", "replace")
        if len(request.prompt_token_ids) >= CONTEXT_TOKENS:
            raise RequestError(f"the prompt has {len(request.prompt_token_ids)} tokens", field="prompt")
        if "OVERLOAD" in text:
            raise OverloadedError("the queue is full", retry_after_seconds=2.5)
        self.num_running += 1
        is_done = False
        try:
            for sample in range(request.sampling.n):
                reply = ("echo:" + text).encode()[: request.sampling.max_tokens or 64]
                for place, token in enumerate(reply):
                    await asyncio.sleep(0.05 if "SLOW" in text else 0)
                    if "DIE" in text and place == 3:
                        raise EngineDeadError("the engine process ended unexpectedly")
                    logprobs = ()
                    if request.sampling.logprobs is not None:
                        top = tuple((token, -0.5) for _ in range(request.sampling.logprobs))
                        logprobs = (TokenLogprob(token_id=token, logprob=-0.5, top=top),)
                    prompt_logprobs = None
                    if place == 0 and request.sampling.prompt_logprobs is not None:
                        prompt_logprobs = (None,) + tuple(
                            TokenLogprob(token_id=t, logprob=-1.0) for t in request.prompt_token_ids[1:]
                        )
                    is_last = place == len(reply) - 1
                    failed = "FAIL" in text and place == 2
                    reason = FinishReason.ERROR if failed else FinishReason.LENGTH if is_last else None
                    yield TokenChunk(
                        request_id=request.request_id, sample_index=sample, text=chr(token) if token < 128 else "",
                        token_ids=(token,), logprobs=logprobs, prompt_logprobs=prompt_logprobs, finish_reason=reason,
                        error="the logits were not finite" if failed else None,
                        timing=RequestTiming(queue_seconds=0.25, num_cached_tokens=4) if reason else None,
                    )  # fmt: skip
                    if failed:
                        return
            is_done = True
        finally:
            self.num_running -= 1
            if not is_done:
                self.cancelled.append(request.request_id)

    async def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    async def statistics(self) -> EngineStatistics:
        return EngineStatistics(state="ready", num_pages=8, num_free_pages=6, num_steps=3)

    async def close(self) -> None:
        pass
