"""A whole answer, put together from its chunks.

Knows: chunks. Does not know: who made them.
"""

from __future__ import annotations

from ridgeline.request.output import (
    FinishReason,
    RequestOutput,
    RequestTiming,
    SequenceOutput,
    TokenChunk,
    TokenLogprob,
)
from ridgeline.request.request import Request


class Answer:
    """Gathers the chunks of one request. Holds: what came so far, by sample."""

    def __init__(self, request: Request, prompt: str | None) -> None:
        self.request = request
        self.num_open = request.sampling.n
        """Samples that have not ended."""
        self._prompt = prompt
        self._chunks: list[list[TokenChunk]] = [[] for _ in range(request.sampling.n)]

    def take(self, chunk: TokenChunk) -> None:
        """Add a chunk."""
        self._chunks[chunk.sample_index].append(chunk)
        self.num_open -= chunk.finish_reason is not None

    def output(self) -> RequestOutput:
        """The whole answer. A sample that failed says so: its reason is "error", its stop_reason the error."""
        prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        timing: RequestTiming | None = None
        for chunk in self._chunks[0]:
            prompt_logprobs = chunk.prompt_logprobs or prompt_logprobs
            timing = chunk.timing or timing
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=tuple(self._sample(index, chunks) for index, chunks in enumerate(self._chunks)),
            prompt_logprobs=prompt_logprobs,
            timing=timing,
            seed=self.request.seed,
        )

    def _sample(self, index: int, chunks: list[TokenChunk]) -> SequenceOutput:
        last = chunks[-1]
        reason = FinishReason.ERROR if last.finish_reason is None else last.finish_reason
        wants_logprobs = self.request.sampling.logprobs is not None
        return SequenceOutput(
            index=index,
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
            finish_reason=reason.value,
            stop_reason=last.stop_reason if last.error is None else last.error,
            logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs) if wants_logprobs else None,
        )
