"""The chip that computes nothing: it adds up what a decoder costs.

Arrays are symbols that know their shape (which also checks the decoder's), weights are shapes and formats. Running a
decoder over it once gives a `StepCost`, so the cost model is the decoder itself and cannot drift from it.

Knows: the ops. Does not know: models, real arrays, how fast anything is.

What is counted as an operation: a sum, product, quotient, comparison, root, exponential or tangent is one each.
What a coarse op keeps to itself is not moved: a chip at its roofline fuses it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ridgeline.ops.chip import ChipFacts, HostStep, KvFormat, PageLayout, StepFunction, TensorSource
from ridgeline.ops.composed import ComposedOps
from ridgeline.ops.cost import (
    ANY_LOGIT_ROWS,
    ANY_TOKENS,
    LOGIT_ROWS,
    NUM_PLAIN_FEATURES,
    TOKENS,
    CostTerm,
    LinearForm,
    OpKind,
    StepCost,
    kv_token_bytes,
    page_bytes,
)
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import StepArrays, StepLimits
from ridgeline.quant.formats import BY_NAME, Format

__all__ = ["CountedPages", "CountedStep", "CountedWeight", "CountingChip", "CountingOps", "StepCost", "Symbol"]

Rows = Literal["tokens", "logit_rows"]

ACTIVATION_BYTES = 4
_ACTIVATE_OPERATIONS: Mapping[Activation, int] = {"silu": 4, "gelu_tanh": 9}
_ROW_FEATURE: Mapping[Rows, int] = {"tokens": TOKENS, "logit_rows": LOGIT_ROWS}
_ANY_FEATURE: Mapping[Rows, int] = {"tokens": ANY_TOKENS, "logit_rows": ANY_LOGIT_ROWS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """An array's shape: rows whose number a step decides, heads (1 for x_TD) and width, which the model decides."""

    rows: Rows
    width: int
    num_heads: int = 1

    @property
    def row_values(self) -> int:
        """Values of one row."""
        return self.num_heads * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedWeight:
    """A weight's shape and format; its bytes are never read."""

    name: str
    shape: tuple[int, ...]
    format: Format

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        rows = 1
        for extent in self.shape[:-1]:
            rows *= extent
        return rows * self.format.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedPages:
    """What pages are made of."""

    layout: PageLayout


_Key = tuple[OpKind, str, str]
_Form = defaultdict[int, int]


