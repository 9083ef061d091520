"""A decoder recorded, fused, laid out, and handed to the kernels as one plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.chips.cpu import _native
from ridgeline.chips.cpu.fusion import prepared
from ridgeline.chips.cpu.pages import CpuPages
from ridgeline.chips.cpu.plan import RecordWriter, lay_out, max_rows
from ridgeline.chips.cpu.recorder import Node, RecordingOps, StepArray, Symbol, step_symbols
from ridgeline.chips.cpu.weights import CpuWeight
from ridgeline.errors import ChipError
from ridgeline.ops.chip import HostStep, StepFunction
from ridgeline.ops.step import StepLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTime:
    """What one record took, summed over steps."""

    kind: str
    """Such as "linears"."""
    weight_bytes: int
    """Bytes of the matrices that it reads."""
    weight_formats: tuple[int, ...]
    busy_seconds: tuple[float, ...]
    """Of each thread."""
    wait_seconds: tuple[float, ...]
    """Of each thread, at the barrier before the record."""

    @property
    def seconds(self) -> float:
        """What the record took of the step, waiting for it included: the mean over threads."""
        return sum(self.busy_seconds + self.wait_seconds) / len(self.busy_seconds)


class CpuCompiledStep:
    """A step that is one native call. Holds: the plan, its arena, what its addresses point into; the last step."""

    def __init__(
        self,
        pool: _native.ThreadPool,
        step: StepFunction[Symbol, CpuWeight, CpuPages],
        pages: CpuPages,
        limits: StepLimits,
        *,
        fuse: bool,
    ) -> None:
        ops = RecordingOps(keeps_coarse=fuse)
        result, self._pages = step(ops, step_symbols(), pages)
        value = result.floats()
        self._nodes = prepared(ops.nodes, value, fuse=fuse)
        layout = lay_out(self._nodes, value, limits)
        writer = RecordWriter(layout, pages)
        self._rows = value.rows
        try:
            self._plan = _native.Plan(
                pool,
                writer.records(self._nodes),
                max_tokens=limits.max_tokens,
                max_sequences=limits.max_sequences,
                max_logit_rows=limits.max_logit_rows,
                max_pages_per_sequence=limits.max_pages_per_sequence,
                num_pages=pages.num_pages,
                arena_bytes=layout.arena_bytes,
            )
        except MemoryError:
            raise ChipError(f"the system gave no memory for a step of {layout.arena_bytes} bytes") from None
        place = writer.place(value)
        self._values = self._plan.value(place, max_rows(value.rows, limits), value.width)
        if value.rows is StepArray.LOGIT_ROWS:
            self._plan.choose_from(place, value.width)
        self._bound_step: HostStep | None = None
        self._bound: _native.BoundStep | None = None

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """Logits (or whatever the step returns), valid until the next `run`. Raises ChipError for a lawless step."""
        try:
            self._plan.run(self._bind(step))
        except ValueError as error:
            raise ChipError(str(error)) from error
        return self._values[: self._num_rows(step)]

    def run_and_choose(
        self, step: HostStep, choices_B: bytes, adjustments: bytes
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """See `ChoosingStep`; the tokens are chosen in the same native call."""
        try:
            tokens_B = self._plan.run_and_choose(self._bind(step), choices_B, adjustments)
        except ValueError as error:
            raise ChipError(str(error)) from error
        return self._values[: len(tokens_B)], tokens_B

    def _bind(self, step: HostStep) -> _native.BoundStep:
        """The step as the kernels see it; looked at only once where the same arrays come again."""
        if step is not self._bound_step:
            self._bound = _native.BoundStep(
                step.token_ids_T,
                step.positions_T,
                step.slots_T,
                step.sequences_T,
                step.query_starts_N1,
                step.context_lengths_N,
                step.page_table_NP,
                step.places_N,
                step.logit_rows_B,
            )
            self._bound_step = step
        assert self._bound is not None
        return self._bound

    def _num_rows(self, step: HostStep) -> int:
        match self._rows:
            case StepArray.LOGIT_ROWS:
                return len(step.logit_rows_B)
            case StepArray.CONTEXT_LENGTHS:
                return len(step.context_lengths_N)
            case StepArray.QUERY_STARTS:
                return len(step.query_starts_N1)
            case _:
                return len(step.token_ids_T)

    def seconds(self) -> float:
        """How long the last `run` took inside the kernels."""
        return float(self._plan.seconds())

    def memory_bytes(self) -> int:
        """Most memory that the plan's own arrays may take."""
        return int(self._plan.memory_bytes())

    def set_timing(self, is_on: bool) -> None:
        """Start (from zero) or stop adding up what each record takes."""
        self._plan.set_timing(is_on)

    def record_times(self) -> list[RecordTime]:
        """What each record took since timing was switched on."""
        threads = range(self._plan.num_threads())
        busy = zip(*(self._plan.busy_seconds(thread) for thread in threads), strict=True)
        wait = zip(*(self._plan.wait_seconds(thread) for thread in threads), strict=True)
        return [
            RecordTime(
                kind=node.kind.name.lower(),
                weight_bytes=_weight_bytes(node),
                weight_formats=tuple(product.matrix.format for product in node.products),
                busy_seconds=busy_seconds,
                wait_seconds=wait_seconds,
            )
            for node, busy_seconds, wait_seconds in zip(self._nodes, busy, wait, strict=True)
        ]


def _weight_bytes(node: Node) -> int:
    matrices = [product.matrix for product in node.products]
    return sum(_native.packed_bytes(matrix.format, matrix.rows, matrix.width) for matrix in matrices)
