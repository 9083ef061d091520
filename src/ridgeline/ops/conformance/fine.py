"""Cases of the ops that have no pages: products with weights in every format, norms, elementwise ops, rope.

An op's input comes from an F32 table through `embed`, since a step brings nothing but indices.

Shape letters: T tokens, D width, F rows of a weight, V rows of a table, H heads, C head width, R turned width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.ops.chip import HostStep, StepFunction, TensorSource
from ridgeline.ops.conformance.case import (
    CLOSE,
    EXACT,
    Bind,
    Case,
    Problem,
    SamenessCase,
    source,
    tolerance_of,
)
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.protocol import Ops
from ridgeline.ops.step import PAGE_SLOTS, StepArrays
from ridgeline.quant.formats import FORMATS, Format

AnyOps = Ops[Any, Any, Any]
Body = Callable[[AnyOps, Mapping[str, Any], StepArrays[Any]], Any]
"""(ops, weights, step) -> y_TF; the rows asked for are taken afterwards."""

TABLE_ROWS = 37
TAILS = (1, 2, 3, 5, 8, 17, 33, 67)
"""Numbers of tokens around what kernels take at once."""


def normal(seed: int, *shape: int, size: float = 1.0) -> npt.NDArray[np.float32]:
    """Gaussian numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def one_sequence(token_ids: npt.NDArray[np.int32], *, start: int = 0, num_rows: int | None = None) -> HostStep:
    """A step of one sequence, with logits of its last `num_rows` tokens (all if None)."""
    end = start + len(token_ids)
    part = StepPart(
        token_ids=token_ids.tolist(),
        start=start,
        page_ids=range(-(-end // PAGE_SLOTS)),
        place=0,
        num_logit_rows=len(token_ids) if num_rows is None else num_rows,
    )
    return host_step([part])


def steps_of(seed: int, counts: tuple[int, ...] = TAILS, vocabulary: int = TABLE_ROWS) -> tuple[HostStep, ...]:
    """One step of each number of tokens, each from position 0, tokens at random."""
    generator = np.random.default_rng(seed)
    return tuple(one_sequence(generator.integers(0, vocabulary, count).astype(np.int32)) for count in counts)


def bind_body(body: Body) -> Bind:
    """The body as a step function that leaves the pages alone."""

    def bind(weights: Mapping[str, Any]) -> StepFunction[Any, Any, Any]:
        def step_function(ops: AnyOps, step: StepArrays[Any], pages: Any) -> tuple[Any, Any]:
            return ops.take_rows(body(ops, weights, step), step.logit_rows_B), pages

        return step_function

    return bind


def problem_of(body: Body, *weights: TensorSource, steps: tuple[HostStep, ...] | None = None) -> Problem:
    """A problem without pages (but the steps' own)."""
    return Problem(
        weights={weight.name: weight for weight in weights},
        bind=bind_body(body),
        steps=steps_of(5) if steps is None else steps,
        num_pages=64,
    )


def weight_cases() -> Iterator[Case]:
    """`embed` and `linear` in every format, with tails in rows, width and tokens."""
    for entry in FORMATS:
        for num_rows, num_blocks in ((96, 2), (67, 5), (7, 3), (1, 1)):
            width = num_blocks * max(32, entry.block_values)
            name = f"{entry.name}/{num_rows}x{width}"
            yield Case(
                name=f"linear/{name}",
                build=partial(_linear, entry, num_rows, width, has_bias=False),
                # One block gives one value: errors of single activations do not average out.
                tolerance=tolerance_of(entry.name) * (3 if num_rows == 1 else 1),
            )
        # Tables are looked up, not multiplied: a chip may keep them in bf16 at most.
        embed_tolerance = EXACT if entry.name == "F32" else tolerance_of("BF16")
        yield Case(name=f"embed/{entry.name}", build=partial(_embed, entry), tolerance=embed_tolerance)
    for format_name in ("F32", "Q8_0", "Q4_K"):
        entry = next(entry for entry in FORMATS if entry.name == format_name)
        yield Case(
            name=f"linear with bias/{format_name}",
            build=partial(_linear, entry, 40, 256, has_bias=True),
            tolerance=tolerance_of(format_name),
        )


def weight_sameness_cases() -> Iterator[SamenessCase]:
    """A row of a product does not depend on how many rows there are."""
    tokens = np.arange(33, dtype=np.int32) % TABLE_ROWS
    together = (one_sequence(tokens),)
    alone = tuple(one_sequence(tokens[index : index + 1]) for index in range(0, 33, 4))
    some = tuple(one_sequence(tokens[start:end]) for start, end in ((0, 2), (2, 5), (5, 12), (12, 33)))
    for entry in FORMATS:
        yield SamenessCase(
            name=f"rows alone or together/{entry.name}",
            first=partial(_linear, entry, 67, 512, has_bias=False, steps=together),
            first_rows=(*((0, index) for index in range(0, 33, 4)), *((0, index) for index in range(33))),
            second=partial(_linear, entry, 67, 512, has_bias=False, steps=(*alone, *some)),
            second_rows=(
                *((k, 0) for k in range(len(alone))),
                *((len(alone) + k, row) for k, count in enumerate((2, 3, 7, 21)) for row in range(count)),
            ),
            tolerance=tolerance_of(entry.name),
        )


def _linear(
    entry: Format, num_rows: int, width: int, *, has_bias: bool, steps: tuple[HostStep, ...] | None = None
) -> Problem:
    weights = [
        source("x", normal(1, TABLE_ROWS, width)),
        source("weight", normal(2, num_rows, width, size=width**-0.5), entry.name),
    ]
    if has_bias:
        weights.append(source("bias", normal(3, num_rows)))

    def body(ops: AnyOps, w: Mapping[str, Any], step: StepArrays[Any]) -> Any:
        return ops.linear(ops.embed(w["x"], step.token_ids_T), w["weight"], w.get("bias"))

    return problem_of(body, *weights, steps=steps)


def _embed(entry: Format) -> Problem:
    table = source("table", normal(4, TABLE_ROWS, 2 * max(32, entry.block_values)), entry.name)
    return problem_of(lambda ops, w, step: ops.embed(w["table"], step.token_ids_T), table)


def elementwise_cases() -> Iterator[Case]:
    """Everything else without pages."""
    for width in (32, 33, 100, 576):
        for name, of_two, tolerance in _BINARY:
            yield Case(name=f"{name}/{width}", build=partial(_on_two, of_two, width), tolerance=tolerance)
        for name, of_one, tolerance in _UNARY:
            yield Case(name=f"{name}/{width}", build=partial(_on_one, of_one, width), tolerance=tolerance)
        yield Case(name=f"rms_norm/{width}", build=partial(_rms_norm, width, 1), tolerance=CLOSE)
    for num_heads, head_width in ((1, 64), (9, 64), (14, 64), (4, 48), (3, 128), (2, 256)):
        name = f"{num_heads}x{head_width}"
        build = partial(_rms_norm, num_heads * head_width, num_heads)
        yield Case(name=f"rms_norm of heads/{name}", build=build, tolerance=CLOSE)
    for num_heads, head_width, turned in (
        (1, 32, 32),
        (9, 64, 64),
        (4, 96, 96),
        (2, 128, 32),
        (3, 80, 40),
        (1, 256, 256),
    ):
        # Angles of thousands of radians: a float32 cosine is off by the rounding of the angle.
        name = f"rope/{num_heads}x{head_width} turned {turned}"
        yield Case(name=name, build=partial(_rope, num_heads, head_width, turned), tolerance=1e-3)
    yield Case(name="take_rows", build=_take_rows, tolerance=EXACT)


_BINARY: tuple[tuple[str, Callable[[AnyOps, Any, Any], Any], float], ...] = (
    ("add", lambda ops, x, y: ops.add(x, y), EXACT),
    ("multiply", lambda ops, x, y: ops.multiply(x, y), EXACT),
)
_UNARY: tuple[tuple[str, Callable[[AnyOps, Any], Any], float], ...] = (
    ("scale", lambda ops, x: ops.scale(x, 0.3), EXACT),
    ("silu", lambda ops, x: ops.activate(ops.scale(x, 8.0), "silu"), CLOSE),
    ("gelu_tanh", lambda ops, x: ops.activate(ops.scale(x, 3.0), "gelu_tanh"), CLOSE),
    ("softcap", lambda ops, x: ops.softcap(ops.scale(x, 20.0), 30.0), CLOSE),
    ("silu of large values", lambda ops, x: ops.activate(ops.scale(x, 200.0), "silu"), CLOSE),
    ("gelu of large values", lambda ops, x: ops.activate(ops.scale(x, 200.0), "gelu_tanh"), CLOSE),
    ("heads and back", lambda ops, x: ops.merge_heads(ops.heads(x, 1)), EXACT),
)


def _on_one(op: Callable[[AnyOps, Any], Any], width: int) -> Problem:
    table = source("x", normal(6, TABLE_ROWS, width))
    return problem_of(lambda ops, w, step: op(ops, ops.embed(w["x"], step.token_ids_T)), table)


def _on_two(op: Callable[[AnyOps, Any, Any], Any], width: int) -> Problem:
    tables = source("x", normal(7, TABLE_ROWS, width)), source("y", normal(8, TABLE_ROWS, width))

    def body(ops: AnyOps, w: Mapping[str, Any], step: StepArrays[Any]) -> Any:
        return op(ops, ops.embed(w["x"], step.token_ids_T), ops.embed(w["y"], step.token_ids_T))

    return problem_of(body, *tables)


def _rms_norm(width: int, num_heads: int) -> Problem:
    # Rows of very different sizes: the mean square must not be taken over more than its own row.
    values = normal(9, TABLE_ROWS, width) * np.logspace(-3, 3, TABLE_ROWS, dtype=np.float32)[:, None]
    weights = source("x", values), source("norm", normal(10, width // num_heads))

    def body(ops: AnyOps, w: Mapping[str, Any], step: StepArrays[Any]) -> Any:
        x_TD = ops.embed(w["x"], step.token_ids_T)
        if num_heads == 1:
            return ops.rms_norm(x_TD, w["norm"], 1e-6)
        return ops.merge_heads(ops.rms_norm(ops.heads(x_TD, num_heads), w["norm"], 1e-6))

    return problem_of(body, *weights)


def _rope(num_heads: int, head_width: int, turned: int) -> Problem:
    frequencies = (10000.0 ** -(np.arange(turned // 2) / (turned // 2))).astype(np.float32)
    weights = source("x", normal(11, TABLE_ROWS, num_heads * head_width)), source("frequencies", frequencies)

    def body(ops: AnyOps, w: Mapping[str, Any], step: StepArrays[Any]) -> Any:
        angles = ops.angles(step.positions_T, w["frequencies"], 0.9)
        return ops.merge_heads(ops.rope(ops.heads(ops.embed(w["x"], step.token_ids_T), num_heads), angles))

    tokens = np.arange(17, dtype=np.int32)
    return problem_of(
        body, *weights, steps=tuple(one_sequence(tokens, start=start) for start in (0, 1, 63, 2000, 4000))
    )


def _take_rows() -> Problem:
    table = source("x", normal(12, TABLE_ROWS, 64))
    tokens = np.arange(20, dtype=np.int32)
    parts = [
        StepPart(token_ids=tokens[:7].tolist(), start=0, page_ids=[3], place=0, num_logit_rows=1),
        StepPart(token_ids=tokens[7:8].tolist(), start=70, page_ids=[5, 1], place=2, num_logit_rows=0),
        StepPart(token_ids=tokens[8:].tolist(), start=2, page_ids=[0], place=1, num_logit_rows=4),
    ]
    no_rows = one_sequence(tokens, num_rows=0)
    steps = (host_step(parts), one_sequence(tokens, num_rows=1), no_rows)
    return problem_of(lambda ops, w, step: ops.embed(w["x"], step.token_ids_T), table, steps=steps)
