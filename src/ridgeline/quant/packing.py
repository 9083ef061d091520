"""The bytes of a block, from its scales and codes: the other half of `reference`, which draws each layout.

Knows: the layout of a block of each format. Does not know: how scales and codes were chosen.

Letters: N blocks, V values of a block, S sub-blocks of a block. All codes are whole numbers of any integer type.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ridgeline.errors import UserError

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.float16]
Codes = npt.NDArray[np.int32]


def half(values: npt.NDArray[np.floating]) -> Halves:
    """Values as float16; UserError where one is beyond its range."""
    halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise UserError(
            "a value or a scale is beyond the range of float16 (65,504)", hint="use BF16 or F32 for this tensor"
        )
    return halves


def rows_as_bytes(array: npt.NDArray[np.generic]) -> Bytes:
    """The bytes of each row of `array`."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)


def join(*parts: npt.NDArray[np.generic]) -> Bytes:
    """The bytes of each row of each part, one part after the other."""
    return np.concatenate([rows_as_bytes(part) for part in parts], axis=1)


def nibbles(codes: Codes) -> Bytes:
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


def _six_bit_pairs(scale_codes_N8: Codes, minimum_codes_N8: Codes) -> Bytes:
    """The twelve bytes of eight 6-bit scales and minima; `reference._six_bit_pairs` draws them."""
    low_scales, high_scales = scale_codes_N8[:, :4], scale_codes_N8[:, 4:]
    low_minima, high_minima = minimum_codes_N8[:, :4], minimum_codes_N8[:, 4:]
    first = low_scales | (high_scales >> 4 << 6)
    second = low_minima | (high_minima >> 4 << 6)
    third = (high_scales & 15) | ((high_minima & 15) << 4)
    return np.concatenate([first, second, third], axis=1).astype(np.uint8)


def _four_bit_runs(codes_N256: Codes) -> Bytes:
    return nibbles(codes_N256.reshape(-1, 4, 64)).reshape(-1, 128)


def q4_0(scale: Halves, codes: Codes) -> Bytes:
    """Codes in -8 .. 7."""
    return join(scale, nibbles(codes + 8))


def q5_0(scale: Halves, codes: Codes) -> Bytes:
    """Codes in -16 .. 15."""
    return join(scale, _fifth_bits(codes + 16), nibbles(codes + 16))


def q4_1(scale: Halves, minimum: Halves, codes: Codes) -> Bytes:
    """Codes in 0 .. 15."""
    return join(scale, minimum, nibbles(codes))


def q5_1(scale: Halves, minimum: Halves, codes: Codes) -> Bytes:
    """Codes in 0 .. 31."""
    return join(scale, minimum, _fifth_bits(codes), nibbles(codes))


def q8_0(scale: Halves, codes: Codes) -> Bytes:
    """Codes in -127 .. 127."""
    return join(scale, codes.astype(np.int8))


def iq4_nl(scale: Halves, codes: Codes) -> Bytes:
    """Codes are indices of levels."""
    return join(scale, nibbles(codes))


def q2_k(scale: Halves, minimum: Halves, scale_codes: Codes, minimum_codes: Codes, codes: Codes) -> Bytes:
    """Scale and minimum codes in 0 .. 15, codes in 0 .. 3."""
    return join((scale_codes | (minimum_codes << 4)).astype(np.uint8), _crumbs(codes), scale, minimum)


def q4_k(scale: Halves, minimum: Halves, scale_codes: Codes, minimum_codes: Codes, codes: Codes) -> Bytes:
    """Scale and minimum codes in 0 .. 63, codes in 0 .. 15."""
    return join(scale, minimum, _six_bit_pairs(scale_codes, minimum_codes), _four_bit_runs(codes))


def q5_k(scale: Halves, minimum: Halves, scale_codes: Codes, minimum_codes: Codes, codes: Codes) -> Bytes:
    """Scale and minimum codes in 0 .. 63, codes in 0 .. 31."""
    pairs = _six_bit_pairs(scale_codes, minimum_codes)
    return join(scale, minimum, pairs, _bit_planes(codes >> 4), _four_bit_runs(codes))


def q3_k(scale: Halves, scale_codes: Codes, codes: Codes) -> Bytes:
    """Scale codes in -32 .. 31, codes in -4 .. 3."""
    lifted, lifted_scales = codes + 4, scale_codes + 32
    top_pieces = (lifted_scales >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6]).reshape(1, 4, 1)
    tops = np.bitwise_or.reduce(top_pieces, axis=1).astype(np.uint8)
    return join(_bit_planes(lifted >> 2), _crumbs(lifted), nibbles(lifted_scales), tops, scale)


def q6_k(scale: Halves, scale_codes: Codes, codes: Codes) -> Bytes:
    """Scale codes in -128 .. 127, codes in -32 .. 31."""
    lifted = codes + 32
    low = nibbles(lifted.reshape(-1, 2, 128)).reshape(-1, 128)
    return join(low, _crumbs(lifted >> 4), scale_codes.astype(np.int8), scale)
