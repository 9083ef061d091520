"""Which instruction set the chip uses, and what it says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ridgeline.chips.cpu import CpuChip, _native, instruction_set
from ridgeline.errors import UserError
from ridgeline.ops.conformance.case import source

SETS = _native.instruction_sets()
ZEROS = np.zeros((32, 64), np.float32)


@pytest.fixture(autouse=True)
def best_instruction_set() -> Iterator[None]:
    yield
    assert _native.set_instruction_set(SETS[0])


def test_the_best_is_used_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(instruction_set.VARIABLE, raising=False)
    chip = CpuChip(num_threads=1)
    assert _native.instruction_set().startswith(SETS[0])
    assert bool(chip.notices) == (SETS[0] == "portable")


@pytest.mark.parametrize("name", SETS)
def test_the_environment_chooses(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(instruction_set.VARIABLE, name)
    chip = CpuChip(num_threads=1, cache_folder=tmp_path)
    assert _native.instruction_set().startswith(name)
    if name != SETS[0]:
        assert len(chip.notices) == 1 and name in chip.notices[0] and SETS[0] in chip.notices[0]
    chip.adopt({"w": source("w", ZEROS, "Q5_0")}, "")
    assert len(chip.notices) == (name != SETS[0])  # each has kernels for each format
    assert name in chip.facts().description


@pytest.mark.parametrize("name", ["z80", "AVX2", "neon" if "neon" not in SETS else "avx2", "avx512 "])
def test_what_this_cpu_cannot_run_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _native.instruction_set()
    monkeypatch.setenv(instruction_set.VARIABLE, name)
    with pytest.raises(UserError) as caught:
        CpuChip(num_threads=1)
    assert repr(name) in caught.value.message and all(allowed in caught.value.hint for allowed in SETS)
    assert _native.instruction_set() == before


def test_a_cpu_without_any_vectors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(instruction_set.VARIABLE, raising=False)
    monkeypatch.setattr(_native, "instruction_sets", lambda: ["portable"])
    [notice] = CpuChip(num_threads=1).notices
    assert "portable" in notice and "slow" in notice


def test_a_format_without_fast_kernels_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if SETS[0] == "portable":
        pytest.skip("here everything is slow, which is said in one line")
    monkeypatch.setattr(_native, "has_fast_products", lambda number: number != 6)
    chip = CpuChip(num_threads=1)
    weights = {name: source(name, ZEROS, "Q5_0") for name in "ab"} | {"c": source("c", ZEROS, "Q8_0")}
    chip.adopt(weights, "")
    chip.adopt(weights, "")
    [notice] = chip.notices
    assert "Q5_0" in notice and "slow" in notice
