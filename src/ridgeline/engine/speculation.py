"""Which drafts a step runs: asks each sample's drafters, weighs what they guess against what the step will cost.

Knows: samples, drafters, predicted seconds. Does not know: how anyone guesses, pages, logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ridgeline.engine.sample import Sample
from ridgeline.ops.step import PAGE_SLOTS, SpanShape, StepShape
from ridgeline.request.request import Request
from ridgeline.schedule.sequence import Sequence as ScheduledSequence
from ridgeline.speculate.drafter import NO_DRAFT, Draft, Drafter
from ridgeline.speculate.length import choose_lengths
from ridgeline.speculate.ngram import NgramDrafter

MAX_DRAFT_TOKENS = PAGE_SLOTS // 2
"""Of one sequence in one step. Less than a page, so that a draft crosses at most one page's end: see
docs/decisions/0005-drafts-across-pages.md."""

Predict = Callable[[StepShape], float]
MakeDrafters = Callable[[Request, Sequence[int]], Sequence[Drafter]]
"""(request, a sample's tokens, to which others append) -> who guesses for that sample."""


def copying_drafters(request: Request, token_ids: Sequence[int]) -> Sequence[Drafter]:
    """Those that need no model."""
    return (NgramDrafter(token_ids),)


class Speculation:
    """Proposes drafts.

    Args:
        samples: those that run, by sequence id; the engine changes it.
        predict: seconds that a step will take; None: every guess is run.
        goal_seconds: drafts make no step longer than this; None: as long as it pays.
        make_drafters: who guesses.

    Holds: the drafters of each sample that has decoded. Changed by: `propose`, `forget`.
    """

    def __init__(
        self,
        samples: Mapping[int, Sample],
        *,
        predict: Predict | None,
        goal_seconds: float | None = None,
        make_drafters: MakeDrafters = copying_drafters,
    ) -> None:
        self._samples = samples
        self._predict = predict
        self._goal_seconds = float("inf") if goal_seconds is None else goal_seconds
        self._make_drafters = make_drafters
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

    def forget(self, sample: Sample) -> None:
        """The sample has ended."""
        self._drafters.pop(sample.sequence.sequence_id, None)

    def _best_draft(self, sample: Sample, max_drafts: int) -> Draft:
        """The guesses of which most are expected to stand."""
        # The step itself brings one token, so a draft for the last one would never be looked at.
        most = min(max_drafts, MAX_DRAFT_TOKENS, sample.max_output_tokens - sample.num_output_tokens - 1)
        if most <= 0 or not sample.takes_drafts:
            return NO_DRAFT
        sequence_id = sample.sequence.sequence_id
        drafters = self._drafters.get(sequence_id)
        if drafters is None:
            drafters = self._drafters[sequence_id] = self._make_drafters(sample.request, sample.token_ids)
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
