"""GGUF files as a `Checkpoint`: one file, or the numbered parts of one model.

Knows: how parts are named and what they say about each other. Does not know: what a key or a tensor means.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ridgeline.errors import ModelFileError
from ridgeline.quant.formats import Format
from ridgeline.quant.tensor import HostTensor
from ridgeline.weights.gguf_header import GgufHeader, TensorEntry, read_header
from ridgeline.weights.mapped_file import MappedFile

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_PARTS = 999


class GgufCheckpoint:
    """A model in GGUF files.

    Holds: the mapped files; changed by: `close`, which lets go of them. Metadata stay usable after that.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, with all other parts if it is one of several; ModelFileError names the file and the fault."""
        self._path = path
        self._files = [MappedFile(part) for part in part_paths(path)]
        headers = [read_header(file) for file in self._files]
        self._header_sizes_bytes = [header.size_bytes for header in headers]
        self._metadata = headers[0].metadata
        self._fingerprint = ""
        self._tensors: dict[str, tuple[TensorEntry, MappedFile]] = {}
        for file, header in zip(self._files, headers):
            for name, entry in header.tensors.items():
                if name in self._tensors:
                    other = self._tensors[name][1].path
                    raise ModelFileError(f"{file.path}: tensor {name}: is in {other.name} already")
                self._tensors[name] = (entry, file)
        if len(headers) > 1:
            self._check_parts(headers)

    def _check_parts(self, headers: list[GgufHeader]) -> None:
        """Hold what the parts say about their number and their tensors against what is there."""
        for number, (file, header) in enumerate(zip(self._files, headers)):
            facts = {"split.no": number, "split.count": len(headers), "split.tensors.count": len(self._tensors)}
            for key, expected in facts.items():
                found = header.metadata.get(key)
                if found != expected:
                    raise ModelFileError(
                        f"{file.path}: {key}: is {found!r}, but the parts that are there make it {expected}",
                        hint="the parts do not belong together: fetch the model again",
                    )

    @property
    def path(self) -> Path:
        """The file it was opened from."""
        return self._path

    @property
    def kind(self) -> str:
        """Always "gguf"."""
        return "gguf"

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The key-value pairs (of the first part): see `GgufHeader.metadata` for the values' types."""
        return MappingProxyType(self._metadata)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in file order."""
        return tuple(self._tensors)

    def tensor(self, name: str) -> HostTensor:
        """The tensor of that name, its bytes a view of the mapped file; ModelFileError if there is none."""
        entry, file = self._found(name)
        return HostTensor(name=name, shape=entry.shape, format=entry.format, data=file.data[entry.start : entry.end])

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, outermost first, without touching its bytes."""
        return self._found(name)[0].shape

    def format(self, name: str) -> Format:
        """Its format, without touching its bytes."""
        return self._found(name)[0].format

    def _found(self, name: str) -> tuple[TensorEntry, MappedFile]:
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelFileError(f"{self._path}: there is no tensor {name}") from None

    def fingerprint(self) -> str:
        """A hex digest over the heads, sizes and modification times of the files; reads a few MB, once."""
        if not self._fingerprint:
            digest = hashlib.sha256()
            for file, size_bytes in zip(self._files, self._header_sizes_bytes):
                digest.update(f"{file.size_bytes} {file.modified_nanoseconds} {size_bytes} ".encode())
                digest.update(file.data[:size_bytes].data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def release(self) -> None:
        """Give back the memory of all that was read; it is read again when it is touched."""
        for file in self._files:
            file.release()

    def close(self) -> None:
        """Let go of the files: no tensor can be had any more; those in hand keep the mapping alive."""
        self._files = []
        self._tensors = {}


def part_paths(path: Path) -> list[Path]:
    """The files of the model that `path` belongs to, in order: itself, or all parts `-00001-of-0000N`."""
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= MAX_PARTS:
        raise ModelFileError(f"{path}: the name says it is one of {count} parts; 1 to {MAX_PARTS} are allowed")
    paths = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise ModelFileError(
            f"{path}: is one of {count} parts, of which {len(missing)} are missing: {', '.join(missing[:3])}",
            hint="put all parts into one folder",
        )
    return paths
