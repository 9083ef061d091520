"""The chips that can be opened here, by name; a chip that cannot says why and its tests are skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from ridgeline.chips.jax import open_jax_chip
from ridgeline.chips.reference import ReferenceChip
from ridgeline.chips.torch import open_torch_chip
from ridgeline.errors import UserError
from ridgeline.ops.chip import AnyChip


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    open: Callable[[Path], AnyChip]
    is_bit_exact: bool
    """Whether it claims the same bits however a sequence is cut up and whatever runs beside it."""
    is_dequantising: bool
    """Whether it only ever sees weights as float32, so that their formats are all the same to it."""


def open_cpu_chip(folder: Path) -> AnyChip:
    """Its packed weights and its roofline, which takes seconds to measure, are kept in the folder."""
    if find_spec("ridgeline.chips.cpu._native") is None:
        pytest.skip("the CPU chip's native module is not built")
    chip: AnyChip = import_module("ridgeline.chips.cpu").CpuChip(cache_folder=folder, num_threads=2)
    return chip


ENTRIES = (
    Entry(name="reference", open=lambda folder: ReferenceChip(), is_bit_exact=True, is_dequantising=False),
    Entry(name="cpu", open=open_cpu_chip, is_bit_exact=True, is_dequantising=False),
    Entry(name="torch", open=lambda folder: open_torch_chip(), is_bit_exact=False, is_dequantising=True),
    Entry(name="jax", open=lambda folder: open_jax_chip(), is_bit_exact=False, is_dequantising=True),
)


def opened(entry: Entry, folder: Path) -> AnyChip:
    """The chip, or a skip with the reason."""
    try:
        return entry.open(folder)
    except UserError as error:
        pytest.skip(str(error))
