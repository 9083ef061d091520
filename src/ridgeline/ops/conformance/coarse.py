"""Cases of the coarse ops: what a chip does at once must be what its default in `ComposedOps` says in fine ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ridgeline.ops.chip import StepFunction
from ridgeline.ops.composed import ComposedOps
from ridgeline.ops.conformance.attention import MIXED, Heads, attention_problem, looked_up
from ridgeline.ops.conformance.case import KV_TOLERANCE, Case, Problem, source, tolerance_of
from ridgeline.ops.conformance.fine import TABLE_ROWS, AnyOps, normal, problem_of, steps_of
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import StepArrays
from ridgeline.quant.formats import BY_NAME

# ComposedOps' texts call fine ops only, so they run on any chip's ops; Any, because those are of the chip's own types.
COMPOSED: Any = ComposedOps


def coarse_cases() -> Iterator[Case]:
    """Each coarse op against its default on the reference."""
    for formats in (
        ("F32",) * 3,
        ("Q4_K", "Q4_K", "Q6_K"),
        ("Q5_0", "Q8_0", "Q8_0"),
        ("BF16", "F16", "BF16"),
        ("Q4_1",) * 3,
    ):
        name = " ".join(formats)
        tolerance = max(tolerance_of(entry) for entry in formats)
        for has_bias in (False, True):
            yield Case(
                name=f"linears/{name}" + (" with biases" if has_bias else ""),
                build=partial(_linears, formats, has_bias, is_composed=False),
                truth=partial(_linears, formats, has_bias, is_composed=True),
                tolerance=tolerance,
            )
        kinds: tuple[Activation, ...] = ("silu", "gelu_tanh")
        for kind in kinds:
            yield Case(
                name=f"gated_mlp/{kind}/{name}",
                build=partial(_gated_mlp, formats, kind, is_composed=False),
                truth=partial(_gated_mlp, formats, kind, is_composed=True),
                # Two products, one after the other, and a product of their errors between.
                tolerance=2 * tolerance,
            )
    for kv_format, tolerance in KV_TOLERANCE.items():
        for heads in (Heads(), Heads(num_query_heads=9, num_kv_heads=3, window=66), Heads(softcap=8.0, head_width=128)):
            yield Case(
                name=f"store_and_attend/{kv_format}/{heads}",
                build=partial(_store_and_attend, heads, is_composed=False),
                truth=partial(_store_and_attend, heads, is_composed=True),
                tolerance=tolerance,
                kv_format=kv_format,
            )


def _width(formats: tuple[str, ...]) -> int:
    return 2 * max(64, *(BY_NAME[name].block_values for name in formats))


def _linears(formats: tuple[str, ...], has_bias: bool, *, is_composed: bool) -> Problem:
    width = _width(formats)
    rows = (96, 32, 32)
    weights = [source("x", normal(31, TABLE_ROWS, width))]
    for index, (format_name, num_rows) in enumerate(zip(formats, rows, strict=True)):
        weights.append(source(f"w{index}", normal(32 + index, num_rows, width, size=width**-0.5), format_name))
        if has_bias and index != 1:
            weights.append(source(f"b{index}", normal(40 + index, num_rows)))

    def body(ops: AnyOps, w: Mapping[str, Any], step: StepArrays[Any]) -> Any:
        x_TD = ops.embed(w["x"], step.token_ids_T)
        linears: Callable[..., Any] = partial(COMPOSED.linears, ops) if is_composed else ops.linears
        matrices, biases = tuple(w[f"w{k}"] for k in range(3)), tuple(w.get(f"b{k}") for k in range(3))
        y_0, y_1, y_2 = linears(x_TD, matrices, biases)
        # All three count in the answer.
        return ops.add(y_0, ops.linear(ops.multiply(y_1, y_2), w["spread"]))

    weights.append(source("spread", normal(50, 96, 32, size=32**-0.5)))
    return problem_of(body, *weights, steps=steps_of(51))


def _gated_mlp(formats: tuple[str, ...], kind: Activation, *, is_composed: bool) -> Problem:
    width = _width(formats)
    inner = 3 * width // 2 if width < 256 else width
    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    weights = [source("x", normal(61, TABLE_ROWS, width))]
    for index, (name, (num_rows, num_columns)) in enumerate(shapes.items()):
        values = normal(62 + index, num_rows, num_columns, size=num_columns**-0.5)
        weights.append(source(name, values, formats[index]))

    def body(ops: AnyOps, w: Mapping[str, Any], step: StepArrays[Any]) -> Any:
        gated_mlp = partial(COMPOSED.gated_mlp, ops) if is_composed else ops.gated_mlp
        return gated_mlp(ops.embed(w["x"], step.token_ids_T), w["gate"], w["up"], w["down"], kind)

    return problem_of(body, *weights, steps=steps_of(66))


def _store_and_attend(heads: Heads, *, is_composed: bool) -> Problem:
    problem = attention_problem(heads, MIXED)

    def bind(weights: Mapping[str, Any]) -> StepFunction[Any, Any, Any]:
        def step_function(ops: AnyOps, step: StepArrays[Any], pages: Any) -> tuple[Any, Any]:
            q_THC, k_TKC, v_TKC = looked_up(heads, ops, weights, step)
            run = partial(COMPOSED.store_and_attend, ops) if is_composed else ops.store_and_attend
            scale = heads.head_width**-0.5
            y_THC, pages = run(
                q_THC, k_TKC, v_TKC, pages, 0, step, scale=scale, window=heads.window, softcap=heads.softcap
            )
            return ops.take_rows(ops.merge_heads(y_THC), step.logit_rows_B), pages

        return step_function

    return Problem(
        weights=problem.weights,
        bind=bind,
        steps=problem.steps,
        kv_layers=problem.kv_layers,
        num_pages=problem.num_pages,
    )
