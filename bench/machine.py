"""What every benchmark says about the machine, and how it notices that it was not alone."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgeline.chips.cpu import _native, machine
from ridgeline.version import VERSION

READ_SECONDS = 0.3
MAX_FOREIGN_SHARE = 0.08
"""A run during which other processes took more of the CPUs than this does not count."""

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def facts() -> dict[str, Any]:
    """The machine and the program."""
    return {
        "cpu": machine.cpu_model(),
        "cpus": machine.usable_cpus(),
        "instruction_set": _native.instruction_set(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ridgeline": VERSION,
    }


def read_bytes_per_second(num_threads: int) -> float:
    """What the plain read loop reaches now."""
    return _rate(num_threads, "read")


def int8_operations_per_second(num_threads: int) -> float:
    """What the loop of int8 dot products reaches now, a multiplication and an addition counted as two."""
    return _rate(num_threads, "int8")


def _rate(num_threads: int, loop: str) -> float:
    pool = _native.ThreadPool(num_threads)
    return float(_native.measured_rate(pool, loop, READ_SECONDS))


@dataclass(slots=True)
class ForeignShare:
    """Filled when the block ends."""

    share: float = 0.0


@contextmanager
def foreign_share() -> Iterator[ForeignShare]:
    """How much of all CPUs other processes than this one and its descendants took during the block, 0 to 1.

    The kernel counts what a CPU did in ticks of a hundredth of a second, so that a block of less than a second is told
    to a few hundredths only.
    """
    result = ForeignShare()
    begin, busy_before, own_before = time.perf_counter(), _busy_seconds(), _own_seconds()
    yield result
    busy, own = _busy_seconds() - busy_before, _own_seconds() - own_before
    cpu_seconds = (time.perf_counter() - begin) * (os.cpu_count() or 1)
    result.share = min(1.0, max(0.0, busy - own) / cpu_seconds)


def _busy_seconds() -> float:
    """Seconds that all CPUs together were busy so far, time stolen by the host included."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_SECOND


def _own_seconds() -> float:
    """Seconds so far of this process, of its descendants that have ended and of those that live."""
    ended = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in ended)
    parents, ticks = _processes()
    for process in ticks:
        ancestor = parents[process]
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid():
            seconds += ticks[process] / _TICKS_PER_SECOND
    return seconds


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """Of every process that lives: its parent, and the ticks that it and its ended children used."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(int(text) for text in fields[11:15])
    return parents, ticks
