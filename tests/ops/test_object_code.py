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
NEAR_INSTRUCTIONS = 40
"""Products that are no further apart belong to the same loop."""


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
        if following - place <= NEAR_INSTRUCTIONS:
            yield instructions[place + 1 : following]


@pytest.mark.parametrize("name", ["vpdpbusd", "vdpbf16ps"])
def test_no_vector_goes_to_the_stack_between_products(instructions: list[str], name: str) -> None:
    spills = [line for lines in between_products(instructions, name) for line in lines if SPILL.search(line)]
    assert not spills


def test_activations_are_broadcast_from_memory(instructions: list[str]) -> None:
    """Each product has its own four activations; a loop without broadcasts is not the loop that was meant."""
    broadcasts = sum(line.startswith("vpbroadcastd") and "(" in line for line in instructions)
    products = sum(line.startswith("vpdpbusd") and "%zmm" in line for line in instructions)
    if products == 0:
        pytest.skip("this build has no vpdpbusd")
    assert broadcasts > products / 4
