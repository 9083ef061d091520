"""A process that holds one engine and answers `bench/peers.py` line by line (bench/peers/protocol.py)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineup import ADAPTERS, FROM_FILE, Row


class PeerError(Exception):
    """An engine is not there, refused, or died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the environments and weights of the peers are, and who runs Ridgeline."""

    folder: Path
    ridgeline: str
    """Its Python interpreter."""
    num_threads: int
    cache_folder: Path

    def environment(self, row: Row) -> Path:
        return self.folder / row.environment

    def python(self, row: Row) -> str:
        return self.ridgeline if row.environment == "ridgeline" else str(self.environment(row) / "bin" / "python")

    def weights(self, row: Row, model: Path) -> Path:
        """What the row opens when it is asked for the model of this GGUF file."""
        return model if row.weights == FROM_FILE else self.folder / "models" / model.stem / row.weights

    def missing(self, row: Row, model: Path) -> str | None:
        """Why the row cannot run here, in words; None if it can."""
        for path in (Path(self.python(row)), self.weights(row, model)):
            if not path.exists():
                return f"{path} is not there"
        return None

    def variables(self, row: Row) -> dict[str, str]:
        words = {"folder": str(self.folder), "environment": str(self.environment(row))}
        told = {name: value.format(**words) for name, value in row.variables.items()}
        ours = {"OMP_NUM_THREADS": str(self.num_threads), "RIDGELINE_CACHE": str(self.cache_folder)}
        return {**os.environ, **ours, **told}

    def pin(self) -> None:
        """Keep the calling process on as many CPUs as there are threads."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.num_threads])


class Driver:
    """The process of one row. Holds: the process, and the pipe to it. A context: leaving it ends the process."""

    def __init__(self, row: Row, place: Place, log: Path) -> None:
        self.row = row
        self._log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [place.python(row), str(ADAPTERS / row.adapter)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=place.variables(row), preexec_fn=place.pin,
            )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def ask(self, kind: str, **asked: Any) -> dict[str, Any]:
        """Raises PeerError when the engine refuses or is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"ask": kind, **asked}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.row.name}: {answer['error']}")
        return answer

    def resident_bytes(self) -> int:
        """The most that was resident at once."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in text.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def _gone(self) -> PeerError:
        return PeerError(f"{self.row.name} ended with {self._process.wait()}; see {self._log}")


def load(row: Row, place: Place, model: Path, sizes: Mapping[str, int]) -> Driver:
    """Start the row's process and have it open the model."""
    logs = place.folder / "logs"
    logs.mkdir(exist_ok=True)
    driver = Driver(row, place, logs / f"{row.name.replace(' ', '-')}.txt")
    path = str(place.weights(row, model))
    try:
        driver.ask("load", model=path, num_threads=place.num_threads, **sizes)
    except PeerError:
        driver.__exit__()
        raise
    return driver
