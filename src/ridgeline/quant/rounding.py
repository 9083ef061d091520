"""Rounding of float values into every weight format: for each block the scale that loses least, then the nearest codes.

Knows: formats and grids. Does not know: files, activations, where the importance of a column comes from.

The error that is made small is the sum of squares over a block (or a sub-block, where those have scales), each weighted
by the importance of its column.

Letters: N blocks, V values of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ridgeline.errors import UserError
from ridgeline.quant import formats
from ridgeline.quant.formats import Format
from ridgeline.quant.grids import GRIDS, Grid, nearest_levels
from ridgeline.quant.packing import Bytes, half, join, nibbles, rows_as_bytes

Floats = npt.NDArray[np.float32]

CHUNK_VALUES = 1 << 18
"""Values that are in hand at once; bounds the temporaries to a few MB."""


def quantize(
    values: npt.NDArray[np.floating], entry: Format, importance: npt.NDArray[np.floating] | None = None
) -> Bytes:
    """The bytes of `values` in a format, one-dimensional, in row order.

    Args:
        values: any shape; the last extent is a whole number of blocks.
        entry: the format.
        importance: of each column, above zero: the weight of its squared errors; None: all are alike. Formats without
            scales, and MXFP4, have no use for it.

    Raises UserError where the values cannot be held: not finite, beyond the range of the format's 16-bit numbers, or
    rows that are not whole blocks.

    Memory: the result, and temporaries of one chunk.
    """
    width = values.shape[-1]
    if width % entry.block_values:
        raise UserError(
            f"rows of {width} values cannot be stored as {entry.name}: its blocks hold {entry.block_values}",
            hint="use a format whose blocks divide the width, such as Q8_0 (32 values) or F16",
        )
    blocks_NV = values.reshape(-1, entry.block_values)
    data = np.empty((blocks_NV.shape[0], entry.block_bytes), dtype=np.uint8)
    grid = GRIDS.get(entry.name)
    weights_NV = np.ones((1, entry.block_values), dtype=np.float32)
    if importance is not None:
        assert importance.shape == (width,), (importance.shape, width)
        weights_NV = importance.astype(np.float32).reshape(-1, entry.block_values)
    step = max(1, CHUNK_VALUES // entry.block_values)
    for start in range(0, len(blocks_NV), step):
        chunk = np.ascontiguousarray(blocks_NV[start : start + step], dtype=np.float32)
        check_finite(chunk, entry)
        with np.errstate(over="ignore", under="ignore"):
            if grid is None:
                data[start : start + step] = _ENCODERS[entry.name](chunk)
            else:
                places = np.arange(start, start + len(chunk)) % len(weights_NV)
                data[start : start + step] = _on_grid(grid, chunk, weights_NV[places])
    return data.reshape(-1)


def check_finite(values: npt.NDArray[np.floating], entry: Format) -> None:
    """UserError where a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise UserError(
            f"values that are NaN or infinite cannot be stored as {entry.name}",
            hint="the source is damaged: fetch it again",
        )


def _on_grid(grid: Grid, values_NV: Floats, weights_NV: Floats) -> Bytes:
    values_VN = np.ascontiguousarray(values_NV.T)
    fit = grid.fit(grid, values_VN, np.ascontiguousarray(weights_NV.T))
    return fit.packed(fit.all_codes(values_VN))


def _f32(values_NV: Floats) -> Bytes:
    return rows_as_bytes(values_NV.astype("<f4"))


def _f16(values_NV: Floats) -> Bytes:
    return rows_as_bytes(half(values_NV))


def _bf16(values_NV: Floats) -> Bytes:
    """Nearest, ties to even."""
    words = values_NV.view(np.uint32).astype(np.uint64)
    rounded = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise UserError("a value is beyond the range of bfloat16", hint="use F32 for this tensor")
    return rows_as_bytes(rounded.astype("<u2"))


def _mxfp4(values_NV: Floats) -> Bytes:
    """The exponent is a power of two: the one that just holds the largest magnitude (6 steps), or a neighbour."""
    levels = np.array(formats.MXFP4_LEVELS, dtype=np.float32)
    largest = np.abs(values_NV).max(axis=1, keepdims=True)
    _, exponent = np.frexp(largest)
    best_error = np.full_like(largest, np.inf)
    best_exponent = np.zeros(largest.shape, dtype=np.int32)
    best_codes = np.zeros(values_NV.shape, dtype=np.int32)
    for shift in (-1, 0, 1):
        # largest = m * 2^exponent with m in [0.5, 1); levels reach 12 = 1.5 * 2^3 halves, scale 2^(code - 128).
        code = np.clip(exponent - 3 + shift + 128, 0, 254).astype(np.int32)
        scale = np.ldexp(np.float32(1), code - 128)
        codes = nearest_levels(np.ldexp(values_NV, 128 - code), formats.MXFP4_LEVELS)
        error = ((levels[codes] * scale - values_NV) ** 2).sum(axis=1, keepdims=True)
        is_better = error < best_error
        best_error = np.where(is_better, error, best_error)
        best_exponent = np.where(is_better, code, best_exponent)
        best_codes = np.where(is_better, codes, best_codes)
    return join(best_exponent.astype(np.uint8), nibbles(best_codes))


_ENCODERS: dict[str, Callable[[Floats], Bytes]] = {
    formats.F32.name: _f32,
    formats.F16.name: _f16,
    formats.BF16.name: _bf16,
    formats.MXFP4.name: _mxfp4,
}
"""Of the formats that have no grid."""
