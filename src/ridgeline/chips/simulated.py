"""A chip that only exists as a roofline: predicted times on a virtual clock, logits from a hash of the pages.

The real engine, scheduler and page table run on it unchanged, thousands of times faster than the chip would. Its next
token depends on every token that the sequence's pages hold *when the step runs*: a page that was freed too early,
shared wrongly or filled at the wrong slot changes the text. `next_token` says what it should have been.

Knows: the counting chip, a roofline. Does not know: the decoder's arithmetic, requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.chips.counting import CountedPages, CountedWeight, CountingChip, Symbol
from ridgeline.errors import CapacityError, ChipError
from ridgeline.ops.chip import ChipFacts, HostStep, PageLayout, StepFunction, TensorSource
from ridgeline.ops.cost import StepCost
from ridgeline.ops.step import PAGE_SLOTS, SpanShape, StepLimits, StepShape

__all__ = ["Faults", "SimulatedChip", "SimulatedPages", "SimulatedStep", "VirtualClock", "next_token"]

TOP_LOGIT = 20.0
"""The next token's logit; all others are 0, so at temperature 1 a vocabulary of 150,000 gets 0.03 % of the draws."""

Marks = npt.NDArray[np.uint64]


class VirtualClock:
    """Seconds that pass only when told. Holds: the time; changed by `advance`."""

    def __init__(self, start_seconds: float = 0.0) -> None:
        self._seconds = start_seconds

    def now(self) -> float:
        """Seconds since the clock's start; to be passed where `time.monotonic` would be."""
        return self._seconds

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0, seconds
        self._seconds += seconds

    def advance_to(self, seconds: float) -> None:
        """Let time pass until then; a time that is over changes nothing."""
        self._seconds = max(self._seconds, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, decided by (seed, step) alone, so the same run fails in the same way.

    Steps are numbered from 0 over the life of a compiled step; a failed one counts.
    """

    seed: int = 0
    error_share: float = 0.0
    """Share of steps that raise ChipError."""
    error_steps: frozenset[int] = frozenset()
    """Steps that raise ChipError whatever the share."""
    slow_share: float = 0.0
    slow_factor: float = 10.0
    """Slow steps take this many times longer than predicted."""
    nan_share: float = 0.0
    """Share of steps in which one row of logits is NaN."""

    def draw(self, step: int, what: int) -> float:
        """A number in [0, 1) for fault `what` at `step`."""
        return _mix(_mix(self.seed, step), what) / 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPages:
    """A mark for each slot instead of keys and values. Holds: arrays that steps write.

    A mark stands for (token, position); the marks of a context add up, modulo 2^64, to what its next token is made of.
    """

    layout: PageLayout
    marks_PS: Marks
    sums_P: Marks
    """The sum of each page's marks."""


class SimulatedChip:
    """A chip on paper: its roofline, a virtual clock, and faults.

    Args:
        facts: the roofline, of a published chip or measured on this machine.
        clock: shared with the engine that is to run on virtual time; its own if None.
        faults: what goes wrong; nothing by default.

    Holds: the clock, and how many bytes it has given out.
    """

    def __init__(self, facts: ChipFacts, *, clock: VirtualClock | None = None, faults: Faults | None = None) -> None:
        self.clock = VirtualClock() if clock is None else clock
        self._facts = facts
        self._faults = Faults() if faults is None else faults
        self._counting = CountingChip()
        self._used_bytes = 0

    @property
    def name(self) -> str:
        """The word `simulated`."""
        return "simulated"

    def facts(self) -> ChipFacts:
        """Those that were given."""
        return self._facts

    def page_bytes(self, layout: PageLayout) -> int:
        """As the cost model counts them."""
        return self._counting.page_bytes(layout)

    def adopt(self, sources: Mapping[str, TensorSource], fingerprint: str) -> dict[str, CountedWeight]:
        """Shapes and formats; nothing is read. Raises CapacityError when the chip could not hold them."""
        adopted = self._counting.adopt(sources, fingerprint)
        self._take(sum(weight.num_bytes for weight in adopted.values()), "the weights")
        return adopted

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> SimulatedPages:
        """Pages of marks. Raises CapacityError when the chip could not hold the real ones."""
        self._take(self.page_bytes(layout) * num_pages, f"{num_pages} pages")
        return SimulatedPages(
            layout=layout,
            marks_PS=np.zeros((num_pages, PAGE_SLOTS), dtype=np.uint64),
            sums_P=np.zeros(num_pages, dtype=np.uint64),
        )

    def compile(
        self,
        step: StepFunction[Symbol, CountedWeight, CountedPages],
        pages: SimulatedPages,
        limits: StepLimits,
    ) -> SimulatedStep:
        """Count the step once; from then on only its cost is used."""
        counted = self._counting.compile(step, CountedPages(layout=pages.layout), limits)
        return SimulatedStep(
            cost=counted.cost,
            facts=self._facts,
            pages=pages,
            clock=self.clock,
            faults=self._faults,
            logits_BV=np.zeros((limits.max_logit_rows, counted.vocabulary_size), dtype=np.float32),
        )

    def close(self) -> None:
        """Give the room back."""
        self._used_bytes = 0

    def _take(self, num_bytes: int, what: str) -> None:
        free_bytes = self._facts.memory_bytes - self._used_bytes
        if num_bytes > free_bytes:
            raise CapacityError(
                f"{self._facts.name} has {free_bytes:,} bytes free and {what} take {num_bytes:,}",
                hint="Fewer pages, a smaller format, or a chip with more memory would fit.",
            )
        self._used_bytes += num_bytes


class SimulatedStep:
    """A counted decoder on a clock.

    Holds: the pages' marks, the logits (almost all zero, written at few places), the number of steps; changed by `run`.
    """

    def __init__(
        self,
        *,
        cost: StepCost,
        facts: ChipFacts,
        pages: SimulatedPages,
        clock: VirtualClock,
        faults: Faults,
        logits_BV: npt.NDArray[np.float32],
    ) -> None:
        self.cost = cost
        self._facts = facts
        self._pages = pages
        self._clock = clock
        self._faults = faults
        # The system gives zero pages on first touch, so rows that no step asks for take no memory.
        self._logits_BV = logits_BV
        self._written: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] | None = None
        self._nan_row: int | None = None
        self._num_steps = 0
        self._seconds = 0.0

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """Advance the clock by the predicted time and return logits_BV; valid until the next `run`.

        Raises ChipError where the faults say so, after the time has passed; the pages then hold nothing new.
        """
        number = self._num_steps
        self._num_steps += 1
        faults = self._faults
        self._seconds = self.cost.seconds(step_shape(step), self._facts)
        if faults.slow_share and faults.draw(number, 0) < faults.slow_share:
            self._seconds *= faults.slow_factor
        self._clock.advance(self._seconds)
        if number in faults.error_steps or (faults.error_share and faults.draw(number, 1) < faults.error_share):
            raise ChipError(f"injected fault at step {number} of the simulated {self._facts.name}")
        self._store(step)
        logits_BV = self._logits(step)
        if faults.nan_share and len(logits_BV) and faults.draw(number, 2) < faults.nan_share:
            self._nan_row = int(faults.draw(number, 3) * len(logits_BV))
            logits_BV[self._nan_row] = np.nan
        return logits_BV

    def seconds(self) -> float:
        """Virtual seconds of the last `run`."""
        return self._seconds

    def _store(self, step: HostStep) -> None:
        marks_T = marks_of(step.token_ids_T, step.positions_T)
        page_T, slot_T = np.divmod(step.slots_T, PAGE_SLOTS)
        changes_T = marks_T - self._pages.marks_PS[page_T, slot_T]
        self._pages.marks_PS[page_T, slot_T] = marks_T
        np.add.at(self._pages.sums_P, page_T, changes_T)

    def _logits(self, step: HostStep) -> npt.NDArray[np.float32]:
        if self._written is not None:
            self._logits_BV[self._written] = 0.0
        if self._nan_row is not None:
            self._logits_BV[self._nan_row] = 0.0
            self._nan_row = None
        rows_B = step.logit_rows_B
        logits_BV = self._logits_BV[: len(rows_B)]
        positions_B = step.positions_T[rows_B]
        table_BP = step.page_table_NP[step.sequences_T[rows_B]]
        own_B, last_slot_B = np.divmod(positions_B, PAGE_SLOTS)
        earlier_BP = np.arange(table_BP.shape[1]) < own_B[:, None]
        sums_B = (self._pages.sums_P[table_BP] * earlier_BP).sum(axis=1, dtype=np.uint64)
        marks_BS = self._pages.marks_PS[table_BP[np.arange(len(rows_B)), own_B]]
        seen_BS = np.arange(PAGE_SLOTS) <= last_slot_B[:, None]
        sums_B += (marks_BS * seen_BS).sum(axis=1, dtype=np.uint64)
        tokens_B = (_mixed(sums_B) % np.uint64(logits_BV.shape[1])).astype(np.intp)
        self._written = (np.arange(len(rows_B)), tokens_B)
        self._logits_BV[self._written] = TOP_LOGIT
        return logits_BV


