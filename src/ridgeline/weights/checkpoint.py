"""What every kind of model file looks like from above: named tensors and facts about the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Protocol

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


class Checkpoint(Protocol):
    """An opened model: its tensors by the names in the file, its hyper-parameters, and what its tokenizer needs.

    Opening one checks everything that can be checked without reading the weights: magic, sizes, that every tensor lies
    inside the file and none overlaps another.
    """

    @property
    def path(self) -> Path:
        """The file or folder it was opened from."""

    @property
    def kind(self) -> str:
        """"gguf" or "safetensors": which naming convention the tensors and hyper-parameters follow."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF: the key-value pairs. safetensors: the content of `config.json`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in file order."""

    def tensor(self, name: str) -> HostTensor:
        """The tensor of that name; ModelFileError if there is none."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without touching its bytes."""

    def fingerprint(self) -> str:
        """A hex digest that changes when the files do: over header bytes, sizes and modification times."""

    def close(self) -> None:
        """Give back the mapping; tensors made from it are invalid from then on."""
