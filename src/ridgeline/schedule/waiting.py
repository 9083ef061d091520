"""The queue of sequences that wait for a place: in order of priority, then arrival; bounded."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence

from ridgeline.errors import OverloadedError
from ridgeline.schedule.sequence import Sequence


class WaitingQueue:
    """Sequences in the order in which they are to be admitted.

    The bounds hold for newcomers: a preempted sequence was accepted once and always finds its way back.

    Holds: the sequences, sorted; the sum of their tokens. Changed by: its own methods alone.
    """

    def __init__(self, max_sequences: int, max_tokens: int) -> None:
        self._sequences: list[Sequence] = []
        self._max_sequences = max_sequences
        self._max_tokens = max_tokens
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def check_room(self, newcomers: AbstractSequence[Sequence], *, retry_after_seconds: float) -> None:
        """Raise OverloadedError if these would exceed a bound; an empty queue takes any single request."""
        if not self._sequences:
            return
        num_tokens = sum(len(sequence.token_ids) for sequence in newcomers)
        for waiting, added, bound, unit in (
            (len(self._sequences), len(newcomers), self._max_sequences, "requests"),
            (self.num_tokens, num_tokens, self._max_tokens, "prompt tokens"),
        ):
            if waiting + added > bound:
                raise OverloadedError(
                    f"the queue is full: {waiting} {unit} are waiting, {added} more would exceed {bound}",
                    retry_after_seconds=retry_after_seconds,
                    hint=f"try again in {retry_after_seconds:.0f} s",
                )

    def add(self, sequence: Sequence) -> None:
        """Put it where its order says."""
        insort(self._sequences, sequence, key=lambda each: each.order)
        self.num_tokens += len(sequence.token_ids)

    def remove(self, sequence: Sequence) -> None:
        """Take it out; its order must be what it was when it was added."""
        index = bisect_left(self._sequences, sequence.order, key=lambda each: each.order)
        assert self._sequences[index] is sequence
        del self._sequences[index]
        self.num_tokens -= len(sequence.token_ids)
