"""What every benchmark says about the machine, and how it notices that it was not alone."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgeline.chips.cpu import _native, machine
from ridgeline.version import VERSION

READ_SECONDS = 0.3


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
    pool = _native.ThreadPool(num_threads)
    return float(_native.measured_rate(pool, "read", READ_SECONDS))


@dataclass(slots=True)
class ForeignShare:
    """Filled when the block ends."""

    share: float = 0.0


@contextmanager
def foreign_share() -> Iterator[ForeignShare]:
    """How much of all CPUs other processes than this one and its children took during the block, 0 to 1."""
    result = ForeignShare()
    busy_before, total_before, own_before = _busy_total_own()
    yield result
    busy, total, own = _busy_total_own()
    elapsed = max(total - total_before, 1e-9)
    result.share = max(0.0, (busy - busy_before) - (own - own_before)) / elapsed


def _busy_total_own() -> tuple[float, float, float]:
    """Seconds so far: CPUs busy (time stolen by the host included), all CPUs, this process and its ended children."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    ticks = os.sysconf("SC_CLK_TCK")
    idle = fields[3] + fields[4]
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return (sum(fields) - idle) / ticks, sum(fields) / ticks, own
