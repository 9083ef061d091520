"""Writers of GGUF and safetensors files.

Knows: the two layouts. Does not know: what keys and names mean. The readers hold every claim of a file; the writers
need not, and refuse only what the layout cannot express.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ridgeline.errors import UserError
from ridgeline.quant.tensor import HostTensor
from ridgeline.weights.disk import disk_errors, replacing
from ridgeline.weights.gguf_header import DEFAULT_ALIGNMENT_BYTES, MAGIC
from ridgeline.weights.safetensors import CONFIG_NAME, FORMAT_OF_DTYPE, INDEX_NAME

_DTYPE_OF_FORMAT = {entry.name: dtype for dtype, entry in FORMAT_OF_DTYPE.items()}
_GGUF_TYPE_OF_DTYPE = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7,
    "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_ROOM_HINT = "free some space, or write elsewhere"


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[HostTensor],
    *,
    version: int = 3,
    alignment_bytes: int = DEFAULT_ALIGNMENT_BYTES,
) -> None:
    """Write a GGUF file; an existing one is replaced when the new one is whole.

    Args:
        path: the file.
        metadata: strings, truth values, whole numbers (as the smallest of u32, i32, u64, i64 that holds them), floats
            (as f32), numpy scalars and arrays (as their own type), and sequences of strings.
        tensors: in the order that they get in the file.
        version: 2 or 3; they differ in nothing that is written here.
        alignment_bytes: of each tensor; one other than 32 is recorded as `general.alignment`.
    """
    if alignment_bytes != DEFAULT_ALIGNMENT_BYTES:
        metadata = {**metadata, "general.alignment": alignment_bytes}
    head = [MAGIC, struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_gguf_text(key), _gguf_value(key, value)]
    offset = 0
    for tensor in tensors:
        extents = tuple(reversed(tensor.shape))
        numbers = struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, tensor.format.gguf_type, offset)
        head += [_gguf_text(tensor.name), numbers]
        offset = _rounded_up(offset + tensor.data.nbytes, alignment_bytes)
    with disk_errors(path.parent, hint=_ROOM_HINT), replacing(path) as file:
        file.write(b"".join(head))
        for tensor in tensors:
            file.write(bytes(_rounded_up(file.tell(), alignment_bytes) - file.tell()))
            file.write(tensor.data.data)


def _rounded_up(position: int, step: int) -> int:
    return -(-position // step) * step


def _gguf_text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _gguf_value(key: str, value: Any) -> bytes:
    """The type and the bytes of a value."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _gguf_text(value)
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_gguf_text(item) for item in value)
    if isinstance(value, Sequence):
        value = np.asarray(value, dtype=np.float32 if any(isinstance(item, float) for item in value) else None)
        if value.dtype == np.int64 and value.size and abs(value).max() < 1 << 31:
            value = value.astype(np.int32)
    if isinstance(value, np.ndarray):
        kind = _gguf_type(key, value)
        return struct.pack("<IIQ", _ARRAY, kind, value.size) + _little_endian(value)
    scalar = _scalar(value)
    return struct.pack("<I", _gguf_type(key, scalar)) + _little_endian(scalar)


def _little_endian(array: npt.NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _scalar(value: Any) -> npt.NDArray[Any]:
    """A number as an array without dimensions, of the type that it is written as."""
    if isinstance(value, (bool, np.generic)):
        return np.asarray(value)
    if isinstance(value, float):
        return np.asarray(value, dtype=np.float32)
    for kind in (np.uint32, np.int32, np.uint64, np.int64):
        if isinstance(value, int) and np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            return np.asarray(value, dtype=kind)
    raise UserError(f"{value!r} cannot be written as a GGUF value")


def _gguf_type(key: str, value: npt.NDArray[Any]) -> int:
    kind = _GGUF_TYPE_OF_DTYPE.get(value.dtype.name)
    if kind is None:
        raise UserError(f"{key}: numbers of type {value.dtype.name} cannot be written to a GGUF file")
    return kind


def write_safetensors(folder: Path, config: Mapping[str, Any], shards: Sequence[Sequence[HostTensor]]) -> None:
    """Write `config.json` and the weights into a folder, which is made if need be.

    Args:
        folder: where to.
        config: the content of `config.json`.
        shards: the tensors of each file; one file is called `model.safetensors`, several are numbered and indexed.
    """
    with disk_errors(folder, hint=_ROOM_HINT):
        folder.mkdir(parents=True, exist_ok=True)
        weight_map: dict[str, str] = {}
        for number, tensors in enumerate(shards, start=1):
            one_of_several = f"model-{number:05}-of-{len(shards):05}.safetensors"
            name = one_of_several if len(shards) > 1 else "model.safetensors"
            weight_map.update(dict.fromkeys((tensor.name for tensor in tensors), name))
            with replacing(folder / name) as file:
                _write_safetensors_file(file, tensors)
        if len(shards) > 1:
            total = sum(tensor.data.nbytes for tensors in shards for tensor in tensors)
            _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _write_json(folder / CONFIG_NAME, dict(config))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2).encode())


def _write_safetensors_file(file: BinaryIO, tensors: Sequence[HostTensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        if tensor.format.name not in _DTYPE_OF_FORMAT:
            raise UserError(
                f"tensor {tensor.name}: {tensor.format.name} cannot be written to a safetensors file",
                hint="write a GGUF file instead",
            )
        end = position + tensor.data.nbytes
        dtype = _DTYPE_OF_FORMAT[tensor.format.name]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    content = json.dumps(header, separators=(",", ":")).encode()
    # Spaces up to a multiple of eight keep the tensors aligned, as the format asks.
    content += b" " * (-len(content) % 8)
    file.write(struct.pack("<Q", len(content)) + content)
    for tensor in tensors:
        file.write(tensor.data.data)
