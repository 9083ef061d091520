"""Weights repacked for the kernels, kept in one checksummed file for each set of weights, and mapped at later starts.

Knows: the file's layout, what the kernels pack. Does not know: decoders, what a tensor is for.

    magic (8 bytes) | directory bytes (u64) | checksum of the directory (u64) | directory, JSON | regions

Every region begins on a line of the cache; its checksum is in the directory. Checksums of regions are verified when the
file is first seen, and again only after it has changed (size, inode or time of change differ from those noted beside
it), since reading everything would cost more than the rest of a start.

A file that is damaged, foreign or of another layout is written anew; where nothing can be written, weights are packed
into memory. Either is said in a notice, and neither is an error.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import mmap
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ridgeline.chips.cpu import _native
from ridgeline.chips.cpu.weights import CpuMatrix, CpuVector, CpuWeight
from ridgeline.ops.chip import TensorSource
from ridgeline.quant import formats
from ridgeline.quant.reference import dequantize

MAGIC = b"RDGPACK\n"
FILE_VERSION = 1
"""Raised whenever the layout of this file changes; that of the packed formats has a version of its own."""
LAYOUT_VERSION = f"{FILE_VERSION}.{_native.PACKED_LAYOUT_VERSION}"
HEADER = struct.Struct("<8sQQ")
REGION_ALIGNMENT = 4096
"""A region begins on a page of memory, so that tensors do not share one."""
MAX_DIRECTORY_BYTES = 64 << 20

Bytes = npt.NDArray[np.uint8]
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where one tensor lies in the file. A vector has no rows."""

    name: str
    format: int
    rows: int
    width: int
    offset_bytes: int
    size_bytes: int
    checksum: int


_FIELDS = tuple(field.name for field in fields(Region))


class _UnusableFileError(Exception):
    """The file cannot be used as it is; the message says why."""


def adopt(
    sources: Mapping[str, TensorSource],
    fingerprint: str,
    folder: Path | None,
    pool: _native.ThreadPool,
    notice: Notice,
) -> dict[str, CpuWeight]:
    """The weights, mapped from their file in `folder`, which is written first if need be; without one, in memory."""
    regions, total_bytes = _planned_regions(sources)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / _file_name(sources, fingerprint)
            with _locked(path):
                return _adopt_file(sources, regions, path, pool, notice)
        except OSError as error:
            notice(f"packed weights stay in memory, and are packed again at the next start: {error}")
    memory = _native.Memory(total_bytes)
    array: Bytes = memory.array()
    for region in regions:
        _write_region(sources[region.name], region, array, pool)
    return _handles(regions, memory.address, memory)


def _adopt_file(
    sources: Mapping[str, TensorSource],
    regions: list[Region],
    path: Path,
    pool: _native.ThreadPool,
    notice: Notice,
) -> dict[str, CpuWeight]:
    if path.exists():
        try:
            return _open(path, regions, pool)
        except _UnusableFileError as reason:
            notice(f"packed weights are made anew: {path.name}: {reason}")
    _write_file(sources, regions, path, pool)
    try:
        return _open(path, regions, pool, is_trusted=True)
    except _UnusableFileError as reason:
        raise OSError(f"{path} could not be read back: {reason}") from None


def _file_name(sources: Mapping[str, TensorSource], fingerprint: str) -> str:
    """A name that differs whenever the weights, what is wanted of them, or the layout does."""
    wanted = json.dumps([[name, source.shape, source.format_name] for name, source in sorted(sources.items())])
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:16]
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", fingerprint)[:80]
    return f"{plain}-{digest}-v{LAYOUT_VERSION}.packed"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time writes the file; others wait and then find it."""
    with open(path.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---- what goes where ----


def _planned_regions(sources: Mapping[str, TensorSource]) -> tuple[list[Region], int]:
    """Regions in order of name, checksums not yet known, and the bytes of all."""
    regions, offset = [], 0
    for name, source in sorted(sources.items()):
        entry = formats.BY_NAME[source.format_name]
        assert len(source.shape) in (1, 2), f"{name} has {len(source.shape)} axes"
        is_vector = len(source.shape) == 1
        rows, width = (0, source.shape[0]) if is_vector else (source.shape[0], source.shape[1])
        number = formats.F32.gguf_type if is_vector else entry.gguf_type
        size = width * 4 if is_vector else _native.packed_bytes(number, rows, width)
        regions.append(
            Region(name=name, format=number, rows=rows, width=width, offset_bytes=offset, size_bytes=size, checksum=0)
        )
        offset += -(-size // REGION_ALIGNMENT) * REGION_ALIGNMENT
    return regions, offset


def _write_region(source: TensorSource, region: Region, target: Bytes, pool: _native.ThreadPool) -> None:
    tensor = source.read()
    assert tensor.shape == source.shape, (tensor.name, tensor.shape)
    out = target[region.offset_bytes : region.offset_bytes + region.size_bytes]
    if region.rows == 0:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.format, tensor.shape), dtype="<f4")
        out[:] = values.view(np.uint8)
    else:
        _native.pack(pool, region.format, region.rows, region.width, np.ascontiguousarray(tensor.data), out)


def _handles(regions: list[Region], address: int, owner: object) -> dict[str, CpuWeight]:
    weights: dict[str, CpuWeight] = {}
    for region in regions:
        at = address + region.offset_bytes
        if region.rows == 0:
            weights[region.name] = CpuVector(name=region.name, width=region.width, address=at, owner=owner)
        else:
            weights[region.name] = CpuMatrix(
                name=region.name, format=region.format, rows=region.rows, width=region.width, address=at, owner=owner
            )
    return weights


# ---- the file ----


def _write_file(
    sources: Mapping[str, TensorSource], regions: list[Region], path: Path, pool: _native.ThreadPool
) -> None:
    """Writes beside the file, then renames: whoever opens it sees all of it or none. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".partial", dir=path.parent)
    try:
        start, size = _data_start(regions), regions[-1].offset_bytes + regions[-1].size_bytes if regions else 0
        # Takes the blocks now: a full disk is an error here, and not a signal while the mapping is written.
        os.posix_fallocate(descriptor, 0, start + max(1, size))
        with mmap.mmap(descriptor, start + max(1, size)) as mapping:
            array: Bytes = np.frombuffer(mapping, dtype=np.uint8)
            done = []
            for region in regions:
                _write_region(sources[region.name], region, array[start:], pool)
                done.append(replace(region, checksum=_checksum(array[start:], region, pool)))
                with suppress(OSError, AttributeError):
                    # What was written is the file's from here on, and no longer this process's memory.
                    mapping.madvise(mmap.MADV_DONTNEED, start + region.offset_bytes, region.size_bytes)
            head = _directory(done)
            array[: len(head)] = np.frombuffer(head, dtype=np.uint8)
            del array
            mapping.flush()
        os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    _note_verified(path)
    _remove_older(path)


