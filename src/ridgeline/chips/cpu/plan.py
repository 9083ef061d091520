"""Laying out a plan: phases between barriers, places in the arena, records for the kernels.

Knows: nodes, StepLimits. Does not know: the decoder, who asked.

A *phase* is what happens between two barriers. Values whose phases overlap never share memory, since threads may be at
different nodes of one phase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ridgeline.chips.cpu import _native
from ridgeline.chips.cpu.joining import Joined, joined_nodes
from ridgeline.chips.cpu.pages import CpuPages
from ridgeline.chips.cpu.recorder import Node, OpKind, Product, StepArray, Value
from ridgeline.ops.step import StepLimits

LINE_BYTES = 64
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
"""The numbers of `Activation` in kernels/elementwise.h."""

MAY_SHARE_PLACE = frozenset(
    {OpKind.ADD, OpKind.MULTIPLY, OpKind.SCALE, OpKind.RMS_NORM, OpKind.ACTIVATE, OpKind.SOFTCAP, OpKind.ROPE}
)
"""Ops whose result may overwrite their first input, row by row."""

PAGES = Value(StepArray.TOKEN_IDS, 0)
"""Stands for the pages of keys and values where nodes are compared."""

Key: TypeAlias = Value | tuple[Value, int]
"""What has a place: a value's floats, or a value prepared in one form."""


@dataclass(slots=True)
class Region:
    """Memory that a value (and those that overwrite it) needs, and in which phases."""

    size_bytes: int
    first_phase: int
    last_phase: int
    offset_bytes: int = 0


@dataclass(slots=True)
class Layout:
    """Where everything lies."""

    roots: dict[Value, Value] = field(default_factory=dict)
    """Values that overwrite another, and the value that they overwrite in the end."""
    regions: dict[Key, Region] = field(default_factory=dict)
    phases: list[int] = field(default_factory=list)
    repeats: list[bool] = field(default_factory=list)
    joined: dict[int, Joined] = field(default_factory=dict)
    """By the number of an ATTEND node: the nodes before it that it may do itself."""
    arena_bytes: int = 0

    def root(self, value: Value) -> Value:
        """The first value that lay where this one lies."""
        while value in self.roots:
            value = self.roots[value]
        return value


def lay_out(nodes: Sequence[Node], result: Value, limits: StepLimits) -> Layout:
    """Phases of the nodes, and places for their values that overlap only where they may."""
    layout = Layout()
    _find_roots(nodes, result, layout)
    _find_phases(nodes, layout)
    layout.joined = joined_nodes(nodes)
    _find_regions(nodes, result, limits, layout)
    layout.arena_bytes = _place(list(layout.regions.values()))
    return layout


def max_rows(rows: StepArray, limits: StepLimits) -> int:
    """The most rows that a value may have."""
    match rows:
        case StepArray.LOGIT_ROWS:
            return limits.max_logit_rows
        case StepArray.CONTEXT_LENGTHS:
            return limits.max_sequences
        case StepArray.QUERY_STARTS:
            return limits.max_sequences + 1
        case _:
            return limits.max_tokens


