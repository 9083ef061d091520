"""Which nodes attention may do itself: those between the products of queries, keys and values and attention.

Norms of heads, rope and storing work token by token and head by head. Where each sequence of a step has its tokens in
one block of queries, the thread that attends with a block is the only one that reads what they make, so it makes it as
well, and nobody waits.

Knows: nodes. Does not know: the decoder, places, threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.chips.cpu.recorder import Node, OpKind, Value

_STORES = frozenset({OpKind.STORE_KV, OpKind.STORE_CODES})
_BY_HEAD = frozenset({OpKind.RMS_NORM, OpKind.ROPE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Numbers of the nodes that one attention may do: of queries, keys and values in order, and the one that stores."""

    query_chain: tuple[int, ...]
    key_chain: tuple[int, ...]
    value_chain: tuple[int, ...]
    store: int

    def all_nodes(self) -> tuple[int, ...]:
        """All of them."""
        return (*self.query_chain, *self.key_chain, *self.value_chain, self.store)


def joined_nodes(nodes: Sequence[Node]) -> dict[int, Joined]:
    """For each attention that may do the nodes before it, by its number."""
    num_readers = Counter(value for node in nodes for value in node.reads())
    found: dict[int, Joined] = {}
    for number, node in enumerate(nodes):
        joined = _joined(nodes, number, num_readers) if node.kind is OpKind.ATTEND else None
        if joined is not None:
            found[number] = joined
    return found


def _joined(nodes: Sequence[Node], attention: int, num_readers: Counter[Value]) -> Joined | None:
    node, first = nodes[attention], attention
    while first > 0 and nodes[first - 1].kind in _STORES | _BY_HEAD:
        first -= 1
    between = range(first, attention)
    stores = [number for number in between if nodes[number].kind in _STORES]
    if len(stores) != 1 or nodes[stores[0]].layer != node.layer:
        return None
    num_kv_heads = node.num_heads * nodes[stores[0]].inputs[0].width // node.inputs[0].width
    keys, values = nodes[stores[0]].inputs
    makers = {nodes[number].output: number for number in between if nodes[number].output is not None}

    def chain(value: Value, num_heads: int) -> tuple[int, ...]:
        if value not in makers or num_readers[value] != 1 or nodes[makers[value]].num_heads != num_heads:
            return ()
        maker = makers[value]
        return (*chain(nodes[maker].inputs[0], num_heads), maker)

    joined = Joined(
        query_chain=chain(node.inputs[0], node.num_heads),
        key_chain=chain(keys, num_kv_heads),
        value_chain=chain(values, num_kv_heads),
        store=stores[0],
    )
    return joined if sorted(joined.all_nodes()) == list(between) else None
