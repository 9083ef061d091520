"""Which drafts a step runs: asks each sample's drafters, weighs what they guess against what the step will cost.

Knows: samples, drafters, predicted seconds. Does not know: how anyone guesses, pages, logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ridgeline.engine.draft_model import DraftModel
from ridgeline.engine.sample import Sample
from ridgeline.ops.step import PAGE_SLOTS, SpanShape, StepShape
from ridgeline.request.request import Request
from ridgeline.schedule.sequence import Sequence as ScheduledSequence
from ridgeline.schedule.step_size import Predict
from ridgeline.speculate.drafter import NO_DRAFT, Draft, Drafter
from ridgeline.speculate.length import Seconds, choose_guesses, choose_lengths, expected_tokens
from ridgeline.speculate.ngram import NgramDrafter
from ridgeline.speculate.suffix import RecentTexts, SuffixDrafter

MAX_DRAFT_TOKENS = PAGE_SLOTS // 2
"""Of one sequence in one step. Less than a page, so that a draft crosses at most one page's end: see
docs/decisions/0005-drafts-across-pages.md."""

READ_AT_ONCE_TOKENS = 32
"""What a draft model has not read for lack of being asked, and reads without reckoning whether it pays."""
FIRST_TOKENS_TO_COME = 64


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
        draft_model: a small model that guesses where copying does not.

    Holds: the drafters of each sample that has decoded. Changed by: `propose`, `note_end`.
    """

    def __init__(
        self,
        samples: Mapping[int, Sample],
        *,
        predict: Predict | None,
        goal_seconds: float | None = None,
        drafting: Drafting,
        draft_model: DraftModel | None = None,
    ) -> None:
        self._samples = samples
        self._predict = predict
        self._goal_seconds = float("inf") if goal_seconds is None else goal_seconds
        self._drafting = drafting
        self._draft_model = draft_model
        self._drafters: dict[int, Sequence[Drafter]] = {}

    def propose(self, sequences: Sequence[ScheduledSequence], max_drafts: int) -> dict[int, tuple[int, ...]]:
        """Drafts that are worth their cost, by sequence id; `sequences` are all that decode in the step."""
        most = [self._most_drafts(self._samples[sequence.sequence_id], max_drafts) for sequence in sequences]
        drafts = [
            self._best_draft(self._samples[sequence.sequence_id], count)
            for sequence, count in zip(sequences, most, strict=True)
        ]
        if self._draft_model is None and not any(draft.token_ids for draft in drafts):
            return {}
        seconds = self._seconds_of(sequences)
        lengths = choose_lengths(
            [draft.chances for draft in drafts],
            max_drafts=max_drafts,
            seconds=seconds,
            goal_seconds=self._goal_seconds,
        )
        copied = {
            sequence.sequence_id: draft.token_ids[:length]
            for sequence, draft, length in zip(sequences, drafts, lengths, strict=True)
            if length
        }
        if self._draft_model is None:
            return copied
        chances = [draft.chances[:length] for draft, length in zip(drafts, lengths, strict=True)]
        return copied | self._guessed(self._draft_model, sequences, most, chances, max_drafts, seconds)

    def _guessed(
        self,
        model: DraftModel,
        sequences: Sequence[ScheduledSequence],
        most: Sequence[int],
        copied: Sequence[Sequence[float]],
        max_drafts: int,
        seconds: Seconds,
    ) -> dict[int, tuple[int, ...]]:
        """Guesses of the draft model in place of copies, where they pay for the time that they take to make."""
        for sequence in sequences:
            model.observe(sequence)
        room = [min(count, model.room(sequence)) for sequence, count in zip(sequences, most, strict=True)]
        chosen = choose_guesses(
            copied,
            [model.chance(sequence) for sequence in sequences],
            room,
            max_drafts=max_drafts,
            seconds=seconds,
            making_seconds=lambda group, count: model.seconds([sequences[number] for number in group], count),
        )
        if chosen is None:
            return {}
        group = [sequences[number] for number in chosen.group]
        gained_seconds = chosen.gained_seconds_per_token * sum(self._tokens_to_come(sequence) for sequence in group)
        if any(model.num_unread(sequence) > READ_AT_ONCE_TOKENS for sequence in group) and (
            model.reading_seconds(group) > gained_seconds
        ):
            return {}
        guesses = model.guess(group, chosen.num_guesses)
        counts = dict(zip((sequence.sequence_id for sequence in sequences), room, strict=True))
        return {number: tokens[: counts[number]] for number, tokens in guesses.items() if tokens}

    def _tokens_to_come(self, sequence: ScheduledSequence) -> int:
        """How many tokens a sample is expected to go on for: as many as it has said, and a few."""
        sample = self._samples[sequence.sequence_id]
        return min(sample.max_output_tokens - sample.num_output_tokens, FIRST_TOKENS_TO_COME + sample.num_output_tokens)

    def note_end(self, sample: Sample) -> None:
        """The sample has ended."""
        if self._drafters.pop(sample.sequence.sequence_id, None) is not None:
            self._drafting.note_end(sample.request, sample.token_ids)
        if self._draft_model is not None:
            self._draft_model.forget(sample.sequence.sequence_id)

    def forget(self) -> None:
        """Forget texts of samples that have ended."""
        self._drafting.forget()

    def _most_drafts(self, sample: Sample, max_drafts: int) -> int:
        """How many drafts could be of use to the sample."""
        # The step itself brings one token, so a draft for the last one would never be looked at.
        left = sample.max_output_tokens - sample.num_output_tokens - 1
        return min(max_drafts, MAX_DRAFT_TOKENS, left) if sample.takes_drafts else 0

    def _best_draft(self, sample: Sample, most: int) -> Draft:
        """The guesses of which most are expected to stand, at most so many."""
        if most <= 0:
            return NO_DRAFT
        sequence_id = sample.sequence.sequence_id
        drafters = self._drafters.get(sequence_id)
        if drafters is None:
            drafters = self._drafters[sequence_id] = self._drafting.drafters(sample.request, sample.token_ids)
        best = NO_DRAFT
        for drafter in drafters:
            draft = drafter.propose(most)
            if draft.token_ids and (best is NO_DRAFT or expected_tokens(draft.chances) > expected_tokens(best.chances)):
                best = draft
        return best

    def _seconds_of(self, sequences: Sequence[ScheduledSequence]) -> Seconds:
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
