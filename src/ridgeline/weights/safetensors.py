"""safetensors files with their `config.json` as a `Checkpoint`: one file, or the shards that an index lists.

Knows: the safetensors layout, the index. Does not know: what a tensor or a key of the configuration means. Nothing in
a folder is ever executed: `auto_map` in a configuration is an entry like any other, and pickles are not opened.

    length of the header u64 | header, a JSON object | the tensors' bytes, without gaps
    header: {"name": {"dtype": "BF16", "shape": [rows, width], "data_offsets": [start, end]}, ..., "__metadata__": {}}

Source: the safetensors format description (Hugging Face).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

import msgspec

from ridgeline.errors import ModelFileError
from ridgeline.quant.formats import BF16, F16, F32, Format
from ridgeline.quant.tensor import HostTensor
from ridgeline.weights.json_file import read_json_object
from ridgeline.weights.mapped_file import MappedFile

INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"

MAX_HEADER_BYTES = 1 << 24
"""Far above any real header (a million tensors); the format's own bound, 100 MB, would let a file cost gigabytes."""

FORMAT_OF_DTYPE: dict[str, Format] = {"F32": F32, "F16": F16, "BF16": BF16}

Whole = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a header says of one tensor."""

    dtype: str
    shape: Annotated[tuple[Whole, ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[Whole, Whole]


class SafetensorsCheckpoint:
    """A model in safetensors files.

    Holds: the mapped files; changed by: `close`, which lets go of them.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder that holds `config.json` and either one `.safetensors` file or an index of several.

        ModelFileError names what is wrong with which file.
        """
        self._path = folder
        self._config, config_bytes = read_json_object(folder / CONFIG_NAME)
        if "quantization_config" in self._config:
            _refuse_quantised(folder / CONFIG_NAME, self._config["quantization_config"])
        paths, listed = _shards(folder)
        self._digest = hashlib.sha256(config_bytes)
        self._files = [MappedFile(path) for path in paths]
        self._tensors: dict[str, HostTensor] = {}
        for path, file in zip(paths, self._files, strict=True):
            tensors, size_bytes = _read_file(file)
            for name, tensor in tensors.items():
                if name in self._tensors:
                    raise ModelFileError(f"{path}: tensor {name}: is in another shard already")
                self._tensors[name] = tensor
            self._digest.update(f"{file.size_bytes} {file.modified_nanoseconds} {size_bytes} ".encode())
            self._digest.update(file.data[:size_bytes].data)
        missing = [name for name in listed if name not in self._tensors]
        if missing:
            raise ModelFileError(
                f"{folder / INDEX_NAME}: lists {len(missing)} tensors that no shard holds, such as {missing[0]}",
                hint="the shards and the index do not belong together: fetch the model again",
            )

    @property
    def path(self) -> Path:
        """The folder it was opened from."""
        return self._path

    @property
    def kind(self) -> str:
        """Always "safetensors"."""
        return "safetensors"

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The content of `config.json`."""
        return MappingProxyType(self._config)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in file order."""
        return tuple(self._tensors)

    def tensor(self, name: str) -> HostTensor:
        """The tensor of that name, its bytes a view of the mapped file; ModelFileError if there is none."""
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelFileError(f"{self._path}: there is no tensor {name}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, outermost first, without touching its bytes."""
        return self.tensor(name).shape

    def format(self, name: str) -> Format:
        """Its format, without touching its bytes."""
        return self.tensor(name).format

    def fingerprint(self) -> str:
        """A hex digest over the configuration and the heads, sizes and modification times of the files."""
        return self._digest.hexdigest()

    def release(self) -> None:
        """Give back the memory of all that was read; it is read again when it is touched."""
        for file in self._files:
            file.release()

    def close(self) -> None:
        """Let go of the files: no tensor can be had any more; those in hand keep the mapping alive."""
        self._files = []
        self._tensors = {}


def _refuse_quantised(path: Path, scheme: Any) -> NoReturn:
    method = scheme.get("quant_method") if isinstance(scheme, dict) else None
    raise ModelFileError(
        f"{path}: quantization_config: the weights are quantised ({method or 'method not named'}); "
        f"safetensors are read as {', '.join(FORMAT_OF_DTYPE)}",
        hint="fetch the original weights, or a GGUF file in the quantisation that you want",
    )


