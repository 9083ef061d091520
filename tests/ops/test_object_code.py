"""What the compiler made of the inner loops: accumulators that wander to the stack and back halve the speed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

SPILL = re.compile(r"^vmov\w+ .*\((%rsp|%rbp).*%zmm|^vmov\w+ %zmm\d+,.*\((%rsp|%rbp)")
NEAR_INSTRUCTIONS = {"vpdpbusd": 60, "vdpbf16ps": 40}
"""Products that are no further apart belong to the same loop (of bytes: with what scales their sums)."""


@pytest.fixture(scope="module")
def instructions() -> list[str]:
    native = pytest.importorskip("ridgeline.chips.cpu._native", reason="the CPU chip's native module is not built")
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is not installed")
    assert native.__file__ is not None
    command = [objdump, "-d", "--no-show-raw-insn", "--no-addresses", str(Path(native.__file__))]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.strip() for line in text.splitlines() if line.startswith(("\t", " "))]


def between_products(instructions: list[str], name: str) -> Iterator[list[str]]:
    """What stands between one product and the next, wherever they are near each other."""
    places = [index for index, line in enumerate(instructions) if line.startswith(name) and "%zmm" in line]
    if not places:
        pytest.skip(f"this build has no {name}")
    for place, following in pairwise(places):
        if following - place <= NEAR_INSTRUCTIONS[name]:
            yield instructions[place + 1 : following]


@pytest.mark.parametrize("name", NEAR_INSTRUCTIONS)
def test_no_vector_goes_to_the_stack_between_products(instructions: list[str], name: str) -> None:
    between = list(between_products(instructions, name))
    assert len(between) > 20, "loops were not found"
    spills = [line for lines in between for line in lines if SPILL.search(line)]
    assert not spills


def test_four_tiles_share_what_they_broadcast(instructions: list[str]) -> None:
    """The loops for many rows blend the codes at extended values, and add to scales instead of multiplying."""
    blends = sum(line.startswith("vpblendmb") and "(" in line and "%zmm" in line for line in instructions)
    additions = sum(line.startswith("vpaddd") and "(" in line and "%zmm" in line for line in instructions)
    if not any(line.startswith("vpdpbusd") and "%zmm" in line for line in instructions):
        pytest.skip("this build has no vpdpbusd of 512 bits")
    rows = 1 + 2 + 3
    assert blends >= 4 * 4 * rows, "four tiles, four kinds of loop"
    assert additions >= (2 * 1 + 2 * 2) * 4 * rows, "half of the kinds have two scales for a group"


def test_activations_are_broadcast_from_memory(instructions: list[str]) -> None:
    """Each product has its own four activations; a loop without broadcasts is not the loop that was meant."""
    broadcasts = sum(line.startswith("vpbroadcastd") and "(" in line for line in instructions)
    products = sum(line.startswith("vpdpbusd") and "%zmm" in line for line in instructions)
    if products == 0:
        pytest.skip("this build has no vpdpbusd")
    assert broadcasts > products / 4
