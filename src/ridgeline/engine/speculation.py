"""Which drafts a step runs: asks each sample's drafters, weighs what they guess against what the step will cost.

Knows: samples, drafters, predicted seconds. Does not know: how anyone guesses, pages, logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ridgeline.engine.sample import Sample
from ridgeline.ops.step import PAGE_SLOTS, SpanShape, StepShape
from ridgeline.request.request import Request
from ridgeline.schedule.sequence import Sequence as ScheduledSequence
from ridgeline.speculate.drafter import NO_DRAFT, Draft, Drafter
from ridgeline.speculate.length import choose_lengths
from ridgeline.speculate.ngram import NgramDrafter
from ridgeline.speculate.suffix import RecentTexts, SuffixDrafter

MAX_DRAFT_TOKENS = PAGE_SLOTS // 2
"""Of one sequence in one step. Less than a page, so that a draft crosses at most one page's end: see
docs/decisions/0005-drafts-across-pages.md."""

Predict = Callable[[StepShape], float]


class Drafting(Protocol):
    """Who guesses for whom."""

    def drafters(self, request: Request, token_ids: Sequence[int]) -> Sequence[Drafter]:
        """For a sample, whose tokens are a list to which others append."""

    def note_end(self, request: Request, token_ids: Sequence[int]) -> None:
        """A sample has ended with these tokens, prompt and output."""

    def forget(self) -> None:
        """Forget all that have ended."""


class Copying:
    """Guesses that need no model: copies from the sample's own tokens, and from what was answered lately.

    Holds: recent texts. Changed by: `note_end`.
    """

    def __init__(self) -> None:
        self._recent = RecentTexts()

    def drafters(self, request: Request, token_ids: Sequence[int]) -> Sequence[Drafter]:
        """See Drafting."""
        recent = self._recent.drafters(request.cache_salt, token_ids)
        return (NgramDrafter(token_ids), SuffixDrafter(token_ids), *recent)

    def note_end(self, request: Request, token_ids: Sequence[int]) -> None:
        """See Drafting."""
        self._recent.add(request.cache_salt, token_ids, len(request.prompt_token_ids))

    def forget(self) -> None:
        """See Drafting."""
        self._recent = RecentTexts()


class Speculation:
    """Proposes drafts.

    Args:
        samples: those that run, by sequence id; the engine changes it.
        predict: seconds that a step will take; None: every guess is run.
        goal_seconds: drafts make no step longer than this; None: as long as it pays.
        drafting: who guesses.

    Holds: the drafters of each sample that has decoded. Changed by: `propose`, `note_end`.
    """

    def __init__(
        self,
        samples: Mapping[int, Sample],
        *,
        predict: Predict | None,
        goal_seconds: float | None = None,
        drafting: Drafting,
    ) -> None:
        self._samples = samples
        self._predict = predict
        self._goal_seconds = float("inf") if goal_seconds is None else goal_seconds
        self._drafting = drafting
        self._drafters: dict[int, Sequence[Drafter]] = {}

    def propose(self, sequences: Sequence[ScheduledSequence], max_drafts: int) -> dict[int, tuple[int, ...]]:
        """Drafts that are worth their cost, by sequence id; `sequences` are all that decode in the step."""
        drafts = [self._best_draft(self._samples[sequence.sequence_id], max_drafts) for sequence in sequences]
        if not any(draft.token_ids for draft in drafts):
            return {}
        lengths = choose_lengths(
            [draft.chances for draft in drafts],
            max_drafts=max_drafts,
            seconds=self._seconds_of(sequences),
            goal_seconds=self._goal_seconds,
        )
        return {
            sequence.sequence_id: draft.token_ids[:length]
            for sequence, draft, length in zip(sequences, drafts, lengths, strict=True)
            if length
        }

    def note_end(self, sample: Sample) -> None:
        """The sample has ended."""
        if self._drafters.pop(sample.sequence.sequence_id, None) is not None:
            self._drafting.note_end(sample.request, sample.token_ids)

    def forget(self) -> None:
        """Forget texts of samples that have ended."""
        self._drafting.forget()

    def _best_draft(self, sample: Sample, max_drafts: int) -> Draft:
        """The guesses of which most are expected to stand."""
        # The step itself brings one token, so a draft for the last one would never be looked at.
        most = min(max_drafts, MAX_DRAFT_TOKENS, sample.max_output_tokens - sample.num_output_tokens - 1)
        if most <= 0 or not sample.takes_drafts:
            return NO_DRAFT
        sequence_id = sample.sequence.sequence_id
        drafters = self._drafters.get(sequence_id)
        if drafters is None:
            drafters = self._drafters[sequence_id] = self._drafting.drafters(sample.request, sample.token_ids)
        return max((drafter.propose(most) for drafter in drafters), key=_expected_tokens, default=NO_DRAFT)

    def _seconds_of(self, sequences: Sequence[ScheduledSequence]) -> Callable[[Sequence[int]], float]:
        predict = self._predict
        if predict is None:
            return lambda lengths: 1.0
        contexts = [sequence.num_computed + 1 for sequence in sequences]

        def seconds(lengths: Sequence[int]) -> float:
            spans = tuple(
                SpanShape(num_tokens=1 + length, context_tokens=context + length)
                for context, length in zip(contexts, lengths, strict=True)
            )
            return predict(StepShape(spans=spans, num_logit_rows=len(lengths) + sum(lengths)))

        return seconds


def _expected_tokens(draft: Draft) -> float:
    """How many of the guesses are expected to stand."""
    expected, reached = 0.0, 1.0
    for chance in draft.chances:
        reached *= chance
        expected += reached
    return expected
