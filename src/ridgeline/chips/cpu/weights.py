"""Weights as the CPU chip holds them: where their packed bytes lie in memory, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ridgeline.chips.cpu import _native


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CpuMatrix:
    """A matrix in tiles (kernels/matmul.h). `owner` keeps the memory; the address is valid as long as it lives."""

    name: str
    format: int
    """The format's number, `Format.gguf_type`."""
    rows: int
    width: int
    address: int
    owner: object

    @property
    def native(self) -> _native.Matrix:
        """The same for the kernels."""
        return _native.Matrix(self.format, self.rows, self.width, self.address)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CpuVector:
    """A vector of float32. `owner` keeps the memory; the address is valid as long as it lives."""

    name: str
    width: int
    address: int
    owner: object


CpuWeight: TypeAlias = CpuMatrix | CpuVector
