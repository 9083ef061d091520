"""A weight tensor on the host: its shape, its format, its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.quant.formats import Format


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTensor:
    """A tensor as it lies in its file.

    Holds: the raw bytes, usually a view of a memory-mapped file (valid while its `Checkpoint` is open).
    `shape` is outermost first (a matrix is (rows, width), width contiguous, that is out x in), as numpy has it.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    data: npt.NDArray[np.uint8]
    """One-dimensional; `rows * format.row_bytes(width)` long."""

    @property
    def num_values(self) -> int:
        """Number of weights."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    def rows(self, start: int, end: int) -> HostTensor:
        """The rows [start, end) of a matrix, sharing memory."""
        row_bytes = self.format.row_bytes(self.shape[-1])
        return HostTensor(
            name=self.name,
            shape=(end - start, *self.shape[1:]),
            format=self.format,
            data=self.data[start * row_bytes : end * row_bytes],
        )

    def take_rows(self, order: npt.NDArray[np.intp]) -> HostTensor:
        """The rows of a matrix in another order, copied."""
        row_bytes = self.format.row_bytes(self.shape[-1])
        rows = self.data.reshape(-1, row_bytes)[order]
        return HostTensor(
            name=self.name, shape=(len(order), *self.shape[1:]), format=self.format, data=rows.reshape(-1)
        )