def stride_of(value: Value) -> int:
    """Floats from one row of a value to the next: whole lines of the cache."""
    return -(-value.width // 16) * 16


def _find_roots(nodes: Sequence[Node], result: Value, layout: Layout) -> None:
    last_use: dict[Value, int] = {value: number for number, node in enumerate(nodes) for value in node.reads()}
    last_use[result] = len(nodes)
    for number, node in enumerate(nodes):
        for product in node.products:
            if product.is_added_to is not None:
                layout.roots[product.output] = product.is_added_to
        if node.kind in MAY_SHARE_PLACE and node.output is not None:
            first = node.inputs[0]
            if last_use[first] == number and node.inputs.count(first) == 1 and first.width == node.output.width:
                layout.roots[node.output] = first


def _find_phases(nodes: Sequence[Node], layout: Layout) -> None:
    """Each node joins the phase before it, unless threads could then meet what others have not finished."""
    together: list[Node] = []
    num_readers = Counter(value for node in nodes for value in {product.x for product in node.products})
    for number, node in enumerate(nodes):
        # A node that prepares by itself may be done by every thread on its own: then it and its product are one phase.
        is_repeated = number > 0 and _may_repeat(nodes, number - 1, num_readers, layout)
        if number > 0:
            layout.repeats.append(is_repeated)
        if not is_repeated and any(_must_wait(other, node, layout) for other in together):
            together = []
        together.append(node)
        is_new = len(together) == 1 and number > 0
        layout.phases.append(layout.phases[-1] + is_new if layout.phases else 0)
    layout.repeats.append(False)


def _must_wait(before: Node, node: Node, layout: Layout) -> bool:
    """Whether `node` may only begin when all threads are done with `before`."""
    reads_before, writes_before = _accesses(before, layout)
    reads, writes = _accesses(node, layout)
    shared = writes_before & (reads | writes) | reads_before & writes
    if before.kind.is_row_by_row and node.kind.is_row_by_row and before.rows == node.rows:
        # The same thread has the same rows of both, but for rows that are taken from anywhere.
        scattered = [_accesses(taker, layout)[0] for taker in (before, node) if taker.kind is OpKind.TAKE_ROWS]
        return any(shared & keys for keys in scattered)
    return bool(shared)


def _accesses(node: Node, layout: Layout) -> tuple[set[Key], set[Key]]:
    """What a node reads and writes: floats by where they lie, prepared values, and the pages of all layers as one."""
    reads: set[Key] = {layout.root(value) for value in node.inputs}
    writes: set[Key] = set()
    for product in node.products:
        reads.add((product.x, _native.activation_kind(product.matrix.format)))
        if product.is_added_to is not None:
            reads.add(layout.root(product.is_added_to))
    for value in node.writes():
        writes |= {(value, form) for form in node.forms}
        if node.writes_floats():
            writes.add(layout.root(value))
    if node.kind in (OpKind.STORE_KV, OpKind.STORE_CODES, OpKind.ATTEND):
        writes.add(PAGES)
    return reads, writes


def _may_repeat(nodes: Sequence[Node], number: int, num_readers: Mapping[Value, int], layout: Layout) -> bool:
    """Whether node `number` prepares activations for the next node alone, with a barrier on either side."""
    node, consumer = nodes[number], nodes[number + 1]
    if node.kind is not OpKind.PREPARE or not consumer.products:
        return False
    if number > 0 and layout.phases[number] == layout.phases[number - 1]:
        return False
    # Floats that nobody else wrote in this phase, and that the product does not write while others still read them.
    written = {layout.root(value) for value in consumer.writes()}
    is_safe = layout.root(node.inputs[0]) not in written
    assert node.output is not None
    is_only_reader = num_readers[node.output] == 1 and all(p.x is node.output for p in consumer.products)
    return is_only_reader and is_safe


def _find_regions(nodes: Sequence[Node], result: Value, limits: StepLimits, layout: Layout) -> None:
    def touch(key: Key, size_bytes: int, phase: int) -> None:
        region = layout.regions.setdefault(key, Region(size_bytes, phase, phase))
        region.last_phase = phase

    def touch_floats(value: Value, phase: int) -> None:
        touch(layout.root(value), max_rows(value.rows, limits) * stride_of(value) * 4, phase)

    for node, phase in zip(nodes, layout.phases, strict=True):
        for value in node.inputs:
            touch_floats(value, phase)
        for value in node.writes():
            for form in node.forms:
                row_bytes = _native.activation_row_bytes(form, value.width)
                touch((value, form), max_rows(node.rows, limits) * row_bytes, phase)
            if node.writes_floats():
                touch_floats(value, phase)
        for product in node.products:
            form = _native.activation_kind(product.matrix.format)
            touch((product.x, form), 0, phase)
    for number, joined in layout.joined.items():
        # Attention then reads what those nodes read.
        for value in (value for other in joined.all_nodes() for value in nodes[other].inputs):
            touch_floats(value, layout.phases[number])
    last_phase = layout.phases[-1] if layout.phases else 0
    touch_floats(result, last_phase)


def _place(regions: Sequence[Region]) -> int:
    """Gives each region the lowest offset that overlaps no region alive at the same time; returns the bytes needed."""
    placed: list[Region] = []
    for region in sorted(regions, key=lambda region: -region.size_bytes):
        rivals = sorted(
            (
                other
                for other in placed
                if other.first_phase <= region.last_phase and region.first_phase <= other.last_phase
            ),
            key=lambda other: other.offset_bytes,
        )
        offset = 0
        for rival in rivals:
            if rival.offset_bytes - offset >= region.size_bytes:
                break
            offset = max(offset, rival.offset_bytes + rival.size_bytes)
        region.offset_bytes = offset
        region.size_bytes = -(-region.size_bytes // LINE_BYTES) * LINE_BYTES
        placed.append(region)
    return max((region.offset_bytes + region.size_bytes for region in placed), default=0)


class RecordWriter:
    """Turns laid-out nodes into records. Holds: the layout and the pages that attention reads."""

    def __init__(self, layout: Layout, pages: CpuPages) -> None:
        self._layout = layout
        self._pages = pages

    def records(self, nodes: Sequence[Node]) -> list[_native.Record]:
        """One record a node."""
        written = []
        for number, node in enumerate(nodes):
            record = _native.Record(int(node.kind), int(node.rows))
            record.needs_barrier = number > 0 and self._layout.phases[number] != self._layout.phases[number - 1]
            if number > 0 and self._layout.repeats[number - 1]:
                record.needs_barrier = True  # unless few rows were prepared by each thread; the plan sees to that
            record.may_repeat = self._layout.repeats[number]
            self._write(node, record)
            written.append(record)
        for number, joined in self._layout.joined.items():
            record = written[number]
            record.query_chain, record.key_chain = list(joined.query_chain), list(joined.key_chain)
            record.value_chain, record.store = list(joined.value_chain), joined.store
            for other in joined.all_nodes():
                written[other].is_joined = True
        return written

    def place(self, value: Value) -> _native.Place:
        """Where a value's floats lie."""
        region = self._layout.regions[self._layout.root(value)]
        return _native.Place(region.offset_bytes // 4, stride_of(value))

    def _write(self, node: Node, record: _native.Record) -> None:
        if node.inputs:
            record.x = self.place(node.inputs[0])
        if len(node.inputs) > 1:
            record.y = self.place(node.inputs[1])
        if node.output is not None and node.writes_floats():
            record.out = self.place(node.output)
        width = node.writes()[0].width if node.writes() else node.inputs[0].width
        record.width = width // node.num_heads if node.kind is OpKind.RMS_NORM else width
        record.num_heads = node.num_heads
        record.index = int(node.index)
        record.factor, record.softcap, record.window = node.factor, node.softcap, node.window
        record.activation = ACTIVATIONS[node.activation]
        if node.vector is not None:
            record.vector_address = node.vector.address
        if node.table is not None:
            record.table = node.table.native
        record.prepared = [self._prepared_place(node.writes()[0], form) for form in node.forms]
        record.prepares_output = bool(node.forms)
        match node.kind:
            case OpKind.ROPE:
                record.turned_width = node.inputs[1].width
            case OpKind.LINEARS | OpKind.GATED:
                record.parts = [self._part(product, has_floats=not node.forms) for product in node.products]
            case OpKind.STORE_KV | OpKind.STORE_CODES | OpKind.ATTEND:
                record.layer = self._pages.native_layer(node.layer)
            case _:
                pass

    def _prepared_place(self, value: Value, form: int) -> _native.PreparedPlace:
        region = self._layout.regions[(value, form)]
        # In a thread's own memory the forms of one value lie one after another, at their most for each.
        own_offset = 0
        for other in range(form):
            if (value, other) in self._layout.regions:
                own_offset += _native.REPEATED_ROWS * _native.activation_row_bytes(other, value.width)
        return _native.PreparedPlace(form, region.offset_bytes, own_offset)

    def _part(self, product: Product, *, has_floats: bool) -> _native.Part:
        form = _native.activation_kind(product.matrix.format)
        return _native.Part(
            product.matrix.native,
            self._prepared_place(product.x, form),
            self.place(product.output) if has_floats else _native.Place(0, 0),
            bias_address=0 if product.bias is None else product.bias.address,
            accumulate=product.is_added_to is not None,
        )
