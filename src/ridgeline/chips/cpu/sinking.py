"""Taking rows early: what is only wanted for some rows is computed for those alone.

The last layer's products are wanted for the logit rows, while a long prompt has hundreds of tokens: `take_rows` is
moved up through every op that works row by row, as far as somebody wants only the taken rows.

Knows: nodes. Does not know: the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ridgeline.chips.cpu.recorder import Node, OpKind, StepArray, Value

_Narrowed: TypeAlias = Callable[[Value, StepArray], Value]
MAY_TAKE_EARLY = frozenset(
    {
        OpKind.ADD,
        OpKind.MULTIPLY,
        OpKind.SCALE,
        OpKind.RMS_NORM,
        OpKind.ACTIVATE,
        OpKind.SOFTCAP,
        OpKind.ROPE,
        OpKind.LINEARS,
        OpKind.GATED,
    }
)
"""Ops whose every row of output depends on the same row of their inputs alone."""


def with_rows_taken_early(nodes: Sequence[Node], result: Value) -> list[Node]:
    """The same nodes, with those that only taken rows are wanted of computing no others."""
    narrow = _wanted_rows(nodes, result)
    taken: dict[tuple[Value, StepArray], Value] = {}
    written: list[Node] = []
    places: dict[Value, int] = {}

    def narrowed(value: Value, index: StepArray) -> Value:
        """The taken rows of a value; a node that takes them is put right behind the one that makes it."""
        if (value, index) not in taken:
            rows = Value(index.rows, value.width)
            taken[value, index] = rows
            if value not in narrow:
                node = Node(OpKind.TAKE_ROWS, index.rows, inputs=[value], output=rows, index=index)
                at = places[value]
                written.insert(at, node)
                for other, place in places.items():
                    places[other] = place + (place >= at)
        return taken[value, index]

    for node in nodes:
        outputs = node.writes()
        index = narrow.get(outputs[0]) if outputs else None
        if node.kind is OpKind.TAKE_ROWS and node.inputs[0] in narrow:
            # What was taken here is computed for these rows alone by now.
            _rename(nodes, node.output, narrowed(node.inputs[0], node.index))
            continue
        if index is not None and node.kind in MAY_TAKE_EARLY:
            _narrow_node(node, index, narrowed)
        written.append(node)
        for value in node.writes():
            places[value] = len(written)
    return written


def _wanted_rows(nodes: Sequence[Node], result: Value) -> dict[Value, StepArray]:
    """Values of which only the rows at the indices in one of the step's arrays are wanted."""
    wanted: dict[Value, set[StepArray | None]] = {result: {None}}
    narrow: dict[Value, StepArray] = {}
    for node in reversed(nodes):
        outputs = node.writes()
        by = {index for value in outputs for index in wanted.get(value, set())}
        [only] = by if len(by) == 1 else {None}
        is_narrow = node.kind in MAY_TAKE_EARLY and only is not None
        if is_narrow and only is not None:
            narrow.update(dict.fromkeys(outputs, only))
        for value in node.reads():
            index = only if is_narrow else None
            if node.kind is OpKind.TAKE_ROWS and node.output is not result:
                index = node.index
            wanted.setdefault(value, set()).add(index)
    return narrow


def _narrow_node(node: Node, index: StepArray, narrowed: _Narrowed) -> None:
    node.rows = index.rows
    node.inputs = [narrowed(value, index) for value in node.inputs]
    if node.output is not None:
        node.output = narrowed(node.output, index)
    for product in node.products:
        product.x, product.output = narrowed(product.x, index), narrowed(product.output, index)


def _rename(nodes: Sequence[Node], old: Value | None, new: Value) -> None:
    for node in nodes:
        node.inputs = [new if value is old else value for value in node.inputs]
        for product in node.products:
            product.x = new if product.x is old else product.x