def _shards(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files of a folder, in order, and the tensors that its index lists (none if there is no index)."""
    index_path = folder / INDEX_NAME
    if not index_path.is_file():
        files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
        if len(files) == 1:
            return files, []
        named = folder / "model.safetensors"
        if named in files:
            return [named], []
        names = ", ".join(path.name for path in files[:5])
        raise ModelFileError(f"{folder}: holds {len(files)} safetensors files ({names}) but no {INDEX_NAME}")
    index, _ = read_json_object(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index_path}: weight_map: is missing or empty")
    shard_names = sorted({str(name) for name in weight_map.values()})
    for name in shard_names:
        # A name is a name in this folder and nothing else: no path out of it, whatever the system takes for one.
        if not name.endswith(".safetensors") or set(name) & set("/\\:\0"):
            raise ModelFileError(f"{index_path}: weight_map: {name[:80]!r} is not the name of a file in this folder")
    paths = [folder / name for name in shard_names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelFileError(
            f"{index_path}: {len(missing)} of {len(paths)} shards are missing: {', '.join(missing[:3])}",
            hint="fetch the missing files into the same folder",
        )
    return paths, list(weight_map)


def _read_file(file: MappedFile) -> tuple[dict[str, HostTensor], int]:
    """The tensors of one file, in the order of their bytes, and the number of bytes before them."""
    claims, data_start = _read_header(file)
    tensors: dict[str, HostTensor] = {}
    position = 0
    for name, claim in sorted(claims.items(), key=lambda item: item[1].data_offsets):
        field = f"{file.path}: tensor {name}"
        start, end = claim.data_offsets
        if claim.dtype not in FORMAT_OF_DTYPE:
            raise ModelFileError(
                f"{field}: is stored as {claim.dtype}; safetensors are read as {', '.join(FORMAT_OF_DTYPE)}",
                hint="fetch the original weights, or a GGUF file in the quantisation that you want",
            )
        if 0 in claim.shape:
            raise ModelFileError(f"{field}: has a dimension of 0: {claim.shape}")
        entry = FORMAT_OF_DTYPE[claim.dtype]
        num_bytes = entry.block_bytes
        for extent in claim.shape:
            num_bytes *= extent
        if end - start != num_bytes:
            raise ModelFileError(
                f"{field}: takes bytes {start} to {end}, but {claim.dtype} of shape {claim.shape} is {num_bytes} bytes"
            )
        if start != position:
            relation = "overlaps the one before" if start < position else "leaves a gap before itself"
            raise ModelFileError(f"{field}: begins at byte {start} and {relation}, which ends at {position}")
        position = end
        data = file.data[data_start + start : data_start + end]
        tensors[name] = HostTensor(name=name, shape=claim.shape, format=entry, data=data)
    if data_start + position != file.size_bytes:
        raise ModelFileError(
            f"{file.path}: data_offsets: the tensors end at byte {data_start + position}, "
            f"the file at byte {file.size_bytes}",
            hint="the file is truncated or damaged: fetch it again",
        )
    return tensors, data_start


def _read_header(file: MappedFile) -> tuple[dict[str, _Claim], int]:
    """What the header says of each tensor, and where the tensors' bytes begin."""
    if file.size_bytes < 8 + len("{}"):
        raise ModelFileError(f"{file.path}: header: a file of {file.size_bytes} bytes is too short for one")
    (length,) = struct.unpack_from("<Q", file.data[:8].data)
    if length > min(MAX_HEADER_BYTES, file.size_bytes - 8):
        raise ModelFileError(
            f"{file.path}: header: says it is {length} bytes long, in a file of {file.size_bytes} bytes; "
            f"at most {MAX_HEADER_BYTES} are allowed",
            hint="the file is truncated, damaged, or no safetensors file: fetch it again",
        )
    field = f"{file.path}: header"
    try:
        raw = msgspec.json.decode(file.data[8 : 8 + length].data, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        if not raw:
            raise ModelFileError(f"{file.path}: header: names no tensor")
        claims: dict[str, _Claim] = {}
        for name, entry in raw.items():
            field = f"{file.path}: tensor {name[:200]}"
            if not name or not name.isprintable():
                raise ModelFileError(f"{file.path}: header: {name[:64]!r} is no name of a tensor")
            claims[name] = msgspec.json.decode(entry, type=_Claim)
    except UnicodeDecodeError:
        raise ModelFileError(f"{field}: is not UTF-8 text", hint="the file is damaged: fetch it again") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(f"{field}: {error}", hint="the file is damaged: fetch it again") from None
    return claims, 8 + length
