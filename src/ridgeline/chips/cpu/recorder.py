"""Recording: the decoder runs once over symbols, and what it asked for becomes a list of nodes.

Knows: the ops, shapes of values. Does not know: where values will lie, which nodes will be made one, threads.

A value has a row for each element of one of the step's arrays (each token, each logit row, ...) and a width. `heads`
and `merge_heads` change how a value is looked at, never the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from ridgeline.chips.cpu.pages import CpuPages
from ridgeline.chips.cpu.weights import CpuMatrix, CpuVector, CpuWeight
from ridgeline.ops.composed import ComposedOps
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import StepArrays


class OpKind(IntEnum):
    """What a record does; the numbers are those of `Op` in kernels/plan.h."""

    EMBED = 0
    ADD = 1
    MULTIPLY = 2
    SCALE = 3
    RMS_NORM = 4
    ACTIVATE = 5
    SOFTCAP = 6
    ANGLES = 7
    ROPE = 8
    TAKE_ROWS = 9
    PREPARE = 10
    STORE_KV = 11
    STORE_CODES = 12
    LINEARS = 13
    GATED = 14
    ATTEND = 15

    @property
    def is_row_by_row(self) -> bool:
        """Whether threads share out its rows, each always the same ones."""
        return self <= OpKind.STORE_KV


class StepArray(IntEnum):
    """The arrays of a step; the numbers are those of kernels/plan.h."""

    TOKEN_IDS = 0
    POSITIONS = 1
    SLOTS = 2
    SEQUENCES = 3
    QUERY_STARTS = 4
    CONTEXT_LENGTHS = 5
    PLACES = 6
    LOGIT_ROWS = 7

    @property
    def rows(self) -> StepArray:
        """The array that stands for all arrays of as many elements."""
        if self in (StepArray.POSITIONS, StepArray.SLOTS, StepArray.SEQUENCES):
            return StepArray.TOKEN_IDS
        return StepArray.CONTEXT_LENGTHS if self is StepArray.PLACES else self


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A float32 array that some node makes: a row for each element of `rows`."""

    rows: StepArray
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """What the decoder holds for an array: a value seen as `num_heads` heads, or one of the step's index arrays."""

    value: Value | None
    num_heads: int = 1
    step_array: StepArray | None = None

    def floats(self) -> Value:
        """The value; an index array has none."""
        assert self.value is not None, f"an op on floats was given the indices {self.step_array!r}"
        return self.value

    def indices(self) -> StepArray:
        """Which of the step's arrays this is."""
        assert self.step_array is not None, "an op that takes indices was given floats"
        return self.step_array


@dataclass(slots=True, eq=False)
class Product:
    """One matrix of a LINEARS or GATED node."""

    x: Value
    matrix: CpuMatrix
    output: Value
    bias: CpuVector | None = None
    is_added_to: Value | None = None
    """The value that the product is added to in place; `output` then lies where it lay."""


@dataclass(slots=True, eq=False)
class Node:
    """One op. Which fields count depends on `kind`; see `Record` in kernels/plan.h."""

    kind: OpKind
    rows: StepArray
    inputs: list[Value] = field(default_factory=list)
    output: Value | None = None
    products: list[Product] = field(default_factory=list)
    table: CpuMatrix | None = None
    index: StepArray = StepArray.TOKEN_IDS
    vector: CpuVector | None = None
    num_heads: int = 1
    factor: float = 1.0
    softcap: float = 0.0
    window: int = 0
    activation: Activation = "silu"
    layer: int = 0
    forms: tuple[int, ...] = ()
    """PREPARE, and GATED and ATTEND where they prepare their output: the forms that the products which follow read."""
    piece_width: int = 0
    """ATTEND: how many floats of a row are written at once: the heads of one kv head."""

    def reads(self) -> list[Value]:
        """Every value that this node looks at, those that it adds to included."""
        added = [product.is_added_to for product in self.products if product.is_added_to is not None]
        return [*self.inputs, *(product.x for product in self.products), *added]

    def writes(self) -> list[Value]:
        """Every value that this node makes."""
        if self.kind is OpKind.GATED:
            return [self.products[0].output]
        made = [product.output for product in self.products]
        return made if self.output is None else [*made, self.output]

    def writes_floats(self) -> bool:
        """Whether what it makes lies in memory as floats, and not in prepared forms alone."""
        return not self.forms or self.kind is OpKind.ATTEND


