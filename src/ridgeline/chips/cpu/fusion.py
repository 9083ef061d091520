"""Peephole passes over recorded nodes: fewer records, fewer barriers, less memory touched; never other bits.

Knows: nodes. Does not know: the decoder, places, threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from ridgeline.chips.cpu import _native
from ridgeline.chips.cpu.recorder import Node, OpKind, Product, Value
from ridgeline.chips.cpu.sinking import with_rows_taken_early

GROUP_VALUES = 32
"""Activations are prepared in groups of so many; see kernels/matmul.h."""


def prepared(nodes: Sequence[Node], result: Value, *, fuse: bool = True) -> list[Node]:
    """The nodes with what products need made explicit: PREPARE nodes, and sums that are added in place.

    With `fuse` false only what must be done is done.
    """
    listed = list(nodes)
    if fuse:
        listed = with_rows_taken_early(listed, result)
        listed = _with_sums_in_place(listed, result)
    return _with_prepares(listed, result, fuse=fuse)


def uses_of(nodes: Sequence[Node]) -> dict[Value, list[int]]:
    """For each value, the numbers of the nodes that read it, rising."""
    uses: dict[Value, list[int]] = {}
    for number, node in enumerate(nodes):
        for value in node.reads():
            uses.setdefault(value, []).append(number)
    return uses


def _with_sums_in_place(nodes: list[Node], result: Value) -> list[Node]:
    """X + linear(h) becomes a linear that adds to x where it lies, if nobody wants the old x any more."""
    uses = uses_of(nodes)
    made_last = {value: number for number, node in enumerate(nodes) for value in node.writes()}
    makers: dict[Value, tuple[int, Product]] = {}
    dropped: set[int] = set()
    for number, node in enumerate(nodes):
        if node.kind is OpKind.LINEARS:
            makers.update({product.output: (number, product) for product in node.products})
        if node.kind is not OpKind.ADD or node.output is None:
            continue
        for old, new in (node.inputs, node.inputs[::-1]):
            if new not in makers or old is new or result in (old, new):
                continue
            maker, product = makers[new]
            is_product_used_once = uses[new] == [number]
            # Between the product and the sum nobody may read x, and nobody after it: x is gone by then.
            is_old_dead = all(use < maker or use == number for use in uses[old]) and made_last[old] < maker
            if is_product_used_once and is_old_dead and product.x is not old and product.is_added_to is None:
                product.is_added_to, product.output = old, node.output
                makers[node.output] = (maker, product)
                dropped.add(number)
                break
    return [node for number, node in enumerate(nodes) if number not in dropped]


def _with_prepares(nodes: list[Node], result: Value, *, fuse: bool) -> list[Node]:
    """Before its first product, each value is prepared in all the forms that its products read.

    A norm, a gated product or attention whose result only products read is prepared as it is computed.
    """
    uses = uses_of(nodes)
    forms = _forms_read(nodes)
    written: list[Node] = []
    done: set[Value] = set()
    for node in nodes:
        value = node.writes()[0] if node.writes() else None
        is_only_for_products = (
            fuse
            and value in forms
            and value is not result
            and all(_only_multiplies(nodes[use], value) for use in uses[value])
        )
        if is_only_for_products and node.kind is OpKind.RMS_NORM and node.num_heads == 1:
            assert value is not None
            written.append(_prepare_node(value, tuple(sorted(forms[value])), norm=node))
            done.add(value)
            continue
        if is_only_for_products and _prepares_by_pieces(node):
            assert value is not None
            node.forms = tuple(sorted(forms[value]))
            done.add(value)
        for product in node.products:
            if product.x not in done:
                written.append(_prepare_node(product.x, tuple(sorted(forms[product.x]))))
                done.add(product.x)
        written.append(node)
    return written


def _prepares_by_pieces(node: Node) -> bool:
    """Whether the pieces of a row that it writes are whole groups of prepared activations."""
    return node.kind is OpKind.GATED or (node.kind is OpKind.ATTEND and node.piece_width % GROUP_VALUES == 0)


def _only_multiplies(node: Node, value: Value | None) -> bool:
    return bool(node.products) and all(product.is_added_to is not value for product in node.products)


def _forms_read(nodes: Sequence[Node]) -> dict[Value, set[int]]:
    forms: dict[Value, set[int]] = {}
    for node in nodes:
        for product in node.products:
            forms.setdefault(product.x, set()).add(_native.activation_kind(product.matrix.format))
    return forms


def _prepare_node(value: Value, forms: tuple[int, ...], norm: Node | None = None) -> Node:
    node = Node(OpKind.PREPARE, value.rows, inputs=[value] if norm is None else norm.inputs, forms=forms)
    if norm is not None:
        # `output` names the prepared value; no floats are written for it.
        node.vector, node.factor = norm.vector, norm.factor
    node.output = value
    return node
