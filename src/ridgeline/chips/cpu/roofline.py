"""The CPU's roofline: measured once in a few seconds, and kept in the cache folder.

A line that was measured while others used the CPUs is too low. It is tried again, briefly, at the first start that
finds the machine quiet, and the better of both counts. A start that finds it busy makes do with what is known: to
measure once more among others would tell little, and cost as much as all the rest of the start.

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

VERSION = 3
"""Raised when what is measured, or how, changes."""
ROUNDS = 3
SECONDS_EACH = 0.15
"""The best of a few short rounds: other programs on the machine only ever make a round slower."""
BRIEF_SECONDS_EACH = 0.03
OVERHEAD_STEPS = 200
QUIET_LOAD = 0.5
"""Load of the last minute, for each CPU, below which a machine counts as quiet: this process is part of it."""
LOOPS = ("int8", "bf16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Peaks of the CPU with the threads of one pool."""

    bandwidth_bytes_per_second: float
    operations_per_second: Mapping[str, float]
    step_overhead_seconds: float
    """A step that does next to nothing, called from Python."""
    was_quiet: bool
    """Whether nobody else used the CPUs meanwhile."""

    def best_of(self, other: Roofline) -> Roofline:
        """The better figure of each pair."""
        return Roofline(
            bandwidth_bytes_per_second=max(self.bandwidth_bytes_per_second, other.bandwidth_bytes_per_second),
            operations_per_second={
                loop: max(rate, other.operations_per_second[loop]) for loop, rate in self.operations_per_second.items()
            },
            step_overhead_seconds=min(self.step_overhead_seconds, other.step_overhead_seconds),
            was_quiet=self.was_quiet or other.was_quiet,
        )


def measured(
    pool: _native.ThreadPool, step_seconds: Callable[[], float], *, rounds: int, seconds_each: float
) -> Roofline:
    """The roofline, measured now. `step_seconds` runs a step that does next to nothing, and says how long it took."""
    was_quiet = is_quiet()

    def best(loop: str) -> float:
        return max(_native.measured_rate(pool, loop, seconds_each) for _ in range(rounds))

    return Roofline(
        bandwidth_bytes_per_second=best("read"),
        operations_per_second={loop: best(loop) for loop in LOOPS},
        step_overhead_seconds=statistics.median(step_seconds() for _ in range(OVERHEAD_STEPS)),
        was_quiet=was_quiet,
    )


def is_quiet() -> bool:
    """Whether others leave the CPUs alone, as far as the load of the last minute tells."""
    return os.getloadavg()[0] < QUIET_LOAD * (os.cpu_count() or 1)


def kept_or_measured(
    pool: _native.ThreadPool, cpu_model: str, folder: Path | None, step_seconds: Callable[[], float]
) -> Roofline:
    """The roofline from the cache folder, or measured in about two seconds.

    It is kept for each CPU model, instruction set, number of threads and version of the measurement.
    """
    key = f"{cpu_model}, {_native.instruction_set()}, {pool.num_threads} threads, version {VERSION}"
    path = None if folder is None else folder / "roofline.json"
    kept = {} if path is None else _read(path)
    known = _from_json(kept.get(key))
    if known is not None and (known.was_quiet or not is_quiet()):
        return known
    if known is None:
        roofline = measured(pool, step_seconds, rounds=ROUNDS, seconds_each=SECONDS_EACH)
    else:
        roofline = measured(pool, step_seconds, rounds=1, seconds_each=BRIEF_SECONDS_EACH).best_of(known)
    if path is not None:
        _write(path, {**kept, key: asdict(roofline)})
    return roofline


def _from_json(entry: Any) -> Roofline | None:
    """What was kept, or None where there is nothing, or something else."""
    try:
        return Roofline(
            bandwidth_bytes_per_second=float(entry["bandwidth_bytes_per_second"]),
            operations_per_second={loop: float(entry["operations_per_second"][loop]) for loop in LOOPS},
            step_overhead_seconds=float(entry["step_overhead_seconds"]),
            was_quiet=bool(entry["was_quiet"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
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
