"""The table of weight formats: how many values a block holds and how many bytes it takes.

The bytes of each format are those of the GGUF files (ggml), since that is where quantised weights come from; a plain
format is a block of one value. Source of the layouts: the GGUF specification and ggml's `ggml-common.h`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A weight format.

    A row of a matrix is a whole number of blocks, each `block_values` values in `block_bytes` bytes.
    """

    name: str
    gguf_type: int
    """The number that GGUF files use for it."""
    block_values: int
    block_bytes: int

    @property
    def is_quantised(self) -> bool:
        """Whether values share a scale."""
        return self.block_values > 1

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8 * self.block_bytes / self.block_values

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` values; `width` must be a multiple of `block_values`."""
        assert width % self.block_values == 0, (self.name, width)
        return width // self.block_values * self.block_bytes


def _format(name: str, gguf_type: int, block_values: int, block_bytes: int) -> Format:
    return Format(name=name, gguf_type=gguf_type, block_values=block_values, block_bytes=block_bytes)


F32 = _format("F32", 0, 1, 4)
F16 = _format("F16", 1, 1, 2)
Q4_0 = _format("Q4_0", 2, 32, 18)
Q4_1 = _format("Q4_1", 3, 32, 20)
Q5_0 = _format("Q5_0", 6, 32, 22)
Q5_1 = _format("Q5_1", 7, 32, 24)
Q8_0 = _format("Q8_0", 8, 32, 34)
Q2_K = _format("Q2_K", 10, 256, 84)
Q3_K = _format("Q3_K", 11, 256, 110)
Q4_K = _format("Q4_K", 12, 256, 144)
Q5_K = _format("Q5_K", 13, 256, 176)
Q6_K = _format("Q6_K", 14, 256, 210)
IQ4_NL = _format("IQ4_NL", 20, 32, 18)
BF16 = _format("BF16", 30, 1, 2)
MXFP4 = _format("MXFP4", 39, 32, 17)

FORMATS: tuple[Format, ...] = (
    F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, MXFP4,
)  # fmt: skip
BY_NAME = {entry.name: entry for entry in FORMATS}
BY_GGUF_TYPE = {entry.gguf_type: entry for entry in FORMATS}

IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen levels that an IQ4_NL code stands for. Source: ggml's `ggml-common.h`."""

MXFP4_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the sixteen values of an FP4 E2M1 code (sign, two exponent bits, one mantissa bit); the scale is halved."""
