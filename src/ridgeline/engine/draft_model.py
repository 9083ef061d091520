"""Guesses from a smaller model that has the same vocabulary, on the same chip.

Its keys and values lie in pages of its own that go by the numbers of the large model's: a page number stands for the
same tokens in both, so the scheduler's bookkeeping serves both, and a prefix that was read once is read no more. What
it guesses need not be right, so nothing here needs to be undone when a guess fails: it is stored over.

Knows: scheduled sequences, steps. Does not know: requests, sampling, whether a guess will be run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ridgeline.engine.predict import StepPredictor
from ridgeline.engine.runner import Runner, shape_of
from ridgeline.ops.chip import CompiledStep
from ridgeline.ops.step import PAGE_SLOTS, SpanShape, StepLimits, StepShape
from ridgeline.schedule.batch import Batch, BatchEntry
from ridgeline.schedule.sequence import Sequence as ScheduledSequence
from ridgeline.schedule.sequence import pages_for

PRIOR_CHANCE = 0.65
"""That a guess stands, before any was tried."""
NEWEST_WEIGHT = 0.08
"""Of a guess that was tried, in the running mean of what stood."""
FIRST_PATIENCE_STEPS, MAX_PATIENCE_STEPS = 64, 1024
"""After so many steps without its guesses a sequence takes the prior chance for the true one, once; each time that
this does not pay it waits twice as long."""
READ_TOKENS = 256
"""Of text that it has not seen yet, before one step: the samples that decode wait for it."""


@dataclass(slots=True)
class _Progress:
    """How far it has come with one sequence."""

    num_preemptions: int
    num_computed: int = 0
    """Tokens whose keys and values its pages hold."""
    pages: list[int] = field(default_factory=list)
    """The pages that they are in, as they were then."""
    proposed: tuple[int, ...] = ()
    """The guesses that were made last, and how many tokens there were before them."""
    num_before: int = 0
    chance: float = PRIOR_CHANCE
    num_idle_steps: int = 0
    patience_steps: int = FIRST_PATIENCE_STEPS


class DraftModel:
    """A model that guesses.

    Args:
        compiled: the small decoder, on as many pages as the large one has, for steps within the same limits.
        limits: the largest step.
        predictor: of its steps.
        vocabulary_size: tokens that both models know.
        context_tokens: the longest text that it was made for.

    Holds: its progress with each sequence; which content its pages hold, by the key of the prefix index.
    """

    def __init__(
        self,
        compiled: CompiledStep,
        limits: StepLimits,
        predictor: StepPredictor,
        *,
        vocabulary_size: int,
        context_tokens: int,
    ) -> None:
        self._runner = Runner(compiled, limits)
        self._predictor = predictor
        self._vocabulary_size = vocabulary_size
        self._context_tokens = context_tokens
        self._progress: dict[int, _Progress] = {}
        self._filled: dict[int, bytes] = {}

    def observe(self, sequence: ScheduledSequence) -> None:
        """Learn how the last guesses fared; to be called at each decoding step."""
        progress = self._progress_with(sequence)
        if not progress.proposed:
            progress.num_idle_steps += 1
            return
        num_stood = 0
        for guess, token_id in zip(progress.proposed, sequence.token_ids[progress.num_before :], strict=False):
            progress.chance += NEWEST_WEIGHT * ((guess == token_id) - progress.chance)
            if guess != token_id:
                break
            num_stood += 1
        if progress.num_computed == progress.num_before and progress.num_before % PAGE_SLOTS:
            # All guesses but the last were run, so what they stored is what the tokens that stand would have.
            self._note_pages(sequence, progress, progress.num_before + min(num_stood, len(progress.proposed) - 1))
        if progress.chance >= PRIOR_CHANCE:
            progress.patience_steps = FIRST_PATIENCE_STEPS
        progress.proposed = ()
        progress.num_idle_steps = 0

    def chance(self, sequence: ScheduledSequence) -> float:
        """That the next guess stands."""
        progress = self._progress_with(sequence)
        if progress.num_idle_steps >= progress.patience_steps:
            return max(progress.chance, PRIOR_CHANCE)
        return progress.chance

    def room(self, sequence: ScheduledSequence) -> int:
        """How many guesses there is room for."""
        num_tokens = min(len(sequence.pages) * PAGE_SLOTS, self._context_tokens)
        return max(0, num_tokens - len(sequence.token_ids) + 1)

    def num_unread(self, sequence: ScheduledSequence) -> int:
        """Tokens that it must read before it can guess."""
        return len(sequence.token_ids) - self._progress_with(sequence).num_computed

    def seconds(self, sequences: Sequence[ScheduledSequence], num_guesses: int) -> float:
        """How long it takes to make so many guesses for each, reading aside."""
        spans = tuple(SpanShape(num_tokens=1, context_tokens=len(each.token_ids)) for each in sequences)
        return num_guesses * self._predictor.seconds(StepShape(spans=spans, num_logit_rows=len(spans)))

    def reading_seconds(self, sequences: Sequence[ScheduledSequence]) -> float:
        """How long it takes to read what it has not read."""
        spans = tuple(
            SpanShape(num_tokens=max(1, self.num_unread(each)), context_tokens=len(each.token_ids))
            for each in sequences
        )
        return self._predictor.seconds(StepShape(spans=spans, num_logit_rows=len(spans)))

    def guess(self, sequences: Sequence[ScheduledSequence], num_guesses: int) -> dict[int, tuple[int, ...]]:
        """Up to so many guesses for each, by sequence id; none for those that it has yet to read more of."""
        for sequence in sequences:
            progress = self._progress_with(sequence)
            if progress.num_idle_steps >= progress.patience_steps:
                progress.patience_steps = min(2 * progress.patience_steps, MAX_PATIENCE_STEPS)
        ready = self._read(sequences)
        guesses: dict[int, list[int]] = {sequence.sequence_id: [] for sequence in ready}
        for number in range(num_guesses):
            going_on = [each for each in ready if number < self.room(each)]
            if not going_on:
                break
            self._run_once(going_on, guesses)
        for sequence in ready:
            progress = self._progress[sequence.sequence_id]
            progress.proposed = tuple(guesses[sequence.sequence_id])
            progress.num_before = len(sequence.token_ids)
            self._note_pages(sequence, progress, len(sequence.token_ids))
        return {number: tuple(tokens) for number, tokens in guesses.items()}

    def forget(self, sequence_id: int) -> None:
        """The sequence has ended."""
        self._progress.pop(sequence_id, None)

    def _progress_with(self, sequence: ScheduledSequence) -> _Progress:
        """How far it is, after checking that the sequence's pages still are those that it knows."""
        progress = self._progress.get(sequence.sequence_id)
        if progress is None or progress.num_preemptions != sequence.num_preemptions:
            chance = PRIOR_CHANCE if progress is None else progress.chance
            progress = _Progress(sequence.num_preemptions, chance=chance)
            self._progress[sequence.sequence_id] = progress
        for number, page in enumerate(progress.pages):
            if page != sequence.pages[number] and not self._has_content(sequence, number):
                progress.num_computed = min(progress.num_computed, number * PAGE_SLOTS)
                break
        while progress.num_computed + PAGE_SLOTS <= len(sequence.token_ids) - 1 and self._has_content(
            sequence, progress.num_computed // PAGE_SLOTS
        ):
            progress.num_computed = (progress.num_computed // PAGE_SLOTS + 1) * PAGE_SLOTS
        progress.pages = sequence.pages[: pages_for(progress.num_computed)]
        return progress

    def _has_content(self, sequence: ScheduledSequence, number: int) -> bool:
        """Whether its page of this number, counted within the sequence, was filled for the same tokens."""
        return number < len(sequence.keys) and self._filled.get(sequence.pages[number]) == sequence.keys[number]

    def _read(self, sequences: Sequence[ScheduledSequence]) -> list[ScheduledSequence]:
        """Read what was not read, all but the last token of each; those that are done."""
        left = READ_TOKENS
        entries: list[BatchEntry] = []
        ready: list[ScheduledSequence] = []
        for sequence in sequences:
            progress = self._progress_with(sequence)
            if max(sequence.token_ids[progress.num_computed :]) >= self._vocabulary_size:
                continue
            count = min(left, self.num_unread(sequence) - 1)
            left -= count
            if count > 0:
                start = progress.num_computed
                entries.append(_entry(sequence, start, sequence.token_ids[start : start + count], num_rows=0))
                self._note_pages(sequence, progress, start + count)
            if self.num_unread(sequence) == 1:
                ready.append(sequence)
        if entries:
            self._step(entries)
        return ready

    def _run_once(self, sequences: Sequence[ScheduledSequence], guesses: dict[int, list[int]]) -> None:
        """One more guess for each."""
        entries = []
        for sequence in sequences:
            own = guesses[sequence.sequence_id]
            position = len(sequence.token_ids) - 1 + len(own)
            entries.append(_entry(sequence, position, [own[-1] if own else sequence.token_ids[-1]], num_rows=1))
        logits_BV = self._step(entries)
        for sequence, row_V in zip(sequences, logits_BV, strict=True):
            guesses[sequence.sequence_id].append(int(row_V[: self._vocabulary_size].argmax()))

    def _step(self, entries: list[BatchEntry]) -> npt.NDArray[np.float32]:
        batch = Batch(entries=tuple(entries))
        logits_BV, _ = self._runner.run(batch)
        self._predictor.observe(shape_of(batch), self._runner.seconds())
        return logits_BV

    def _note_pages(self, sequence: ScheduledSequence, progress: _Progress, num_computed: int) -> None:
        """The pages hold so many tokens now; whole ones are known by their keys from here on."""
        for number in range(progress.num_computed // PAGE_SLOTS, num_computed // PAGE_SLOTS):
            sequence.extend_keys(number + 1)
            self._filled[sequence.pages[number]] = sequence.keys[number]
        progress.num_computed = num_computed
        progress.pages = sequence.pages[: pages_for(num_computed)]


def _entry(sequence: ScheduledSequence, start: int, token_ids: Sequence[int], *, num_rows: int) -> BatchEntry:
    assert sequence.place is not None
    end = start + len(token_ids)
    return BatchEntry(
        sequence_id=sequence.sequence_id,
        start=start,
        end=end,
        token_ids=tuple(token_ids),
        page_ids=tuple(sequence.pages[: pages_for(end)]),
        place=sequence.place,
        num_logit_rows=num_rows,
    )
