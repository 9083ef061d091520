"""Pages of keys and values in the memory of the CPU chip; kernels/attention.h draws their layout.

Knows: PageLayout. Does not know: who hands out pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.chips.cpu import _native
from ridgeline.errors import CapacityError
from ridgeline.ops.chip import PageLayout
from ridgeline.ops.step import StepLimits

KV_FORMATS = {"f32": 0, "bf16": 1, "int8": 2}
"""The numbers of `KvFormat` in kernels/attention.h."""
MAX_HEAD_WIDTH = 576


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CpuPages:
    """All pages of all layers. Holds: the memory, which only a running step changes.

    A page's layers lie side by side: what is used of the memory then begins at its start, so that the system, which
    gives huge pages, gives few of them to a short conversation.
    """

    layout: PageLayout
    num_pages: int
    memory: _native.Memory
    """[page][layer]."""
    open_memory: _native.Memory | None
    """int8: the newest two pages of each place, unquantised, [place][layer]."""

    def native_layer(self, layer: int) -> _native.KvLayer:
        """The layer's memory for the kernels."""
        num_heads, head_width = self.layout.layers[layer]
        page, place = _layer_bytes(self.layout), _open_layer_bytes(self.layout)
        return _native.KvLayer(
            KV_FORMATS[self.layout.format],
            num_heads,
            head_width,
            self.memory.address + sum(page[:layer]),
            sum(page),
            0 if self.open_memory is None else self.open_memory.address + sum(place[:layer]),
            sum(place),
        )


def _layer_bytes(layout: PageLayout) -> list[int]:
    """What each layer takes of a page."""
    number = KV_FORMATS[layout.format]
    return [num_heads * _native.block_bytes(number, head_width) for num_heads, head_width in layout.layers]


def _open_layer_bytes(layout: PageLayout) -> list[int]:
    """What each layer takes of a place's unquantised pages; nothing unless the format is int8."""
    if layout.format != "int8":
        return [0] * len(layout.layers)
    return [2 * num_heads * _native.plain_block_bytes(head_width) for num_heads, head_width in layout.layers]


def page_bytes(layout: PageLayout) -> int:
    """Bytes of one page over all layers."""
    return sum(_layer_bytes(layout))


def open_page_bytes(layout: PageLayout, limits: StepLimits) -> int:
    """Bytes of the unquantised newest pages of all places; none unless the format is int8."""
    return limits.max_sequences * sum(_open_layer_bytes(layout))


def allocate_pages(layout: PageLayout, num_pages: int, limits: StepLimits, available_bytes: int) -> CpuPages:
    """Room for `num_pages` pages; raises CapacityError if more than `available_bytes` would be needed."""
    for num_heads, head_width in layout.layers:
        assert num_heads > 0 and 0 < head_width <= MAX_HEAD_WIDTH and head_width % 2 == 0, (num_heads, head_width)
    open_bytes, each_bytes = open_page_bytes(layout, limits), page_bytes(layout)
    if open_bytes + num_pages * each_bytes > available_bytes:
        would_fit = max(0, (available_bytes - open_bytes) // each_bytes)
        raise CapacityError(
            f"{num_pages} pages of {each_bytes} bytes were asked for, {available_bytes} bytes of memory are free",
            hint=f"ask for at most {would_fit} pages, or free memory",
        )
    try:
        memory = _native.Memory(num_pages * each_bytes)
        open_memory = _native.Memory(open_bytes) if open_bytes else None
    except MemoryError:
        raise CapacityError(
            f"the system gave no memory for {num_pages} pages of {each_bytes} bytes", hint="ask for fewer pages"
        ) from None
    return CpuPages(layout=layout, num_pages=num_pages, memory=memory, open_memory=open_memory)