def step_shape(step: HostStep) -> StepShape:
    """What the step's cost depends on."""
    starts = step.query_starts_N1.tolist()
    contexts = step.context_lengths_N.tolist()
    return StepShape(
        spans=tuple(
            SpanShape(num_tokens=starts[n + 1] - starts[n], context_tokens=context)
            for n, context in enumerate(contexts)
        ),
        num_logit_rows=len(step.logit_rows_B),
    )


def next_token(token_ids: Sequence[int], vocabulary_size: int) -> int:
    """The token with the greatest logit after these, on every simulated chip."""
    tokens_T = np.asarray(token_ids, dtype=np.int32)
    total = marks_of(tokens_T, np.arange(len(tokens_T), dtype=np.int32)).sum(dtype=np.uint64)
    return int(_mixed(np.array([total], dtype=np.uint64))[0]) % vocabulary_size


def marks_of(token_ids_T: npt.NDArray[np.int32], positions_T: npt.NDArray[np.int32]) -> Marks:
    """What each (token, position) adds to its context's sum."""
    return _mixed((token_ids_T.astype(np.uint64) << np.uint64(32)) + positions_T.astype(np.uint64) + np.uint64(1))


def _mixed(values: Marks) -> Marks:
    """Each value's bits stirred.

    Source: SplitMix64, Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014, variant 13.
    """
    stirred = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    stirred = (stirred ^ (stirred >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Marks = stirred ^ (stirred >> np.uint64(31))
    return mixed


def _mix(first: int, second: int) -> int:
    value = (first * 0x9E3779B97F4A7C15 + second + 1) % 2**64
    return int(_mixed(np.array([value], dtype=np.uint64))[0])
