"""Rounding of float values into every weight format: for each block the scale that loses least, then the nearest codes.

Knows: the layout of a block of each format. Does not know: files, activations, calibration data.

The error that is made small is the plain sum of squares over a block (or a sub-block, where those have scales).

Letters: N blocks (or sub-blocks), V values of a block, S sub-blocks of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ridgeline.errors import UserError
from ridgeline.quant import formats
from ridgeline.quant.formats import Format

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

CHUNK_VALUES = 1 << 18
"""Values that are in hand at once; bounds the temporaries to a few MB."""

CANDIDATES = tuple(0.1 * step for step in range(-9, 10))
"""How far from the plain choice a scale may lie, in code steps: the range of ggml's own search."""


def quantize(values: npt.NDArray[np.floating], entry: Format) -> Bytes:
    """The bytes of `values` in a format, one-dimensional, in row order.

    Args:
        values: any shape; the last extent is a whole number of blocks.
        entry: the format.

    Raises UserError where the values cannot be held: not finite, beyond the range of the format's 16-bit numbers, or
    rows that are not whole blocks.

    Memory: the result, and temporaries of one chunk.
    """
    if values.shape[-1] % entry.block_values:
        raise UserError(
            f"rows of {values.shape[-1]} values cannot be stored as {entry.name}: its blocks hold {entry.block_values}",
            hint="use a format whose blocks divide the width, such as Q8_0 (32 values) or F16",
        )
    blocks_NV = values.reshape(-1, entry.block_values)
    data = np.empty((blocks_NV.shape[0], entry.block_bytes), dtype=np.uint8)
    encode = _ENCODERS[entry.name]
    step = max(1, CHUNK_VALUES // entry.block_values)
    for start in range(0, len(blocks_NV), step):
        chunk = np.ascontiguousarray(blocks_NV[start : start + step], dtype=np.float32)
        if not np.isfinite(chunk).all():
            raise UserError(
                f"values that are NaN or infinite cannot be stored as {entry.name}",
                hint="the source is damaged: fetch it again",
            )
        with np.errstate(over="ignore", under="ignore"):
            data[start : start + step] = encode(chunk)
    return data.reshape(-1)


def _half(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    """Values as float16; UserError where one is beyond its range."""
    halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise UserError(
            "a value or a scale is beyond the range of float16 (65,504)", hint="use BF16 or F32 for this tensor"
        )
    return halves


def _bytes(array: npt.NDArray[np.generic]) -> Bytes:
    """The bytes of each row of `array`."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 where the scale is 0 (or too small to have a finite inverse)."""
    with np.errstate(divide="ignore"):
        inverses = 1 / scales
    return np.where(np.isfinite(inverses), inverses, 0).astype(np.float32)


def _codes(values: Floats, scales: Floats, lowest: int, highest: int) -> Codes:
    """The nearest codes of values that are `scale * code`."""
    codes: Codes = np.clip(np.rint(values * _inverse(scales)), lowest, highest).astype(np.int32)
    return codes


def _symmetric_scales(values_NV: Floats, lowest: int, highest: int) -> Floats:
    """For each row the scale for which `scale * code`, code in [lowest, highest], comes nearest to it; shape (N, 1).

    Tries inverse scales around the one that puts the largest magnitude on `lowest`; for each, the best scale for its
    codes is the least-squares one, sum(x q) / sum(q q), which takes sum(x q)^2 / sum(q q) off the squared error.
    """
    largest = np.take_along_axis(values_NV, np.abs(values_NV).argmax(axis=1, keepdims=True), axis=1)
    best_gain = np.zeros_like(largest)
    best_scale = np.zeros_like(largest)
    for shift in CANDIDATES:
        codes = np.clip(np.rint(values_NV * ((lowest + shift) * _inverse(largest))), lowest, highest)
        norm = (codes * codes).sum(axis=1, keepdims=True)
        along = (values_NV * codes).sum(axis=1, keepdims=True)
        scale = along / np.maximum(norm, 1)
        gain = along * scale
        is_better = gain > best_gain
        best_gain = np.where(is_better, gain, best_gain)
        best_scale = np.where(is_better, scale, best_scale)
    return best_scale


def _affine_scales(values_NV: Floats, highest: int, *, may_lift: bool) -> tuple[Floats, Floats]:
    """For each row the scale and the minimum for which `scale * code + minimum`, code in [0, highest], comes nearest.

    Both of shape (N, 1); the scale is never negative. With `may_lift` false the minimum is never above zero (the K
    formats subtract an unsigned minimum). For each trial of codes the two are the least-squares ones.
    """
    low = values_NV.min(axis=1, keepdims=True)
    if not may_lift:
        low = np.minimum(low, 0)
    spread = np.maximum(values_NV.max(axis=1, keepdims=True) - low, 0)
    best_scale, best_minimum = spread / highest, low
    best_error = np.full_like(low, np.inf)
    for shift in (0.0, *CANDIDATES):
        codes = np.clip(np.rint((values_NV - low) * ((highest + shift) * _inverse(spread))), 0, highest)
        scale, minimum = _least_squares(values_NV, codes, may_lift=may_lift)
        error = ((scale * codes + minimum - values_NV) ** 2).sum(axis=1, keepdims=True)
        is_better = (error < best_error) & (scale >= 0)
        best_error = np.where(is_better, error, best_error)
        best_scale = np.where(is_better, scale, best_scale)
        best_minimum = np.where(is_better, minimum, best_minimum)
    return best_scale, best_minimum


def _least_squares(values_NV: Floats, codes_NV: Floats, *, may_lift: bool) -> tuple[Floats, Floats]:
    """The scale and minimum that bring `scale * code + minimum` nearest to the values, each of shape (N, 1)."""
    mean_code = codes_NV.mean(axis=1, keepdims=True)
    mean_value = values_NV.mean(axis=1, keepdims=True)
    variance = ((codes_NV - mean_code) ** 2).mean(axis=1, keepdims=True)
    covariance = ((codes_NV - mean_code) * (values_NV - mean_value)).mean(axis=1, keepdims=True)
    scale = covariance * _inverse(variance)
    minimum = mean_value - scale * mean_code
    if may_lift:
        return scale, minimum
    through_zero = (values_NV * codes_NV).sum(axis=1, keepdims=True) / np.maximum(
        (codes_NV * codes_NV).sum(axis=1, keepdims=True), 1
    )
    return np.where(minimum > 0, through_zero, scale), np.minimum(minimum, 0)


def _nibbles(codes: Codes) -> Bytes:
    """Two 4-bit codes a byte along the last axis: low halves hold the first half of the codes, high ones the second."""
    low, high = np.split(codes & 15, 2, axis=-1)
    packed: Bytes = (low | (high << 4)).astype(np.uint8)
    return packed


def _fifth_bits(codes_N32: Codes) -> Bytes:
    return np.packbits(codes_N32 >> 4 & 1, axis=-1, bitorder="little")


def _crumbs(codes_NV: Codes) -> Bytes:
    """2-bit codes of the K formats: 128 values in 32 bytes, 32 values at each pair of bits."""
    pieces = (codes_NV & 3).reshape(len(codes_NV), -1, 4, 32)
    shifts = np.array([0, 2, 4, 6]).reshape(1, 1, 4, 1)
    packed: Bytes = np.bitwise_or.reduce(pieces << shifts, axis=2).astype(np.uint8)
    return packed.reshape(len(codes_NV), -1)


def _bit_planes(bits_N256: Codes) -> Bytes:
    """32 bytes: bit b of byte i is that of value 32 * b + i."""
    planes = (bits_N256 & 1).reshape(-1, 8, 32) << np.arange(8).reshape(1, 8, 1)
    packed: Bytes = np.bitwise_or.reduce(planes, axis=1).astype(np.uint8)
    return packed


def _join(*parts: npt.NDArray[np.generic]) -> Bytes:
    return np.concatenate([_bytes(part) for part in parts], axis=1)


def _f32(values_NV: Floats) -> Bytes:
    return _bytes(values_NV.astype("<f4"))


def _f16(values_NV: Floats) -> Bytes:
    return _bytes(_half(values_NV))


def _bf16(values_NV: Floats) -> Bytes:
    """Nearest, ties to even."""
    words = values_NV.view(np.uint32).astype(np.uint64)
    rounded = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise UserError("a value is beyond the range of bfloat16", hint="use F32 for this tensor")
    return _bytes(rounded.astype("<u2"))


def _q4_0(values_NV: Floats) -> Bytes:
    scale = _half(_symmetric_scales(values_NV, -8, 7))
    return _join(scale, _nibbles(_codes(values_NV, scale.astype(np.float32), -8, 7) + 8))


def _q5_0(values_NV: Floats) -> Bytes:
    scale = _half(_symmetric_scales(values_NV, -16, 15))
    codes = _codes(values_NV, scale.astype(np.float32), -16, 15) + 16
    return _join(scale, _fifth_bits(codes), _nibbles(codes))


def _affine_codes(values_NV: Floats, highest: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16], Codes]:
    scale, minimum = (_half(part) for part in _affine_scales(values_NV, highest, may_lift=True))
    return scale, minimum, _codes(values_NV - minimum.astype(np.float32), scale.astype(np.float32), 0, highest)


def _q4_1(values_NV: Floats) -> Bytes:
    scale, minimum, codes = _affine_codes(values_NV, 15)
    return _join(scale, minimum, _nibbles(codes))


def _q5_1(values_NV: Floats) -> Bytes:
    scale, minimum, codes = _affine_codes(values_NV, 31)
    return _join(scale, minimum, _fifth_bits(codes), _nibbles(codes))


def _q8_0(values_NV: Floats) -> Bytes:
    scale = _half(np.abs(values_NV).max(axis=1, keepdims=True) / 127)
    return _join(scale, _codes(values_NV, scale.astype(np.float32), -127, 127).astype(np.int8))


def _shared(parts_NS: Floats, highest: int) -> tuple[npt.NDArray[np.float16], Codes]:
    """Sub-block scales (none negative) as one float16 of shape (N, 1) and a code in [0, highest] for each."""
    scale = _half(parts_NS.max(axis=1, keepdims=True) / highest)
    return scale, _codes(parts_NS, scale.astype(np.float32), 0, highest)


def _signed_shared(parts_NS: Floats, lowest: int, highest: int) -> tuple[npt.NDArray[np.float16], Codes]:
    """Sub-block scales of either sign as one float16 of shape (N, 1) and a code in [lowest, highest] for each."""
    largest = np.take_along_axis(parts_NS, np.abs(parts_NS).argmax(axis=1, keepdims=True), axis=1)
    scale = _half(largest / lowest)
    return scale, _codes(parts_NS, scale.astype(np.float32), lowest, highest)


def _affine_k(
    values_NV: Floats, num_sub_blocks: int, highest: int, highest_scale: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16], Codes, Codes, Codes]:
    """Scale, minimum (N, 1), scale codes, minimum codes (N, S) and codes (N, V) of Q2_K, Q4_K and Q5_K."""
    parts = values_NV.reshape(len(values_NV) * num_sub_blocks, -1)
    scales, minima = _affine_scales(parts, highest, may_lift=False)
    scale, scale_codes = _shared(scales.reshape(-1, num_sub_blocks), highest_scale)
    minimum, minimum_codes = _shared(-minima.reshape(-1, num_sub_blocks), highest_scale)
    real_scales = (scale.astype(np.float32) * scale_codes).reshape(-1, 1)
    real_minima = (minimum.astype(np.float32) * minimum_codes).reshape(-1, 1)
    codes = _codes(parts + real_minima, real_scales.astype(np.float32), 0, highest)
    return scale, minimum, scale_codes, minimum_codes, codes.reshape(values_NV.shape)


