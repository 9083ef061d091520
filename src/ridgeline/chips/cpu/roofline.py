"""The CPU's roofline: measured once in a few seconds, and kept in the cache folder.

Knows: the loops that the kernels offer. Does not know: models, steps.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ridgeline.chips.cpu import _native

VERSION = 1
"""Raised when what is measured, or how, changes."""
ROUNDS = 3
SECONDS_EACH = 0.15
"""The best of a few short rounds: other programs on the machine only ever make a round slower."""
OVERHEAD_STEPS = 200
LOOPS = ("int8", "bf16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Peaks of the CPU with the threads of one pool."""

    bandwidth_bytes_per_second: float
    operations_per_second: Mapping[str, float]
    step_overhead_seconds: float
    """A step that does next to nothing, called from Python."""


def measured(pool: _native.ThreadPool, step_seconds: Callable[[], float]) -> Roofline:
    """The roofline, measured now; takes about two seconds. `step_seconds` runs a step that does next to nothing."""

    def best(loop: str) -> float:
        return max(float(_native.measured_rate(pool, loop, SECONDS_EACH)) for _ in range(ROUNDS))

    return Roofline(
        bandwidth_bytes_per_second=best("read"),
        operations_per_second={loop: best(loop) for loop in LOOPS},
        step_overhead_seconds=statistics.median(step_seconds() for _ in range(OVERHEAD_STEPS)),
    )


def kept_or_measured(
    pool: _native.ThreadPool, cpu_model: str, folder: Path | None, step_seconds: Callable[[], float]
) -> Roofline:
    """The roofline from the cache folder if it was measured before with this CPU, these threads and this version."""
    key = f"{cpu_model}, {_native.instruction_set()}, {pool.num_threads} threads, version {VERSION}"
    path = None if folder is None else folder / "roofline.json"
    kept = {} if path is None else _read(path)
    entry = kept.get(key)
    try:
        if entry is not None:
            return _from_json(entry)
    except (KeyError, TypeError, ValueError):
        pass  # written by something else: measured anew below
    roofline = measured(pool, step_seconds)
    if path is not None:
        _write(path, {**kept, key: asdict(roofline)})
    return roofline


def _from_json(entry: dict[str, Any]) -> Roofline:
    return Roofline(
        bandwidth_bytes_per_second=float(entry["bandwidth_bytes_per_second"]),
        operations_per_second={loop: float(entry["operations_per_second"][loop]) for loop in LOOPS},
        step_overhead_seconds=float(entry["step_overhead_seconds"]),
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, dict[str, Any]]) -> None:
    """Replaces the file at once; where that fails, the next start measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except OSError:
        return


def forget(folder: Path) -> None:
    """Drop what was kept, so that the next start measures again."""
    (folder / "roofline.json").unlink(missing_ok=True)
