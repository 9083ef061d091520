"""The chips that can be opened here, by name; a chip that cannot says why and its tests are skipped."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from ridgeline.chips.registry import open_chip
from ridgeline.errors import UserError
from ridgeline.ops.chip import AnyChip


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    is_bit_exact: bool
    """Whether it claims the same bits however a sequence is cut up and whatever runs beside it."""
    is_dequantising: bool
    """Whether it only ever sees weights as float32, so that their formats are all the same to it."""
    is_compiling: bool = False
    """Whether each shape costs it seconds, so that only the first and the last case of each kind are tried."""


ENTRIES = (
    Entry(name="reference", is_bit_exact=True, is_dequantising=False),
    Entry(name="cpu", is_bit_exact=True, is_dequantising=False),
    Entry(name="torch:cpu", is_bit_exact=False, is_dequantising=True),
    Entry(name="torch:cuda", is_bit_exact=True, is_dequantising=True),
    Entry(name="jax", is_bit_exact=False, is_dequantising=True, is_compiling=True),
)


def opened(name: str, folder: Path) -> AnyChip:
    """The chip, or a skip with the reason; what it measures and packs is kept in the folder."""
    try:
        chip = open_chip(name, cache_folder=folder, num_threads=2)
    except UserError as error:
        pytest.skip(str(error))
    if name == "torch:cpu":
        # Its threads spin while they wait, which on a busy machine costs more than they give to matrices this small.
        import_module("torch").set_num_threads(1)
    return chip
