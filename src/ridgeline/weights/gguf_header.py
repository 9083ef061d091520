"""The head of one GGUF file: its key-value pairs and its table of tensors, read strictly.

Knows: the GGUF layout, versions 2 and 3. Does not know: what a key means, other than `general.alignment`.

    magic "GGUF" | version u32 | number of tensors u64 | number of pairs u64
    pairs:    key (length u64, bytes) | type u32 | value; an array's value is its item type u32, count u64, items
    tensors:  name (length u64, bytes) | number of dimensions u32 | dimensions u64, innermost first | type u32
              | offset u64
    padding to the alignment, then the tensors' bytes; offsets count from there

Every number is taken as a claim: it is held against what is left of the file before anything is done with it, so a
hostile file costs no more memory than its own bytes, and every fault names the file and the field.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ridgeline.errors import ModelFileError
from ridgeline.quant.formats import BY_GGUF_TYPE, FORMATS, Format
from ridgeline.weights.lazy_strings import find_strings
from ridgeline.weights.mapped_file import MappedFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT_BYTES = 32

# Bounds far above every model that exists, far below what would hurt.
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_NAME_BYTES = 255
MAX_KEY_BYTES = (1 << 16) - 1  # the specification's own
MAX_TEXT_BYTES = 1 << 26  # a whole tokenizer.json may ride in a pair; that of Gemma 3 takes 33 MB
MAX_ARRAY_STRINGS = 1 << 22
MAX_ARRAY_BYTES = 1 << 26  # all arrays of numbers together, since they are copied out
MAX_ALIGNMENT_BYTES = 1 << 20
MAX_DIMENSIONS = 4

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_SCALAR_PARSERS = {kind: struct.Struct(code) for kind, code in _SCALARS.items()}
_ITEM_TYPES = {kind: np.dtype(code) for kind, code in _SCALARS.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    40: "NVFP4",
}  # fmt: skip
"""Names of the types that ggml has and Ridgeline has not, to say them in an error."""

OLD_MAGICS = {b"ggml"[::-1]: "GGML", b"ggmf"[::-1]: "GGMF", b"ggjt"[::-1]: "GGJT", b"ggla"[::-1]: "GGLA"}
"""What llama.cpp wrote before GGUF (2023); the magic is a little-endian number."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of a file's table of tensors."""

    name: str
    shape: tuple[int, ...]
    """Outermost first."""
    format: Format
    start: int
    """Byte of the file at which the tensor's bytes begin."""
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What the head of a GGUF file says."""

    version: int
    metadata: dict[str, Any]
    """Numbers and texts as Python values, arrays of numbers as numpy arrays, arrays of strings as `LazyStrings`."""
    tensors: dict[str, TensorEntry]
    """In file order."""
    size_bytes: int
    """Bytes before the data section."""


def read_header(file: MappedFile) -> GgufHeader:
    """The head of a GGUF file, checked against the file's size; ModelFileError names what is wrong with it.

    Memory: the metadata; cost: some microseconds per pair and tensor, about 25 ns per string of a vocabulary.
    """
    return _Reader(file).header()


class _Reader:
    """Walks over the head of a file.

    Holds: the position of the next byte to read, moved by each `_read...`.
    """

    def __init__(self, file: MappedFile) -> None:
        self.path: Path = file.path
        self.data = file.data
        self.buffer = file.data.data
        self.size = file.size_bytes
        self.position = 0
        self.array_bytes = 0

    def header(self) -> GgufHeader:
        version = self._read_version()
        num_tensors = self._read_count("number of tensors", MAX_TENSORS, smallest_bytes=8 + 1 + 4 + 8 + 4 + 8)
        num_pairs = self._read_count("number of key-value pairs", MAX_PAIRS, smallest_bytes=8 + 1 + 4 + 1)
        metadata: dict[str, Any] = {}
        for index in range(num_pairs):
            key = self._read_name(f"key {index}", MAX_KEY_BYTES)
            if key in metadata:
                self._fail(key, "is given twice")
            metadata[key] = self._read_value(key)
        claims = [self._read_tensor_claim(index) for index in range(num_tensors)]
        size_bytes = self.position
        tensors = self._placed(claims, alignment_bytes=self._alignment(metadata))
        return GgufHeader(version=version, metadata=metadata, tensors=tensors, size_bytes=size_bytes)

    def _fail(self, field: str, what: str, hint: str = "the file is damaged: fetch it again") -> NoReturn:
        raise ModelFileError(f"{self.path}: {field}: {what}", hint=hint)

    def _need(self, num_bytes: int, field: str) -> None:
        if num_bytes > self.size - self.position:
            self._fail(
                field,
                f"needs {num_bytes} bytes, but only {self.size - self.position} are left in the file",
                "the file is truncated or damaged: fetch it again",
            )

    def _read_u32(self, field: str) -> int:
        self._need(4, field)
        (value,) = _U32.unpack_from(self.buffer, self.position)
        self.position += 4
        return int(value)

    def _read_u64(self, field: str) -> int:
        self._need(8, field)
        (value,) = _U64.unpack_from(self.buffer, self.position)
        self.position += 8
        return int(value)

    def _read_version(self) -> int:
        self._need(len(MAGIC), "magic")
        magic = self.data[:4].tobytes()
        if magic in OLD_MAGICS:
            self._fail(
                "magic",
                f"is that of {OLD_MAGICS[magic]}, a format from before GGUF",
                "fetch the model as GGUF, or convert the original weights anew",
            )
        if magic != MAGIC:
            self._fail("magic", f"is {magic!r}, not {MAGIC!r}", "this is not a GGUF file")
        self.position = 4
        version = self._read_u32("version")
        if version not in VERSIONS:
            self._refuse_version(version)
        return version

    def _refuse_version(self, version: int) -> NoReturn:
        if int.from_bytes(version.to_bytes(4, "little"), "big") <= max(VERSIONS):
            self._fail("version", "the file is big-endian", "fetch the little-endian file of the model")
        if version == 1:
            self._fail("version", "is 1, which was in use for weeks in 2023", "fetch a newer conversion of the model")
        self._fail("version", f"is {version}; 2 and 3 are supported", "the file is damaged, or newer than this program")

    def _read_count(self, field: str, limit: int, *, smallest_bytes: int) -> int:
        """A number of things of at least `smallest_bytes` each, so no more than the rest of the file can hold."""
        count = self._read_u64(field)
        allowed = min(limit, (self.size - self.position) // smallest_bytes)
        if count > allowed:
            self._fail(field, f"is {count}, but a file of {self.size} bytes holds at most {allowed}")
        return count

    def _read_text(self, field: str, max_bytes: int) -> str:
        length = self._read_u64(field)
        if length > max_bytes:
            self._fail(field, f"says it is {length} bytes long; at most {max_bytes} are allowed")
        self._need(length, field)
        text = self.data[self.position : self.position + length].tobytes()
        self.position += length
        try:
            return text.decode()
        except UnicodeDecodeError:
            self._fail(field, f"{text[:32]!r} is not UTF-8 text")

    def _read_name(self, field: str, max_bytes: int) -> str:
        name = self._read_text(field, max_bytes)
        # Names get into messages; one with control characters could play tricks on a terminal.
        if not name or not name.isprintable():
            self._fail(field, "is empty" if not name else f"{name[:64]!r} has characters that cannot be printed")
        return name

    def _read_value(self, key: str) -> Any:
        kind = self._read_u32(key)
        if kind == _STRING:
            return self._read_text(key, MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self._read_array(key)
        if kind == _BOOL:
            self._need(1, key)
            byte = int(self.data[self.position])
            self.position += 1
            if byte > 1:
                self._fail(key, f"is a truth value of {byte}; only 0 and 1 are")
            return byte == 1
        if kind not in _SCALAR_PARSERS:
            self._fail(key, f"has value type {kind}; types 0 to 12 exist")
        parser = _SCALAR_PARSERS[kind]
        self._need(parser.size, key)
        (value,) = parser.unpack_from(self.buffer, self.position)
        self.position += parser.size
        return value

    def _read_array(self, key: str) -> Any:
        kind = self._read_u32(key)
        count = self._read_u64(key)
        if kind == _STRING:
            allowed = min(MAX_ARRAY_STRINGS, (self.size - self.position) // 8)
            if count > allowed:
                self._fail(key, f"says it has {count} strings; at most {allowed} can follow")
            strings = find_strings(self.data, self.position, count, f"{self.path}: {key}")
            self.position += len(strings.data)
            return strings
        if kind == _ARRAY:
            self._fail(key, "is an array of arrays, which is not supported")
        item_type = np.dtype(np.uint8) if kind == _BOOL else _ITEM_TYPES.get(kind)
        if item_type is None:
            self._fail(key, f"has items of type {kind}; types 0 to 12 exist")
        num_bytes = count * item_type.itemsize
        self._need(num_bytes, key)
        self.array_bytes += num_bytes
        if self.array_bytes > MAX_ARRAY_BYTES:
            self._fail(key, f"brings the arrays to {self.array_bytes} bytes; at most {MAX_ARRAY_BYTES} are allowed")
        items = self.data[self.position : self.position + num_bytes].copy().view(item_type)
        self.position += num_bytes
        if kind == _BOOL:
            if (items > 1).any():
                self._fail(key, "has truth values other than 0 and 1")
            items = items.view(np.bool_)
        items.flags.writeable = False
        return items

    def _read_tensor_claim(self, index: int) -> tuple[str, tuple[int, ...], Format, int]:
        name = self._read_name(f"name of tensor {index}", MAX_NAME_BYTES)
        field = f"tensor {name}"
        num_dimensions = self._read_u32(field)
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            self._fail(field, f"has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")
        self._need(8 * num_dimensions + 4 + 8, field)
        *dimensions, kind, offset = struct.unpack_from(f"<{num_dimensions}QIQ", self.buffer, self.position)
        self.position += 8 * num_dimensions + 4 + 8
        entry = BY_GGUF_TYPE.get(kind)
        if entry is None:
            label = (
                f"{OTHER_TYPES[kind]} (type {kind})" if kind in OTHER_TYPES else f"type {kind}, which does not exist"
            )
            self._fail(
                field, f"is stored as {label}", f"fetch a file in another format: {', '.join(f.name for f in FORMATS)}"
            )
        if 0 in dimensions:
            self._fail(field, f"has a dimension of 0: {tuple(reversed(dimensions))}")
        if dimensions[0] % entry.block_values:
            self._fail(field, f"has rows of {dimensions[0]}, but blocks of {entry.name} hold {entry.block_values}")
        return name, tuple(reversed(dimensions)), entry, offset

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
        is_whole = isinstance(alignment, int) and not isinstance(alignment, bool)
        if not is_whole or not 1 <= alignment <= MAX_ALIGNMENT_BYTES or alignment & (alignment - 1):
            self._fail("general.alignment", f"is {alignment!r}; it must be a power of two up to {MAX_ALIGNMENT_BYTES}")
        return int(alignment)

    def _placed(
        self, claims: list[tuple[str, tuple[int, ...], Format, int]], *, alignment_bytes: int
    ) -> dict[str, TensorEntry]:
        """The tensors with their places: inside the file, aligned, apart from each other, under different names."""
        data_start = -(-self.position // alignment_bytes) * alignment_bytes
        tensors: dict[str, TensorEntry] = {}
        for name, shape, entry, offset in claims:
            field = f"tensor {name}"
            if name in tensors:
                self._fail(field, "is given twice")
            num_values = 1
            for extent in shape:
                num_values *= extent
            num_bytes = num_values // entry.block_values * entry.block_bytes
            if offset % alignment_bytes:
                self._fail(field, f"begins at offset {offset}, not a multiple of the alignment, {alignment_bytes}")
            start = data_start + offset
            if start + num_bytes > self.size:
                self._fail(
                    field,
                    f"({entry.name}, shape {shape}) would end at byte {start + num_bytes} of {self.size}",
                    "the file is truncated or damaged: fetch it again",
                )
            tensors[name] = TensorEntry(name, shape, entry, start, start + num_bytes)
        in_order = sorted(tensors.values(), key=lambda tensor: tensor.start)
        for before, after in itertools.pairwise(in_order):
            if before.end > after.start:
                self._fail(f"tensor {after.name}", f"overlaps tensor {before.name}")
        return tensors
