"""Writing files so that nothing half-written is ever found under its name, and saying what is wrong when one cannot."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ridgeline.errors import CapacityError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(folder: Path, *, hint: str) -> Iterator[None]:
    """Turn what goes wrong on disk inside into errors that name `folder` and say `hint`.

    CapacityError where there is no room, UserError where writing is not allowed or not possible.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CapacityError(f"{folder}: the disk is full ({free_text(folder)})", hint=hint) from None
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}", hint=hint) from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write into, which takes the place of `path` when all went well and vanishes otherwise."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a model is as readable as the umask lets any new file be.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def require_free(folder: Path, needed_bytes: int, *, what: str, hint: str) -> None:
    """CapacityError if the disk of `folder` has less than `needed_bytes` free."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise CapacityError(
            f"{folder}: {what} needs {readable_bytes(needed_bytes)}, but the disk has {free_text(folder)}", hint=hint
        )


def free_text(folder: Path) -> str:
    """How much room the disk of `folder` has, for a message."""
    try:
        return f"{readable_bytes(shutil.disk_usage(folder).free)} free"
    except OSError:
        return "free space not known"


def readable_bytes(num_bytes: int) -> str:
    """A size as a person reads it: "94 MB", "1.2 GB"."""
    if num_bytes < 10**6:
        return f"{num_bytes / 10**3:.0f} kB"
    if num_bytes < 10**9:
        return f"{num_bytes / 10**6:.0f} MB"
    return f"{num_bytes / 10**9:.1f} GB"
