"""The command line, called as a function where a process of its own is not the point."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ridgeline.chips.cpu import roofline
from ridgeline.chips.cpu.chip import CpuChip
from ridgeline.cli.main import main
from tests import tiny_models


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    def is_mistake(self, *words: str) -> bool:
        """Whether it ended as a person's mistake does, told with these words, and nothing worse."""
        lines = self.err.splitlines()
        is_told = any(line.startswith("error: ") for line in lines) and "Traceback" not in self.err
        return self.status == 2 and is_told and all(word in self.err for word in words)

    @property
    def hint(self) -> str:
        """What it says one can do."""
        return "\n".join(line for line in self.err.splitlines() if line.startswith("hint: "))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all, with a roofline that was measured in no time."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "SECONDS_EACH", 0.005)
        for num_threads in (None, 1):
            CpuChip(cache_folder=folder, num_threads=num_threads).facts()
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model as GGUF (`tiny.gguf`) and as safetensors (`tiny`)."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.write_tiny_gguf(folder / "tiny.gguf")
    tiny_models.write_tiny_safetensors(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny(models: Path) -> str:
    """The tiny model's file."""
    return str(models / "tiny.gguf")


@pytest.fixture(scope="session")
def endless(models: Path) -> str:
    """The tiny model, but that it never takes a token that ends an answer for the likeliest."""

    plain = tiny_models.tiny_weights

    def weights(*arguments: Any) -> dict[str, np.ndarray]:
        made = plain(*arguments)
        made["lm_head.weight"][tiny_models.END_OF_TEXT : tiny_models.PADDING + 1] = 0
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "tiny_weights", weights)
        return str(tiny_models.write_tiny_gguf(models / "endless.gguf"))


@pytest.fixture
def environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of commands: this cache folder, no colours asked for or refused."""
    monkeypatch.setenv("RIDGELINE_CACHE", str(cache))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return dict(os.environ)


@pytest.fixture
def call(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs one command in this process, with these bytes on its stdin."""

    def called(*arguments: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        told = capsys.readouterr()
        return Outcome(status, told.out, told.err)

    return called
