"""What vendors publish of their chips: the rooflines that the planner and the simulated chip work with.

The figures, each with its source, are in `published.toml` beside this file.

Knows: figures. Does not know: what a model needs, what was measured.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ridgeline.errors import UserError
from ridgeline.ops.chip import Arithmetic, ChipFacts
from ridgeline.quant.formats import FORMATS

GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedChip:
    """One chip as its vendor describes it."""

    name: str
    """Short, for a command line: "h100"."""
    description: str
    memory_gigabytes: float
    bandwidth_gigabytes_per_second: float
    int8: float | None = None
    bf16: float | None = None
    fp32: float | None = None
    """Dense peaks in tera-operations per second; None where none is published."""
    quantised_arithmetic: Arithmetic = "bf16"
    """What products with quantised weights run in: accelerators unpack to 16 bits, CPUs multiply in int8."""
    source: str
    is_derived: bool = False
    """Whether a figure was worked out from others or is not the vendor's own."""

    def facts(self) -> ChipFacts:
        """As a chip's roofline; what a step costs besides is not published, so it is 0."""
        peaks: dict[Arithmetic, float] = {}
        if self.int8 is not None:
            peaks["int8"] = self.int8 * TERA
        if self.bf16 is not None:
            peaks["bf16"] = self.bf16 * TERA
        if self.fp32 is not None:
            peaks["fp32"] = self.fp32 * TERA
        arithmetic: dict[str, Arithmetic] = {
            entry.name: self.quantised_arithmetic if entry.is_quantised else "bf16" for entry in FORMATS
        }
        arithmetic |= {"F32": "fp32", "f32": "fp32", "bf16": "bf16", "int8": "bf16"}
        return ChipFacts(
            name=self.name,
            description=self.description,
            memory_bytes=round(self.memory_gigabytes * GIGA),
            bandwidth_bytes_per_second=self.bandwidth_gigabytes_per_second * GIGA,
            operations_per_second=peaks,
            source="published",
            kv_formats=("bf16", "f32", "int8"),
            arithmetic=arithmetic,
        )


def published_chip(name: str) -> PublishedChip:
    """The chip of that name. Raises UserError with the names that there are."""
    chips = {chip.name: chip for chip in published_chips()}
    if name.lower() not in chips:
        raise UserError(f"no published chip is called {name!r}", hint=f"Known are {', '.join(chips)}.", field="chip")
    return chips[name.lower()]


@cache
def published_chips() -> tuple[PublishedChip, ...]:
    """All of them, in the order of the file."""
    # Any: the file is ours, and its fields are checked by the constructor and the tests.
    text: dict[str, Any] = tomllib.loads((files(__package__) / "published.toml").read_text(encoding="utf-8"))
    return tuple(PublishedChip(**entry) for entry in text["chip"])