class RecordingOps(ComposedOps[Symbol, CpuWeight, CpuPages]):
    """Ops over symbols. Holds: the nodes so far. With `keeps_coarse` false, coarse ops are recorded as fine ones."""

    def __init__(self, *, keeps_coarse: bool = True) -> None:
        self.nodes: list[Node] = []
        self._keeps_coarse = keeps_coarse

    def _record(self, node: Node, num_heads: int = 1) -> Symbol:
        self.nodes.append(node)
        return Symbol(node.output, num_heads)

    def _elementwise(
        self, kind: OpKind, *symbols: Symbol, factor: float = 1.0, activation: Activation = "silu"
    ) -> Symbol:
        values = [symbol.floats() for symbol in symbols]
        first = values[0]
        assert all((value.rows, value.width) == (first.rows, first.width) for value in values), (kind, values)
        output = Value(first.rows, first.width)
        node = Node(kind, first.rows, inputs=values, output=output, factor=factor, activation=activation)
        return self._record(node, symbols[0].num_heads)

    def embed(self, table: CpuWeight, token_ids_T: Symbol) -> Symbol:
        """A row of the table for each index."""
        matrix, index = as_matrix(table), token_ids_T.indices()
        return self._record(
            Node(OpKind.EMBED, index.rows, output=Value(index.rows, matrix.width), table=matrix, index=index)
        )

    def linear(self, x_TD: Symbol, weight: CpuWeight, bias: CpuWeight | None = None) -> Symbol:
        """A product of its own."""
        return self._products(x_TD, (weight,), (bias,))[0]

    def linears(
        self, x_TD: Symbol, weights: Sequence[CpuWeight], biases: Sequence[CpuWeight | None]
    ) -> tuple[Symbol, ...]:
        """Products that share their activations, and one barrier."""
        if not self._keeps_coarse:
            return super().linears(x_TD, weights, biases)
        return self._products(x_TD, weights, biases)

    def _products(
        self, x_TD: Symbol, weights: Sequence[CpuWeight], biases: Sequence[CpuWeight | None]
    ) -> tuple[Symbol, ...]:
        x = x_TD.floats()
        node = Node(OpKind.LINEARS, x.rows)
        for weight, bias in zip(weights, biases, strict=True):
            matrix = as_matrix(weight)
            assert matrix.width == x.width, f"{matrix.name} takes rows of {matrix.width}, was given {x.width}"
            vector = None if bias is None else as_vector(bias, matrix.rows)
            node.products.append(Product(x, matrix, Value(x.rows, matrix.rows), vector))
        self.nodes.append(node)
        return tuple(Symbol(product.output) for product in node.products)

    def gated_mlp(self, x_TD: Symbol, gate: CpuWeight, up: CpuWeight, down: CpuWeight, kind: Activation) -> Symbol:
        """Gate, up and their product in one node: neither gate nor up is ever written to memory as a whole."""
        if not self._keeps_coarse:
            return super().gated_mlp(x_TD, gate, up, down, kind)
        x, gate_matrix, up_matrix = x_TD.floats(), as_matrix(gate), as_matrix(up)
        assert gate_matrix.width == up_matrix.width == x.width and gate_matrix.rows == up_matrix.rows
        output = Value(x.rows, gate_matrix.rows)
        products = [Product(x, matrix, output) for matrix in (gate_matrix, up_matrix)]
        self.nodes.append(Node(OpKind.GATED, x.rows, products=products, activation=kind))
        return self.linear(Symbol(output), down)

    def add(self, x: Symbol, y: Symbol) -> Symbol:
        """Elementwise sum."""
        return self._elementwise(OpKind.ADD, x, y)

    def multiply(self, x: Symbol, y: Symbol) -> Symbol:
        """Elementwise product."""
        return self._elementwise(OpKind.MULTIPLY, x, y)

    def scale(self, x: Symbol, factor: float) -> Symbol:
        """X times a constant."""
        return self._elementwise(OpKind.SCALE, x, factor=factor)

    def rms_norm(self, x: Symbol, weight: CpuWeight, epsilon: float) -> Symbol:
        """One norm a row, or one a head."""
        value = x.floats()
        node = Node(OpKind.RMS_NORM, value.rows, inputs=[value], output=Value(value.rows, value.width))
        node.vector = as_vector(weight, value.width // x.num_heads)
        node.num_heads, node.factor = x.num_heads, epsilon
        return self._record(node, x.num_heads)

    def activate(self, x: Symbol, kind: Activation) -> Symbol:
        """SiLU or GELU."""
        return self._elementwise(OpKind.ACTIVATE, x, activation=kind)

    def softcap(self, x: Symbol, cap: float) -> Symbol:
        """Cap * tanh(x / cap)."""
        return self._elementwise(OpKind.SOFTCAP, x, factor=cap)

    def heads(self, x_TD: Symbol, num_heads: int) -> Symbol:
        """The same value, seen as heads."""
        assert x_TD.floats().width % num_heads == 0, (x_TD, num_heads)
        return Symbol(x_TD.value, num_heads)

    def merge_heads(self, x_THC: Symbol) -> Symbol:
        """The same value, seen as one row."""
        return Symbol(x_THC.value)

    def angles(self, positions_T: Symbol, frequencies: CpuWeight, magnitude: float) -> Symbol:
        """Rows of R / 2 cosines, then R / 2 sines."""
        index, vector = positions_T.indices(), as_vector(frequencies)
        output = Value(index.rows, 2 * vector.width)
        node = Node(OpKind.ANGLES, index.rows, output=output, index=index, vector=vector, factor=magnitude)
        return self._record(node)

    def rope(self, x_THC: Symbol, angles: Symbol) -> Symbol:
        """Each head of x turned."""
        x, turned = x_THC.floats(), angles.floats()
        assert turned.width <= x.width // x_THC.num_heads, (turned, x)
        output = Value(x.rows, x.width)
        node = Node(OpKind.ROPE, x.rows, inputs=[x, turned], output=output, num_heads=x_THC.num_heads)
        return self._record(node, x_THC.num_heads)

    def store_kv(self, pages: CpuPages, layer: int, k_TKC: Symbol, v_TKC: Symbol, step: StepArrays[Symbol]) -> CpuPages:
        """A node that changes the pages in place; nodes keep their order."""
        k, v = k_TKC.floats(), v_TKC.floats()
        num_heads, head_width = pages.layout.layers[layer]
        assert k.width == v.width == num_heads * head_width, (k, v, pages.layout.layers[layer])
        kind = OpKind.STORE_CODES if pages.layout.format == "int8" else OpKind.STORE_KV
        self.nodes.append(Node(kind, k.rows, inputs=[k, v], layer=layer))
        return pages

    def attend(
        self,
        q_THC: Symbol,
        pages: CpuPages,
        layer: int,
        step: StepArrays[Symbol],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Symbol:
        """A node that reads the pages."""
        q = q_THC.floats()
        num_heads, head_width = pages.layout.layers[layer]
        assert q.width == q_THC.num_heads * head_width and q_THC.num_heads % num_heads == 0, (q_THC, num_heads)
        node = Node(OpKind.ATTEND, q.rows, inputs=[q], output=Value(q.rows, q.width), layer=layer)
        node.num_heads, node.factor = q_THC.num_heads, scale
        node.piece_width = q.width // num_heads
        node.window, node.softcap = window or 0, softcap or 0.0
        return self._record(node, q_THC.num_heads)

    def take_rows(self, x_TD: Symbol, rows_B: Symbol) -> Symbol:
        """Rows of x; reads those of other threads."""
        x, index = x_TD.floats(), rows_B.indices()
        node = Node(OpKind.TAKE_ROWS, index.rows, inputs=[x], output=Value(index.rows, x.width), index=index)
        return self._record(node, x_TD.num_heads)


def as_matrix(weight: CpuWeight) -> CpuMatrix:
    """The weight, which must be a matrix."""
    assert isinstance(weight, CpuMatrix), f"{weight.name} is a vector where a matrix is needed"
    return weight


def as_vector(weight: CpuWeight, width: int | None = None) -> CpuVector:
    """The weight, which must be a vector (of that width)."""
    assert isinstance(weight, CpuVector), f"{weight.name} is a matrix where a vector is needed"
    assert width is None or weight.width == width, f"{weight.name} has {weight.width} values, {width} are needed"
    return weight


def step_symbols() -> StepArrays[Symbol]:
    """The step's arrays as symbols. The page table is read by attention alone, which knows where it is."""

    def of(array: StepArray) -> Symbol:
        return Symbol(None, step_array=array)

    return StepArrays(
        token_ids_T=of(StepArray.TOKEN_IDS),
        positions_T=of(StepArray.POSITIONS),
        slots_T=of(StepArray.SLOTS),
        sequences_T=of(StepArray.SEQUENCES),
        query_starts_N1=of(StepArray.QUERY_STARTS),
        context_lengths_N=of(StepArray.CONTEXT_LENGTHS),
        page_table_NP=Symbol(None),
        places_N=of(StepArray.PLACES),
        logit_rows_B=of(StepArray.LOGIT_ROWS),
    )