def _signed_k(
    values_NV: Floats, lowest: int, highest: int, lowest_scale: int
) -> tuple[npt.NDArray[np.float16], Codes, Codes]:
    """Scale (N, 1), scale codes (N, 16) and codes (N, 256) of Q3_K and Q6_K."""
    parts = values_NV.reshape(-1, 16)
    scales = _symmetric_scales(parts, lowest, highest)
    scale, scale_codes = _signed_shared(scales.reshape(-1, 16), lowest_scale, -lowest_scale - 1)
    real_scales = (scale.astype(np.float32) * scale_codes).reshape(-1, 1)
    codes = _codes(parts, real_scales.astype(np.float32), lowest, highest)
    return scale, scale_codes, codes.reshape(-1, 256)


def _six_bit_pairs(scale_codes_N8: Codes, minimum_codes_N8: Codes) -> Bytes:
    """The twelve bytes of eight 6-bit scales and minima; `reference._six_bit_pairs` draws them."""
    low_scales, high_scales = scale_codes_N8[:, :4], scale_codes_N8[:, 4:]
    low_minima, high_minima = minimum_codes_N8[:, :4], minimum_codes_N8[:, 4:]
    first = low_scales | (high_scales >> 4 << 6)
    second = low_minima | (high_minima >> 4 << 6)
    third = (high_scales & 15) | ((high_minima & 15) << 4)
    return np.concatenate([first, second, third], axis=1).astype(np.uint8)