class CountingOps(ComposedOps[Symbol, CountedWeight, CountedPages]):
    """Ops that add to a list of terms.

    Holds: coefficients by (kind, format, what it is bound by), and the windows in the order that they were met; changed
    by every op.
    """

    def __init__(self) -> None:
        self._operations: dict[_Key, _Form] = {}
        self._bytes: dict[_Key, _Form] = {}
        self._windows: list[int | None] = []

    def cost(self) -> StepCost:
        """What was counted so far."""
        terms = tuple(
            CostTerm(kind=key[0], format_name=key[1], operations=_form(operations), bytes=_form(self._bytes[key]))
            for key, operations in self._operations.items()
        )
        return StepCost(windows=tuple(self._windows), terms=terms)

    def embed(self, table: CountedWeight, token_ids_T: Symbol) -> Symbol:
        """Reads the rows that are asked for, not the table."""
        width = table.shape[1]
        moved = table.format.row_bytes(width) + ACTIVATION_BYTES * width
        self._count("embed", table.format.name, token_ids_T.rows, bytes_per_row=moved)
        return Symbol(rows=token_ids_T.rows, width=width)

    def linear(self, x_TD: Symbol, weight: CountedWeight, bias: CountedWeight | None = None) -> Symbol:
        """Two operations a weight and row; the weight is read once."""
        self._product(x_TD, weight, bias, moved_values=x_TD.width + weight.shape[0])
        return Symbol(rows=x_TD.rows, width=weight.shape[0])

    def linears(
        self, x_TD: Symbol, weights: Sequence[CountedWeight], biases: Sequence[CountedWeight | None]
    ) -> tuple[Symbol, ...]:
        """X is read once."""
        for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self._product(x_TD, weight, bias, moved_values=weight.shape[0] + (x_TD.width if index == 0 else 0))
        return tuple(Symbol(rows=x_TD.rows, width=weight.shape[0]) for weight in weights)

    def gated_mlp(
        self, x_TD: Symbol, gate: CountedWeight, up: CountedWeight, down: CountedWeight, kind: Activation
    ) -> Symbol:
        """The gated values stay inside."""
        assert gate.shape == up.shape, (gate, up)
        assert down.shape[1] == gate.shape[0], (down, gate)
        self._product(x_TD, gate, None, moved_values=x_TD.width)
        self._product(x_TD, up, None, moved_values=0)
        inner = Symbol(rows=x_TD.rows, width=gate.shape[0])
        self._elementwise(inner, operations_per_value=_ACTIVATE_OPERATIONS[kind] + 1, moved_values=0)
        self._product(inner, down, None, moved_values=down.shape[0])
        return Symbol(rows=x_TD.rows, width=down.shape[0])

    def add(self, x: Symbol, y: Symbol) -> Symbol:
        """One operation a value."""
        assert x == y, (x, y)
        return self._elementwise(x, operations_per_value=1, moved_values=3 * x.row_values)

    def multiply(self, x: Symbol, y: Symbol) -> Symbol:
        """One operation a value."""
        return self.add(x, y)

    def scale(self, x: Symbol, factor: float) -> Symbol:
        """One operation a value."""
        return self._elementwise(x, operations_per_value=1, moved_values=2 * x.row_values)

    def rms_norm(self, x: Symbol, weight: CountedWeight, epsilon: float) -> Symbol:
        """Square, sum, two products a value."""
        assert weight.shape == (x.width,), (weight, x)
        self._count("elementwise", "F32", x.rows, bytes_once=weight.num_bytes)
        return self._elementwise(x, operations_per_value=4, moved_values=2 * x.row_values)

    def activate(self, x: Symbol, kind: Activation) -> Symbol:
        """SiLU: exponential, sum, quotient, product. GELU: nine."""
        return self._elementwise(x, operations_per_value=_ACTIVATE_OPERATIONS[kind], moved_values=2 * x.row_values)

    def softcap(self, x: Symbol, cap: float) -> Symbol:
        """Quotient, tangent, product a value."""
        return self._elementwise(x, operations_per_value=3, moved_values=2 * x.row_values)

    def heads(self, x_TD: Symbol, num_heads: int) -> Symbol:
        """Free: the same values."""
        assert x_TD.num_heads == 1, x_TD
        assert x_TD.width % num_heads == 0, (x_TD, num_heads)
        return Symbol(rows=x_TD.rows, num_heads=num_heads, width=x_TD.width // num_heads)

    def merge_heads(self, x_THC: Symbol) -> Symbol:
        """Free: the same values."""
        return Symbol(rows=x_THC.rows, width=x_THC.row_values)

    def angles(self, positions_T: Symbol, frequencies: CountedWeight, magnitude: float) -> Symbol:
        """Product, cosine, sine and their magnitude a pair."""
        pairs = frequencies.shape[0]
        self._count(
            "elementwise", "F32", positions_T.rows, 5 * pairs, 2 * pairs * ACTIVATION_BYTES, frequencies.num_bytes
        )
        return Symbol(rows=positions_T.rows, width=2 * pairs)

    def rope(self, x_THC: Symbol, angles: Symbol) -> Symbol:
        """Four products and two sums a pair."""
        assert angles.width <= x_THC.width, (angles, x_THC)
        moved = ACTIVATION_BYTES * (2 * x_THC.row_values + angles.width)
        self._count("elementwise", "F32", x_THC.rows, 3 * angles.width * x_THC.num_heads, moved)
        return x_THC

    def store_kv(
        self, pages: CountedPages, layer: int, k_TKC: Symbol, v_TKC: Symbol, step: StepArrays[Symbol]
    ) -> CountedPages:
        """Keys and values written once."""
        assert k_TKC == v_TKC, (k_TKC, v_TKC)
        assert (k_TKC.num_heads, k_TKC.width) == pages.layout.layers[layer], (k_TKC, pages.layout.layers[layer])
        kv_format = pages.layout.format
        moved = 2 * ACTIVATION_BYTES * k_TKC.row_values + kv_token_bytes(k_TKC.num_heads, k_TKC.width, kv_format)
        self._count("store_kv", kv_format, k_TKC.rows, bytes_per_row=moved)
        return pages

    def attend(
        self,
        q_THC: Symbol,
        pages: CountedPages,
        layer: int,
        step: StepArrays[Symbol],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Symbol:
        """For a pair and query head: two products of head width, and scale, greatest, exponential, sum.

        Keys and values are read once a sequence and kv head, by all query heads and all of its new tokens.
        """
        num_kv_heads, head_width = pages.layout.layers[layer]
        assert q_THC.width == head_width, (q_THC, pages.layout.layers[layer])
        assert q_THC.num_heads % num_kv_heads == 0, (q_THC, pages.layout.layers[layer])
        if window not in self._windows:
            self._windows.append(window)
        pairs = NUM_PLAIN_FEATURES + 2 * self._windows.index(window)
        key = self._key("attend", pages.layout.format, f"window {window}")
        pair_operations = 4 * head_width + 4 + (0 if softcap is None else 3)
        self._operations[key][pairs] += q_THC.num_heads * pair_operations
        self._bytes[key][pairs + 1] += kv_token_bytes(num_kv_heads, head_width, pages.layout.format)
        self._bytes[key][TOKENS] += 2 * ACTIVATION_BYTES * q_THC.row_values
        return q_THC

    def take_rows(self, x_TD: Symbol, rows_B: Symbol) -> Symbol:
        """Read and written once."""
        taken = Symbol(rows=rows_B.rows, num_heads=x_TD.num_heads, width=x_TD.width)
        return self._elementwise(taken, operations_per_value=0, moved_values=2 * taken.row_values)

    def _product(self, x: Symbol, weight: CountedWeight, bias: CountedWeight | None, *, moved_values: int) -> None:
        num_rows, width = weight.shape
        assert (x.num_heads, x.width) == (1, width), (x, weight)
        assert bias is None or bias.shape == (num_rows,), (bias, weight)
        self._count(
            "linear",
            weight.format.name,
            x.rows,
            operations_per_row=2 * num_rows * width + (0 if bias is None else num_rows),
            bytes_per_row=ACTIVATION_BYTES * moved_values,
            bytes_once=weight.num_bytes + (0 if bias is None else bias.num_bytes),
        )

    def _elementwise(self, x: Symbol, *, operations_per_value: int, moved_values: int) -> Symbol:
        self._count("elementwise", "F32", x.rows, operations_per_value * x.row_values, ACTIVATION_BYTES * moved_values)
        return x

    def _count(
        self,
        kind: OpKind,
        format_name: str,
        rows: Rows,
        operations_per_row: int = 0,
        bytes_per_row: int = 0,
        bytes_once: int = 0,
    ) -> None:
        # The output matrix meets few rows and the layers' many: one may be bound by bytes while the others are not.
        key = self._key(kind, format_name, rows)
        self._operations[key][_ROW_FEATURE[rows]] += operations_per_row
        self._bytes[key][_ROW_FEATURE[rows]] += bytes_per_row
        self._bytes[key][_ANY_FEATURE[rows]] += bytes_once

    def _key(self, kind: OpKind, format_name: str, bound: str) -> _Key:
        key = (kind, format_name, bound)
        self._operations.setdefault(key, defaultdict(int))
        self._bytes.setdefault(key, defaultdict(int))
        return key


def _form(coefficients: Mapping[int, int]) -> LinearForm:
    return tuple((place, coefficient) for place, coefficient in sorted(coefficients.items()) if coefficient)


class CountedStep:
    """A counted decoder: its cost, and logits that are all zero.

    Holds: nothing that changes.
    """

    def __init__(self, cost: StepCost, vocabulary_size: int) -> None:
        self.cost = cost
        self.vocabulary_size = vocabulary_size

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """Zeros."""
        return np.zeros((len(step.logit_rows_B), self.vocabulary_size), dtype=np.float32)

    def seconds(self) -> float:
        """Nothing takes no time."""
        return 0.0


class CountingChip:
    """Counts a decoder: `compile(step, pages, limits).cost`."""

    name = "counting"

    def facts(self) -> ChipFacts:
        """None that mean anything: it is endlessly fast."""
        formats: tuple[KvFormat, ...] = ("bf16", "f32", "int8")
        return ChipFacts(
            name=self.name,
            description="counts operations and bytes, computes nothing",
            memory_bytes=1 << 62,
            bandwidth_bytes_per_second=float("inf"),
            operations_per_second={"fp32": float("inf")},
            source="none",
            kv_formats=formats,
        )

    def page_bytes(self, layout: PageLayout) -> int:
        """Keys, values and their scales."""
        return page_bytes(layout)

    def adopt(self, sources: Mapping[str, TensorSource], fingerprint: str) -> dict[str, CountedWeight]:
        """Shapes and formats; nothing is read."""
        return {
            name: CountedWeight(name=name, shape=source.shape, format=BY_NAME[source.format_name])
            for name, source in sources.items()
        }

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> CountedPages:
        """No room is needed."""
        return CountedPages(layout=layout)

    def compile(
        self, step: StepFunction[Symbol, CountedWeight, CountedPages], pages: CountedPages, limits: StepLimits
    ) -> CountedStep:
        """Run `step` once over symbols."""
        ops = CountingOps()
        logits_BV, _ = step(ops, _symbols(), pages)
        return CountedStep(ops.cost(), logits_BV.width)

    def close(self) -> None:
        """Nothing is held."""


def _symbols() -> StepArrays[Symbol]:
    tokens = Symbol(rows="tokens", width=1)
    # Arrays over sequences are never computed with, only passed on to `attend`: their rows do not matter.
    return StepArrays(
        token_ids_T=tokens,
        positions_T=tokens,
        slots_T=tokens,
        sequences_T=tokens,
        query_starts_N1=tokens,
        context_lengths_N=tokens,
        page_table_NP=tokens,
        places_N=tokens,
        logit_rows_B=Symbol(rows="logit_rows", width=1),
    )
