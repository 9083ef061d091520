"""A lock between processes, so that two of them do not fetch the same file."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _wait_lock(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
else:
    import fcntl

    def _try_lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _wait_lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that the file `path` stands for; waits, and says so, while another process holds it.

    The system gives it back when a process dies, so a lock file that lies around is no obstacle. Where a file system
    knows no locks there is none: what is written appears by renaming, so the cost is a second download and no harm.
    """
    with path.open("ab") as file:
        try:
            _try_lock(file)
        except BlockingIOError:
            logging.getLogger(__name__).warning("waiting for another process that is downloading; it holds: %s", path)
            _wait_lock(file)
        except OSError:
            pass
        yield
