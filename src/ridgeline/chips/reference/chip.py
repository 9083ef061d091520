"""The reference chip: adopts weights lazily, allocates pages of NaN, calls the step as it is written.

Knows: numpy, the laws of a step. Does not know: decoders, families, requests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ridgeline.chips.reference.ops import Array, ReferenceOps, ReferenceWeight
from ridgeline.chips.reference.pages import ReferencePages
from ridgeline.ops.chip import ChipFacts, HostStep, PageLayout, StepFunction, TensorSource
from ridgeline.ops.step import PAGE_SLOTS, StepArrays, StepLimits

NOMINAL_BYTES_PER_SECOND = 10e9
NOMINAL_OPERATIONS_PER_SECOND = 50e9
"""About what numpy reached on two cores of a 2024 server; nothing should be decided by them."""


class ReferenceChip:
    """A chip whose every op is its definition. Holds: the weights that were used, as float32."""

    def __init__(self) -> None:
        self._ops = ReferenceOps()
        self._weights: list[ReferenceWeight] = []

    @property
    def name(self) -> str:
        """The word `reference`."""
        return "reference"

    def facts(self) -> ChipFacts:
        """Nominal figures: this chip is for being right."""
        return ChipFacts(
            name=self.name,
            description="numpy, the definition of every op",
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            bandwidth_bytes_per_second=NOMINAL_BYTES_PER_SECOND,
            operations_per_second={"fp32": NOMINAL_OPERATIONS_PER_SECOND},
            source="none",
            kv_formats=("f32", "bf16", "int8"),
        )

    def page_bytes(self, layout: PageLayout) -> int:
        """Bytes of a page: float32 whatever the format, since rounded values are kept as such."""
        return sum(2 * PAGE_SLOTS * num_heads * width * 4 for num_heads, width in layout.layers)

    def adopt(self, sources: Mapping[str, TensorSource], fingerprint: str) -> Mapping[str, ReferenceWeight]:
        """Weights that are read and dequantised when they are first used."""
        del fingerprint  # nothing is kept between runs
        adopted = {name: ReferenceWeight(source) for name, source in sources.items()}
        self._weights.extend(adopted.values())
        return adopted

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> ReferencePages:
        """Pages full of NaN."""
        del limits
        return ReferencePages.allocate(layout, num_pages)

    def compile(
        self, step: StepFunction[Array, ReferenceWeight, ReferencePages], pages: ReferencePages, limits: StepLimits
    ) -> ReferenceStep:
        """The step function itself, with the laws of a step checked before each call."""
        return ReferenceStep(self._ops, step, pages, limits)

    def close(self) -> None:
        """Drop the dequantised weights."""
        for weight in self._weights:
            weight.__dict__.pop("values", None)
        self._weights.clear()


class ReferenceStep:
    """A step function bound to the reference ops and to pages. Holds: the pages, and how long the last run took."""

    def __init__(
        self,
        ops: ReferenceOps,
        step: StepFunction[Array, ReferenceWeight, ReferencePages],
        pages: ReferencePages,
        limits: StepLimits,
    ) -> None:
        self._ops = ops
        self._step = step
        self._pages = pages
        self._limits = limits
        self._seconds = 0.0

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """logits_BV of one step."""
        check_laws(step, self._limits, num_slots=len(self._pages.keys[0]) if self._pages.keys else 0)
        start = time.perf_counter()
        arrays: StepArrays[Array] = StepArrays(
            **{name: np.asarray(getattr(step, name)) for name in StepArrays.__dataclass_fields__}
        )
        logits_BV, self._pages = self._step(self._ops, arrays, self._pages)
        self._seconds = time.perf_counter() - start
        return logits_BV.astype(np.float32, copy=False)

    def seconds(self) -> float:
        """Wall time of the last `run`."""
        return self._seconds


def check_laws(step: HostStep, limits: StepLimits, num_slots: int) -> None:
    """Assert everything that `StepArrays` promises; a chip may rely on it without looking."""
    starts_N1, lengths_N = step.query_starts_N1.astype(np.int64), step.context_lengths_N.astype(np.int64)
    num_tokens, num_sequences = len(step.token_ids_T), len(lengths_N)
    for name in StepArrays.__dataclass_fields__:
        assert getattr(step, name).dtype == np.int32, name
    assert 0 < num_tokens <= limits.max_tokens, (num_tokens, limits)
    assert num_sequences <= limits.max_sequences, (num_sequences, limits)
    assert len(step.logit_rows_B) <= limits.max_logit_rows, (len(step.logit_rows_B), limits)
    assert step.page_table_NP.shape[0] == num_sequences
    assert step.page_table_NP.shape[1] <= limits.max_pages_per_sequence, (step.page_table_NP.shape, limits)
    assert starts_N1[0] == 0 and starts_N1[-1] == num_tokens and (np.diff(starts_N1) > 0).all(), starts_N1
    sequences_T = np.repeat(np.arange(num_sequences), np.diff(starts_N1))
    assert (step.sequences_T == sequences_T).all()
    positions_T = lengths_N[sequences_T] - (starts_N1[1:][sequences_T] - np.arange(num_tokens))
    assert (step.positions_T == positions_T).all() and (positions_T >= 0).all()
    assert (lengths_N <= step.page_table_NP.shape[1] * PAGE_SLOTS).all(), lengths_N
    page_T = step.page_table_NP[sequences_T, positions_T // PAGE_SLOTS].astype(np.int64)
    assert (step.slots_T == page_T * PAGE_SLOTS + positions_T % PAGE_SLOTS).all()
    assert len(np.unique(step.slots_T)) == num_tokens and 0 <= step.slots_T.min() <= step.slots_T.max() < num_slots
    assert len(np.unique(step.places_N)) == num_sequences
    assert (step.places_N >= 0).all() and (step.places_N < limits.max_sequences).all()
    rows_B = step.logit_rows_B
    assert len(rows_B) == 0 or (rows_B.min() >= 0 and rows_B.max() < num_tokens and (np.diff(rows_B) > 0).all())