def _four_bit_runs(codes_N256: Codes) -> Bytes:
    return _nibbles(codes_N256.reshape(-1, 4, 64)).reshape(-1, 128)


def _q2_k(values_NV: Floats) -> Bytes:
    scale, minimum, scale_codes, minimum_codes, codes = _affine_k(values_NV, 16, 3, 15)
    return _join((scale_codes | (minimum_codes << 4)).astype(np.uint8), _crumbs(codes), scale, minimum)


def _q3_k(values_NV: Floats) -> Bytes:
    scale, scale_codes, codes = _signed_k(values_NV, -4, 3, -32)
    lifted, lifted_scales = codes + 4, scale_codes + 32
    top_pieces = (lifted_scales >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6]).reshape(1, 4, 1)
    tops = np.bitwise_or.reduce(top_pieces, axis=1).astype(np.uint8)
    return _join(_bit_planes(lifted >> 2), _crumbs(lifted), _nibbles(lifted_scales), tops, scale)


def _q4_k(values_NV: Floats) -> Bytes:
    scale, minimum, scale_codes, minimum_codes, codes = _affine_k(values_NV, 8, 15, 63)
    return _join(scale, minimum, _six_bit_pairs(scale_codes, minimum_codes), _four_bit_runs(codes))


def _q5_k(values_NV: Floats) -> Bytes:
    scale, minimum, scale_codes, minimum_codes, codes = _affine_k(values_NV, 8, 31, 63)
    pairs = _six_bit_pairs(scale_codes, minimum_codes)
    return _join(scale, minimum, pairs, _bit_planes(codes >> 4), _four_bit_runs(codes))


