"""A case of the suite: what is run, and how far the answer may be from the reference's.

Knows: the chip contract. Does not know: any chip, any model.

How far: the root mean square of a row's difference, over that of the row or of the whole answer, whichever is larger
(a row of one value may happen to be next to 0). Chips may multiply quantised weights in
int8, and 16-bit weights in bf16, so what is allowed depends on the formats that take part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.ops.chip import AnyChip, HostStep, KvFormat, PageLayout, StepFunction, TensorSource
from ridgeline.ops.step import StepLimits
from ridgeline.quant.formats import BY_NAME
from ridgeline.quant.reference import quantize
from ridgeline.quant.tensor import HostTensor

Logits = npt.NDArray[np.float32]
Bind = Callable[[Mapping[str, Any]], StepFunction[Any, Any, Any]]
"""From adopted weights to a step function; Any, because it is called with every chip's own types."""

EXACT = 2e-6
"""float32 results whose sums have one term: a rounding or two apart."""
CLOSE = 2e-5
"""float32 results with sums or transcendental functions."""
HALF = 1e-2
"""bfloat16 has 8 bits: half a unit is 2e-3, and a chip may round weights, activations and results."""
INTEGER = 1e-2
"""int8 activations in groups of 32 measure 0.007 on rows of Gaussian weights, int8 keys and values 0.004."""


def tolerance_of(format_name: str) -> float:
    """What products with weights of this format are allowed."""
    if format_name == "F32":
        return CLOSE
    return INTEGER if BY_NAME[format_name].is_quantised else HALF


KV_TOLERANCE: Mapping[KvFormat, float] = {"f32": CLOSE, "bf16": HALF, "int8": INTEGER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What one case runs: a step function over a few weights, and steps on pages that start out undefined."""

    weights: Mapping[str, TensorSource]
    bind: Bind
    steps: tuple[HostStep, ...]
    kv_layers: tuple[tuple[int, int], ...] = ((1, 32),)
    num_pages: int = 1
    limits: StepLimits = field(
        default_factory=lambda: StepLimits(
            max_tokens=256, max_sequences=8, max_logit_rows=256, max_pages_per_sequence=64
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A question to a chip. The reference is asked `truth` where that is another text than the chip is given."""

    name: str
    build: Callable[[], Problem]
    tolerance: float
    kv_format: KvFormat | None = None
    """None: any that the chip has, for keys and values play no part."""
    truth: Callable[[], Problem] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamenessCase:
    """Two ways to run the same tokens; the rows that `rows` picks of all logits must be the same."""

    name: str
    first: Callable[[], Problem]
    first_rows: tuple[tuple[int, int], ...]
    """(step, row) pairs."""
    second: Callable[[], Problem]
    second_rows: tuple[tuple[int, int], ...]
    tolerance: float
    kv_format: KvFormat | None = None


def source(name: str, values: npt.NDArray[np.float32], format_name: str = "F32") -> TensorSource:
    """A weight made of these values, in a format."""
    entry = BY_NAME[format_name]
    data = quantize(values, entry)
    tensor = HostTensor(name=name, shape=values.shape, format=entry, data=data)
    return TensorSource(name=name, shape=values.shape, format_name=format_name, read=lambda: tensor)


def run(chip: AnyChip, problem: Problem, kv_format: KvFormat, name: str) -> list[Logits]:
    """The logits of each step, copied."""
    weights = chip.adopt(problem.weights, f"conformance {name}")
    layout = PageLayout(layers=problem.kv_layers, format=kv_format)
    pages = chip.allocate_pages(layout, problem.num_pages, problem.limits)
    compiled = chip.compile(problem.bind(weights), pages, problem.limits)
    return [np.array(compiled.run(step), dtype=np.float32, copy=True) for step in problem.steps]


def is_supported(chip: AnyChip, kv_format: KvFormat | None) -> bool:
    """Whether the chip keeps keys and values in this format."""
    return kv_format is None or kv_format in chip.facts().kv_formats


def check(chip: AnyChip, reference: AnyChip, case: Case) -> float:
    """The largest error of any row; raises AssertionError that says where it is too large."""
    kv_format = case.kv_format or chip.facts().kv_formats[0]
    found = run(chip, case.build(), kv_format, case.name)
    expected = run(reference, (case.truth or case.build)(), kv_format, case.name)
    for step, (found_BV, expected_BV) in enumerate(zip(found, expected, strict=True)):
        if found_BV.shape != expected_BV.shape:
            raise AssertionError(f"{case.name}, step {step}: shape {found_BV.shape}, expected {expected_BV.shape}")
    labels = [f"step {step}, row {row}" for step, logits in enumerate(expected) for row in range(len(logits))]
    return _compare(case.name, labels, np.concatenate(found), np.concatenate(expected), case.tolerance)


def check_same(chip: AnyChip, case: SamenessCase, *, is_bit_exact: bool) -> float:
    """The largest difference of the two ways; AssertionError unless it is 0, or small if not `is_bit_exact`."""
    kv_format = case.kv_format or chip.facts().kv_formats[0]
    first = _picked(run(chip, case.first(), kv_format, f"{case.name} first"), case.first_rows)
    second = _picked(run(chip, case.second(), kv_format, f"{case.name} second"), case.second_rows)
    labels = [f"step {step}, row {row}, of the second way" for step, row in case.second_rows]
    return _compare(case.name, labels, second, first, 0.0 if is_bit_exact else case.tolerance)


def _picked(logits: list[Logits], rows: tuple[tuple[int, int], ...]) -> Logits:
    return np.stack([logits[step][row] for step, row in rows])


def _compare(name: str, labels: list[str], found_BV: Logits, expected_BV: Logits, tolerance: float) -> float:
    if not np.isfinite(expected_BV).all():
        raise AssertionError(f"{name}: what it is held against is not finite")
    squares_BV = expected_BV.astype(np.float64) ** 2
    size_B = np.sqrt(np.maximum(squares_BV.mean(axis=1), squares_BV.mean())) + 1e-30
    error_B = np.sqrt(np.mean((found_BV.astype(np.float64) - expected_BV) ** 2, axis=1)) / size_B
    worst = int(np.argmax(np.where(np.isnan(error_B), np.inf, error_B)))
    if not error_B[worst] <= tolerance:
        place = int(np.argmax(np.nan_to_num(np.abs(found_BV[worst] - expected_BV[worst]), nan=np.inf)))
        raise AssertionError(
            f"{name}: {labels[worst]} is off by {error_B[worst]:.2e} of its size, allowed are {tolerance:.2e}; "
            f"most at {place}: {found_BV[worst, place]} not {expected_BV[worst, place]}"
        )
    return float(error_B[worst])
