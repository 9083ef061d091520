"""What every kind of model file looks like from above: named tensors and facts about the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ridgeline.quant.formats import Format
from ridgeline.quant.tensor import HostTensor


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
        """Which naming convention the tensors and hyper-parameters follow: "gguf" or "safetensors"."""

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

    def format(self, name: str) -> Format:
        """Its format, without touching its bytes."""

    def fingerprint(self) -> str:
        """A hex digest that changes when the files do: over header bytes, sizes and modification times."""

    def release(self) -> None:
        """Give back the memory that tensors took when they were read; they stay valid, and can be read again."""

    def close(self) -> None:
        """Give back the mapping; tensors made from it are invalid from then on."""
