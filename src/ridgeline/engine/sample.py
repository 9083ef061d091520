"""One sample of a request while it runs: its text, when it ends, what it has to say.

Knows: one sample. Does not know: batches, pages, other samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ridgeline.engine.text import SampleText
from ridgeline.engine.timing import SampleStopwatch
from ridgeline.request.output import FinishReason, RequestTiming, TokenChunk, TokenLogprob
from ridgeline.request.request import Request
from ridgeline.sampling.state import SampleState
from ridgeline.schedule.sequence import Sequence


@dataclass(slots=True, kw_only=True, eq=False)
class Sample:
    """One sample.

    Holds: its sequence (which the scheduler changes), its text stream, its stopwatch. Changed by: the engine.
    """

    request: Request
    index: int
    sequence: Sequence
    state: SampleState
    token_ids: list[int]
    """Prompt and output as far as it was drawn; the sampler's state sees it too, and `take` appends."""
    text: SampleText
    stopwatch: SampleStopwatch
    max_output_tokens: int
    end_of_sequence_ids: frozenset[int]
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Filled chunk by chunk; told with the first token, then None."""
    num_output_tokens: int = field(default=0)
    num_drafted_tokens: int = 0
    """Drafts that steps ran for it."""
    num_accepted_tokens: int = 0
    """Of these, the ones that stood."""
    takes_drafts: bool = True
    """False once logits of a step with drafts were not finite."""

    def take(self, token_id: int, logprob: TokenLogprob | None) -> TokenChunk:
        """Take in a newly drawn token; the chunk that it makes, with a finish reason if the sample ends with it."""
        sampling = self.request.sampling
        self.num_output_tokens += 1
        self.token_ids.append(token_id)
        self.state.note(token_id)
        reason: FinishReason | None = None
        stop_reason: str | int | None = None
        if token_id in self.end_of_sequence_ids and not sampling.ignore_eos:
            reason = FinishReason.STOP
        elif token_id in sampling.stop_token_ids:
            reason, stop_reason = FinishReason.STOP, token_id
        text = ""
        # The token that ends a sample is among its tokens; its text is not wanted unless it was asked for.
        if reason is None or sampling.include_stop_str_in_output:
            text = self.text.push(token_id)
            if self.text.stopped_by is not None:
                reason, stop_reason = FinishReason.STOP, self.text.stopped_by
        if reason is None and self.num_output_tokens >= self.max_output_tokens:
            reason = FinishReason.LENGTH
        if reason is not None and self.text.stopped_by is None:
            text += self.text.finish()
        prompt_logprobs = None if self.prompt_logprobs is None else tuple(self.prompt_logprobs)
        self.prompt_logprobs = None
        return TokenChunk(
            request_id=self.request.request_id,
            sample_index=self.index,
            text=text,
            token_ids=(token_id,),
            logprobs=() if logprob is None else (logprob,),
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
        )

    def last_words(self, reason: FinishReason, error: str | None, timing: RequestTiming) -> TokenChunk:
        """The chunk that ends the sample from outside; text that was held back is told unless something failed."""
        return TokenChunk(
            request_id=self.request.request_id,
            sample_index=self.index,
            text=self.text.finish() if error is None else "",
            finish_reason=reason,
            error=error,
            timing=timing,
        )