def _q6_k(values_NV: Floats) -> Bytes:
    scale, scale_codes, codes = _signed_k(values_NV, -32, 31, -128)
    lifted = codes + 32
    low = _nibbles(lifted.reshape(-1, 2, 128)).reshape(-1, 128)
    return _join(low, _crumbs(lifted >> 4), scale_codes.astype(np.int8), scale)


def _nearest_levels(values_NV: Floats, levels: tuple[int, ...]) -> Codes:
    """The index of the nearest level of each value.

    Levels are whole numbers, so the borders between them lie on halves, and a table over halves answers at once.
    """
    table = _nearest_table(levels)
    halves = np.clip(np.floor(values_NV * 2), 2 * min(levels), 2 * max(levels)).astype(np.int32)
    return table[halves - 2 * min(levels)]


@functools.cache
def _nearest_table(levels: tuple[int, ...]) -> Codes:
    """For each h from twice the lowest level to twice the highest: the level nearest to all of [h, h + 1) / 2."""
    middles = np.arange(2 * min(levels), 2 * max(levels) + 1) / 2 + 0.25
    table: Codes = np.abs(middles[:, None] - np.array(levels)[None, :]).argmin(axis=1).astype(np.int32)
    return table


def _iq4_nl(values_NV: Floats) -> Bytes:
    levels = np.array(formats.IQ4_NL_LEVELS, dtype=np.float32)
    nearest = functools.partial(_nearest_levels, levels=formats.IQ4_NL_LEVELS)
    largest = np.take_along_axis(values_NV, np.abs(values_NV).argmax(axis=1, keepdims=True), axis=1)
    best_gain, best_scale = np.zeros_like(largest), np.zeros_like(largest)
    # The levels are about 13 apart, so a shift of one code step is one of 13 here; either sign of scale may be better.
    for end in (levels[0], levels[-1]):
        for shift in CANDIDATES:
            chosen = levels[nearest(values_NV * ((end + 13 * shift) * _inverse(largest)))]
            along = (values_NV * chosen).sum(axis=1, keepdims=True)
            scale = along / (chosen * chosen).sum(axis=1, keepdims=True)
            is_better = along * scale > best_gain
            best_gain = np.where(is_better, along * scale, best_gain)
            best_scale = np.where(is_better, scale, best_scale)
    half = _half(best_scale)
    return _join(half, _nibbles(nearest(values_NV * _inverse(half.astype(np.float32)))))


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
        codes = _nearest_levels(np.ldexp(values_NV, 128 - code), formats.MXFP4_LEVELS)
        error = ((levels[codes] * scale - values_NV) ** 2).sum(axis=1, keepdims=True)
        is_better = error < best_error
        best_error = np.where(is_better, error, best_error)
        best_exponent = np.where(is_better, code, best_exponent)
        best_codes = np.where(is_better, codes, best_codes)
    return _join(best_exponent.astype(np.uint8), _nibbles(best_codes))


_ENCODERS: dict[str, Callable[[Floats], Bytes]] = {
    formats.F32.name: _f32,
    formats.F16.name: _f16,
    formats.BF16.name: _bf16,
    formats.Q4_0.name: _q4_0,
    formats.Q4_1.name: _q4_1,
    formats.Q5_0.name: _q5_0,
    formats.Q5_1.name: _q5_1,
    formats.Q8_0.name: _q8_0,
    formats.Q2_K.name: _q2_k,
    formats.Q3_K.name: _q3_k,
    formats.Q4_K.name: _q4_k,
    formats.Q5_K.name: _q5_k,
    formats.Q6_K.name: _q6_k,
    formats.IQ4_NL.name: _iq4_nl,
    formats.MXFP4.name: _mxfp4,
}
