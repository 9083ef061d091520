"""A file on disk as one read-only array of bytes, mapped and not read."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ridgeline.errors import ModelFileError


class MappedFile:
    """A whole file, mapped.

    Holds: the mapping, through `data`; it is given back when the last array that was cut out of `data` is gone. A file
    that is shortened by someone else while it is mapped cannot be read safely by anybody: the system ends the process.
    """

    __slots__ = ("_mapping", "data", "modified_nanoseconds", "path", "size_bytes")

    def __init__(self, path: Path) -> None:
        """Map `path`; ModelFileError if it is no readable, non-empty file."""
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_size == 0:
                    raise ModelFileError(f"{path}: the file is empty", hint="fetch it again")
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelFileError(f"{path}: no such file") from None
        except PermissionError:
            raise ModelFileError(f"{path}: may not be read", hint=f"chmod u+r '{path}'") from None
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be mapped: {error}") from None
        self._mapping = mapping
        self.path = path
        self.size_bytes = facts.st_size
        self.modified_nanoseconds = facts.st_mtime_ns
        self.data: npt.NDArray[np.uint8] = np.frombuffer(mapping, dtype=np.uint8)

    def release(self) -> None:
        """Give back the memory of all that was read; the bytes stay valid, and come from the file when next touched."""
        with suppress(OSError, AttributeError):  # a favour that not every system does
            self._mapping.madvise(mmap.MADV_DONTNEED)
