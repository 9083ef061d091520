"""What the bytes of every weight format mean, in plain numpy: the definition that kernels are held against.

Knows: the layout of a block of each format. Does not know: files, tensors' names, chips.

Letters: N blocks, V values of a block, B bytes of a block, S sub-blocks of a block that have their own scale.

Source: the block structures of ggml (`ggml-common.h`) and the GGUF specification; each function draws its layout.
Every product is rounded to float32 in the order that is written here, which is ggml's own without contraction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ridgeline.quant import formats
from ridgeline.quant.formats import Format
from ridgeline.quant.rounding import quantize

__all__ = ["dequantize", "quantize"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

CHUNK_VALUES = 1 << 18
"""Values that are in hand at once: the temporaries of a chunk (about 16 bytes a value) stay in a core's caches."""

_IQ4_NL: Floats = np.array(formats.IQ4_NL_LEVELS, dtype=np.float32)
_MXFP4: Floats = np.array(formats.MXFP4_LEVELS, dtype=np.float32)


def dequantize(data: Bytes, entry: Format, shape: tuple[int, ...]) -> Floats:
    """The values that weight bytes stand for, as float32 of `shape`.

    Args:
        data: bytes of whole blocks in row order, any shape; need not be aligned.
        entry: the format of the bytes.
        shape: shape of the result, outermost first; the last extent is a whole number of blocks.

    Memory: the result, and temporaries of one chunk.
    """
    blocks_NB = data.reshape(-1, entry.block_bytes)
    values = np.empty((blocks_NB.shape[0], entry.block_values), dtype=np.float32)
    assert values.size == int(np.prod(shape, dtype=np.int64)), (entry.name, data.size, shape)
    decode = _DECODERS[entry.name]
    step = max(1, CHUNK_VALUES // entry.block_values)
    # A damaged file may hold scales that are infinite or NaN: so are the values then, which is the truth about it.
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks_NB), step):
            values[start : start + step] = decode(np.ascontiguousarray(blocks_NB[start : start + step]))
    return values.reshape(shape)


