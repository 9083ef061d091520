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
MAX_HEAD_WIDTH = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CpuPages:
    """All pages of all layers. Holds: the memory, which only a running step changes."""

    layout: PageLayout
    num_pages: int
    memory: tuple[_native.Memory, ...]
    """Per layer."""
    open_memory: tuple[_native.Memory | None, ...]
    """Per layer, int8: the newest two pages of each place, unquantised."""

    def native_layer(self, layer: int) -> _native.KvLayer:
        """The layer's memory for the kernels."""
        num_heads, head_width = self.layout.layers[layer]
        open_memory = self.open_memory[layer]
        return _native.KvLayer(
            KV_FORMATS[self.layout.format],
            num_heads,
            head_width,
            self.memory[layer].address,
            0 if open_memory is None else open_memory.address,
        )


def page_bytes(layout: PageLayout) -> int:
    """Bytes of one page over all layers."""
    number = KV_FORMATS[layout.format]
    return sum(num_heads * _native.block_bytes(number, head_width) for num_heads, head_width in layout.layers)


def open_page_bytes(layout: PageLayout, limits: StepLimits) -> int:
    """Bytes of the unquantised newest pages of all places; none unless the format is int8."""
    if layout.format != "int8":
        return 0
    places = 2 * limits.max_sequences
    return sum(places * num_heads * _native.plain_block_bytes(head_width) for num_heads, head_width in layout.layers)


def allocate_pages(layout: PageLayout, num_pages: int, limits: StepLimits, available_bytes: int) -> CpuPages:
    """Room for `num_pages` pages; raises CapacityError if more than `available_bytes` would be needed."""
    for num_heads, head_width in layout.layers:
        assert num_heads > 0 and 0 < head_width <= MAX_HEAD_WIDTH and head_width % 2 == 0, (num_heads, head_width)
    fixed_bytes, each_bytes = open_page_bytes(layout, limits), page_bytes(layout)
    if fixed_bytes + num_pages * each_bytes > available_bytes:
        would_fit = max(0, (available_bytes - fixed_bytes) // each_bytes)
        raise CapacityError(
            f"{num_pages} pages of {each_bytes} bytes were asked for, {available_bytes} bytes of memory are free",
            hint=f"ask for at most {would_fit} pages, or free memory",
        )
    memory, open_memory = [], []
    try:
        for num_heads, head_width in layout.layers:
            block = _native.block_bytes(KV_FORMATS[layout.format], head_width)
            memory.append(_native.Memory(num_pages * num_heads * block))
            open_block = _native.plain_block_bytes(head_width) if layout.format == "int8" else 0
            places = 2 * limits.max_sequences
            open_memory.append(_native.Memory(places * num_heads * open_block) if open_block else None)
    except MemoryError:
        raise CapacityError(
            f"the system gave no memory for {num_pages} pages of {each_bytes} bytes", hint="ask for fewer pages"
        ) from None
    return CpuPages(layout=layout, num_pages=num_pages, memory=tuple(memory), open_memory=tuple(open_memory))
