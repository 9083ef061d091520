"""Pages of keys and values in numpy, and the exact meaning of each KV format.

Knows: PageLayout, rounding. Does not know: requests, who hands out pages, queries.

f32: values are kept as they come.
bf16: values are rounded to bfloat16, to nearest, ties to even.
int8: values are rounded to bfloat16 first. A query reads its own page (the one that its own position lies in) so, and
every earlier page, which is full by then, through 8-bit codes made from those bfloat16 values by `key_codes` and
`value_codes`. What a query reads thus depends on its position alone, however the prompt was cut into steps.

Shape letters: S slots of a page, P pages, K kv heads, C head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.ops.chip import KvFormat, PageLayout
from ridgeline.ops.step import PAGE_SLOTS

Floats = npt.NDArray[np.float32]


def rounded_to_bf16(x: Floats) -> Floats:
    """Each value rounded to bfloat16 (the upper half of a float32), to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    tie = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + tie) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32)).astype(np.float32)


def key_codes(keys_SKC: Floats) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
    """(codes_SKC, scale_KC, low_KC) of one full page of keys: asymmetric, one scale per channel over the page's slots.

    In float32, each operation rounded on its own:
    low = min over S, span = max over S - low, scale = span / 255,
    inverse = 255 / span, or 0 where span is 0, code = round_half_even((key - low) * inverse), in 0 .. 255.
    A code stands for low + scale * code.
    """
    low_KC = keys_SKC.min(axis=0)
    span_KC = keys_SKC.max(axis=0) - low_KC
    scale_KC = span_KC / np.float32(255)
    inverse_KC = np.divide(np.float32(255), span_KC, out=np.zeros_like(span_KC), where=span_KC > 0)
    codes_SKC = np.clip(np.rint((keys_SKC - low_KC) * inverse_KC), 0, 255).astype(np.uint8)
    return codes_SKC, scale_KC, low_KC


def value_codes(values_SKC: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """(codes_SKC, scale_SK1) of values: symmetric, one scale per head and token.

    In float32, each operation rounded on its own:
    peak = max over C of |value|, scale = peak / 127, inverse = 127 / peak, or 0 where peak is 0,
    code = round_half_even(value * inverse), in -127 .. 127. A code stands for scale * code.
    """
    peak_SK1 = np.abs(values_SKC).max(axis=-1, keepdims=True)
    inverse_SK1 = np.divide(np.float32(127), peak_SK1, out=np.zeros_like(peak_SK1), where=peak_SK1 > 0)
    codes_SKC = np.clip(np.rint(values_SKC * inverse_SK1), -127, 127).astype(np.int8)
    return codes_SKC, peak_SK1 / np.float32(127)


def keys_through_codes(keys_SKC: Floats) -> Floats:
    """What a query of a later page reads of a full page of keys."""
    codes_SKC, scale_KC, low_KC = key_codes(keys_SKC)
    return low_KC + scale_KC * codes_SKC.astype(np.float32)


def values_through_codes(values_SKC: Floats) -> Floats:
    """What a query of a later page reads of a full page of values."""
    codes_SKC, scale_SK1 = value_codes(values_SKC)
    return scale_SK1 * codes_SKC.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePages:
    """Keys and values of all layers. Holds: arrays that `store` writes; nothing else changes them.

    What was never stored is NaN, so that a step that reads it shows it.
    """

    format: KvFormat
    keys: tuple[Floats, ...]
    """Per layer (P * S, K, C)."""
    values: tuple[Floats, ...]

    @classmethod
    def allocate(cls, layout: PageLayout, num_pages: int) -> ReferencePages:
        """Pages that hold NaN everywhere."""

        def empty() -> tuple[Floats, ...]:
            return tuple(
                np.full((num_pages * PAGE_SLOTS, num_heads, width), np.nan, dtype=np.float32)
                for num_heads, width in layout.layers
            )

        return cls(format=layout.format, keys=empty(), values=empty())

    def store(self, layer: int, slots_T: npt.NDArray[np.int32], k_TKC: Floats, v_TKC: Floats) -> None:
        """Write these keys and values at these slots, rounded to what the format keeps."""
        rounded = (lambda x: x) if self.format == "f32" else rounded_to_bf16
        self.keys[layer][slots_T] = rounded(k_TKC)
        self.values[layer][slots_T] = rounded(v_TKC)

    def read(self, layer: int, page_ids: npt.NDArray[np.int32], num_tokens: int) -> tuple[Floats, Floats]:
        """(keys, values) of a sequence's first `num_tokens` positions as they were stored, (num_tokens, K, C)."""
        slots = (page_ids[:, None] * PAGE_SLOTS + np.arange(PAGE_SLOTS, dtype=np.int32)).reshape(-1)[:num_tokens]
        return self.keys[layer][slots], self.values[layer][slots]

    def as_seen_from_later_pages(self, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """The same keys and values as queries of later pages read them: full pages through codes where int8."""
        if self.format != "int8":
            return keys, values
        seen_keys, seen_values = keys.copy(), values.copy()
        for start in range(0, len(keys) // PAGE_SLOTS * PAGE_SLOTS, PAGE_SLOTS):
            page = slice(start, start + PAGE_SLOTS)
            seen_keys[page] = keys_through_codes(keys[page])
            seen_values[page] = values_through_codes(values[page])
        return seen_keys, seen_values