def _half(blocks_NB: Bytes, start: int) -> Floats:
    """The float16 at byte `start` of each block, as float32 of shape (N, 1)."""
    return np.ascontiguousarray(blocks_NB[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """4-bit codes along the last axis: the low halves of all bytes, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _bits(words: Bytes) -> Bytes:
    """The 32 bits of the four bytes, lowest first, each as 0 or 1."""
    return np.unpackbits(words, axis=-1, bitorder="little")


def _crumbs(packed_NB: Bytes) -> Bytes:
    """2-bit codes of the K formats: runs of 32 bytes hold 128 values, bits 0-1 the first 32, bits 2-3 the next, ..."""
    runs = packed_NB.reshape(len(packed_NB), -1, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    codes: Bytes = (runs >> shifts) & np.uint8(3)
    return codes.reshape(len(packed_NB), -1)


def _six_bit_pairs(packed_N12: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K, each of shape (N, 8).

    Bytes 0-3: scale 0-3, and above them the top bits of scale 4-7.
    Bytes 4-7: minimum 0-3, and above them the top bits of minimum 4-7.
    Bytes 8-11: the low four bits of scale 4-7, and above them those of minimum 4-7.
    """
    first, second, third = packed_N12[:, 0:4], packed_N12[:, 4:8], packed_N12[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _by_sub_block(codes: npt.NDArray[np.integer], num_sub_blocks: int) -> Floats:
    return codes.reshape(len(codes), num_sub_blocks, -1).astype(np.float32)


def _f32(blocks_NB: Bytes) -> Floats:
    return blocks_NB.view("<f4").astype(np.float32)


def _f16(blocks_NB: Bytes) -> Floats:
    return blocks_NB.view("<f2").astype(np.float32)


def _bf16(blocks_NB: Bytes) -> Floats:
    # bfloat16 is the upper half of a float32.
    return (blocks_NB.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks_NB: Bytes) -> Floats:
    """Scale f16 | 16 bytes of codes; value = scale * (code - 8)."""
    return _half(blocks_NB, 0) * (_nibbles(blocks_NB[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks_NB: Bytes) -> Floats:
    """Scale f16 | minimum f16 | 16 bytes of codes; value = scale * code + minimum."""
    return _half(blocks_NB, 0) * _nibbles(blocks_NB[:, 4:]).astype(np.float32) + _half(blocks_NB, 2)


def _q5_0(blocks_NB: Bytes) -> Floats:
    """Scale f16 | fifth bits, 4 bytes | 16 bytes of low nibbles; value = scale * (code - 16)."""
    codes = _nibbles(blocks_NB[:, 6:]) | (_bits(blocks_NB[:, 2:6]) << 4)
    return _half(blocks_NB, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks_NB: Bytes) -> Floats:
    """Scale f16 | minimum f16 | fifth bits, 4 bytes | 16 bytes of low nibbles; value = scale * code + minimum."""
    codes = _nibbles(blocks_NB[:, 8:]) | (_bits(blocks_NB[:, 4:8]) << 4)
    return _half(blocks_NB, 0) * codes.astype(np.float32) + _half(blocks_NB, 2)


def _q8_0(blocks_NB: Bytes) -> Floats:
    """Scale f16 | 32 signed bytes; value = scale * code."""
    return _half(blocks_NB, 0) * blocks_NB[:, 2:].view(np.int8).astype(np.float32)


def _q2_k(blocks_NB: Bytes) -> Floats:
    """16 bytes of (scale, minimum) nibbles | 64 bytes of 2-bit codes | scale f16 | minimum f16; 16 sub-blocks of 16."""
    pairs_NS = blocks_NB[:, 0:16]
    scales_NS = _half(blocks_NB, 80) * (pairs_NS & 15).astype(np.float32)
    minima_NS = _half(blocks_NB, 82) * (pairs_NS >> 4).astype(np.float32)
    codes = _by_sub_block(_crumbs(blocks_NB[:, 16:80]), 16)
    return (scales_NS[:, :, None] * codes - minima_NS[:, :, None]).reshape(-1, 256)


def _q3_k(blocks_NB: Bytes) -> Floats:
    """32 bytes of third bits | 64 bytes of 2-bit codes | 12 bytes of 6-bit scales | scale f16; 16 sub-blocks of 16.

    Bit b of third-bit byte i belongs to value 32 * b + i; a value whose third bit is not set is lowered by 4.
    Scale s: low four bits in nibble s // 8 of byte s % 8; high two in bits 2 * (s // 4) of byte 8 + s % 4; less 32.
    """
    third_bits = ((blocks_NB[:, None, 0:32] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1).reshape(-1, 256)
    codes = _crumbs(blocks_NB[:, 32:96]).astype(np.int8) + (third_bits.astype(np.int8) << 2) - 4
    low_NS = _nibbles(blocks_NB[:, 96:104])
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, :, None]
    high_NS = ((blocks_NB[:, None, 104:108] >> shifts) & 3).reshape(-1, 16)
    scales_NS = _half(blocks_NB, 108) * ((low_NS | (high_NS << 4)).astype(np.float32) - 32)
    return (scales_NS[:, :, None] * _by_sub_block(codes, 16)).reshape(-1, 256)


def _four_bit_runs(packed_NB: Bytes) -> Bytes:
    """4-bit codes of Q4_K and Q5_K: each run of 32 bytes holds 64 values, low nibbles first."""
    return _nibbles(packed_NB.reshape(len(packed_NB), 4, 32)).reshape(len(packed_NB), 256)


def _scaled_less_minimum(blocks_NB: Bytes, codes: Bytes) -> Floats:
    """The common part of Q4_K and Q5_K: scale f16 | minimum f16 | 12 bytes of 6-bit pairs; 8 sub-blocks of 32."""
    scale_codes_NS, minimum_codes_NS = _six_bit_pairs(blocks_NB[:, 4:16])
    scales_NS = _half(blocks_NB, 0) * scale_codes_NS
    minima_NS = _half(blocks_NB, 2) * minimum_codes_NS
    return (scales_NS[:, :, None] * _by_sub_block(codes, 8) - minima_NS[:, :, None]).reshape(-1, 256)


def _q4_k(blocks_NB: Bytes) -> Floats:
    """The 16 common bytes | 128 bytes of 4-bit codes."""
    return _scaled_less_minimum(blocks_NB, _four_bit_runs(blocks_NB[:, 16:144]))


def _q5_k(blocks_NB: Bytes) -> Floats:
    """The 16 common bytes | 32 bytes of fifth bits (bit s of byte i: value i of sub-block s) | 128 bytes of nibbles."""
    fifth_bits: Bytes = (blocks_NB[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & np.uint8(1)
    codes = _four_bit_runs(blocks_NB[:, 48:176]) | (fifth_bits.reshape(-1, 256) << np.uint8(4))
    return _scaled_less_minimum(blocks_NB, codes)


def _q6_k(blocks_NB: Bytes) -> Floats:
    """128 bytes of low nibbles | 64 bytes of top 2-bit pieces | 16 signed scales | scale f16; 16 sub-blocks of 16.

    Each half of the block: 64 bytes whose low nibbles are values 0-63 and high nibbles values 64-127, and 32 bytes
    whose bits 0-1, 2-3, 4-5, 6-7 top values 0-31, 32-63, 64-95, 96-127. Less 32.
    """
    low = _nibbles(blocks_NB[:, 0:128].reshape(-1, 2, 64)).reshape(-1, 256)
    codes = (low | (_crumbs(blocks_NB[:, 128:192]) << 4)).astype(np.int8) - 32
    scales_NS = _half(blocks_NB, 208) * blocks_NB[:, 192:208].view(np.int8).astype(np.float32)
    return (scales_NS[:, :, None] * _by_sub_block(codes, 16)).reshape(-1, 256)


def _iq4_nl(blocks_NB: Bytes) -> Floats:
    """Scale f16 | 16 bytes of codes; value = scale * level of the code."""
    return _half(blocks_NB, 0) * _IQ4_NL[_nibbles(blocks_NB[:, 2:])]


def _mxfp4(blocks_NB: Bytes) -> Floats:
    """Exponent byte e | 16 bytes of FP4 codes; value = 2^(e - 127) * FP4. Source: OCP microscaling formats 1.0."""
    scale_N1 = np.ldexp(np.float32(1), blocks_NB[:, 0:1].astype(np.int32) - 128).astype(np.float32)
    return scale_N1 * _MXFP4[_nibbles(blocks_NB[:, 1:])]


_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
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