def _remove_older(path: Path) -> None:
    """Files of the same weights in other layouts are of no use any more; who has one mapped keeps it."""
    same = path.name[: -len(f"-v{LAYOUT_VERSION}.packed")]
    for other in path.parent.glob(f"{glob.escape(same)}-v*"):
        if other.stem != path.stem:
            other.unlink(missing_ok=True)


def _checksum(data: Bytes, region: Region, pool: _native.ThreadPool) -> int:
    return int(_native.checksum(pool, data[region.offset_bytes : region.offset_bytes + region.size_bytes]))


def _directory(regions: list[Region]) -> bytes:
    # Not `asdict`, which copies every value deeply: models have hundreds of regions, and each start asks for this.
    listed = [{name: getattr(region, name) for name in _FIELDS} for region in regions]
    text = json.dumps({"layout": LAYOUT_VERSION, "regions": listed}).encode()
    return HEADER.pack(MAGIC, len(text), _digest(text)) + text


def _digest(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def _data_start(regions: list[Region]) -> int:
    """Where regions begin: after the longest directory that these regions can have."""
    largest = [replace(region, checksum=(1 << 64) - 1) for region in regions]
    return -(-len(_directory(largest)) // REGION_ALIGNMENT) * REGION_ALIGNMENT


def _open(
    path: Path, wanted: list[Region], pool: _native.ThreadPool, *, is_trusted: bool = False
) -> dict[str, CpuWeight]:
    """Maps the file; raises _UnusableFileError if it is not what is wanted or is damaged."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= HEADER.size:
            raise _UnusableFileError("it is too short")
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    array: Bytes = np.frombuffer(mapping, dtype=np.uint8)
    regions = _read_directory(array)
    start = _data_start(wanted)
    if [replace(region, checksum=0) for region in regions] != wanted:
        raise _UnusableFileError("it holds other tensors")
    if regions and start + regions[-1].offset_bytes + regions[-1].size_bytes > size:
        raise _UnusableFileError("it is cut short")
    if not is_trusted and not _is_verified(path):
        for region in regions:
            if _checksum(array[start:], region, pool) != region.checksum:
                raise _UnusableFileError(f"{region.name} is damaged")
        _note_verified(path)
    for advice in ("MADV_WILLNEED", "MADV_HUGEPAGE"):
        # Not every kernel or file system knows it, and nothing depends on it.
        with suppress(OSError, AttributeError):
            mapping.madvise(getattr(mmap, advice))
    return _handles(regions, array.ctypes.data + start, array)


def _read_directory(array: Bytes) -> list[Region]:
    magic, length, digest = HEADER.unpack(array[: HEADER.size].tobytes())
    if magic != MAGIC:
        raise _UnusableFileError("it is not a file of packed weights")
    if length > min(MAX_DIRECTORY_BYTES, len(array) - HEADER.size):
        raise _UnusableFileError("it is cut short")
    text = array[HEADER.size : HEADER.size + length].tobytes()
    if _digest(text) != digest:
        raise _UnusableFileError("its directory is damaged")
    content = json.loads(text)
    if content["layout"] != LAYOUT_VERSION:
        raise _UnusableFileError(f"it is of layout {content['layout']}, this is {LAYOUT_VERSION}")
    return [Region(**region) for region in content["regions"]]


# ---- what was verified ----


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_verified(path: Path) -> bool:
    try:
        return bool(json.loads(path.with_suffix(".verified").read_text()) == _identity(path))
    except (OSError, ValueError):
        return False


def _note_verified(path: Path) -> None:
    """Notes the file as it is now; where that cannot be written, the next start verifies once more."""
    try:
        path.with_suffix(".verified").write_text(json.dumps(_identity(path)))
    except OSError:
        return
