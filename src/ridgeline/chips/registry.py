"""Chips by name. Only the chip that is asked for is imported, so nobody needs the libraries of the others.

Knows: which names there are and how each is made. Does not know: what anyone wants a chip for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ridgeline.errors import UserError
from ridgeline.ops.chip import AnyChip


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipOptions:
    """What a person may say about a chip; a chip that has no use for one ignores it."""

    cache_folder: Path | None = None
    num_threads: int | None = None
    kind: str = ""
    """What stands after the colon of the name, such as `h100` in `simulated:h100`, or `cpu` in `torch:cpu`."""


def _cpu(module: Any, options: ChipOptions) -> AnyChip:
    return module.CpuChip(cache_folder=options.cache_folder, num_threads=options.num_threads)  # type: ignore[no-any-return]


def _simulated(module: Any, options: ChipOptions) -> AnyChip:
    published = import_module("ridgeline.chips.published")
    if not options.kind:
        names = ", ".join(chip.name for chip in published.published_chips())
        raise UserError(
            "simulated needs the name of a chip", hint=f"for example simulated:h100; known are {names}", field="chip"
        )
    return module.SimulatedChip(published.published_chip(options.kind).facts())  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipEntry:
    """One line of the table of chips."""

    module: str
    make: Callable[[Any, ChipOptions], AnyChip]
    # Any: the module is imported when the chip is opened, and mypy must not need its libraries.
    summary: str
    extra: str = ""
    """The extra of the package that brings its library."""
    has_kinds: bool = False
    """Whether something may stand after a colon of its name."""


CHIPS: Mapping[str, ChipEntry] = MappingProxyType(
    {
        "cpu": ChipEntry(module="ridgeline.chips.cpu", make=_cpu, summary="this machine's CPUs"),
        "reference": ChipEntry(
            module="ridgeline.chips.reference.chip",
            make=lambda module, options: module.ReferenceChip(),
            summary="numpy, the definition of every op; slow",
        ),
        "torch": ChipEntry(
            module="ridgeline.chips.torch.chip",
            make=lambda module, options: module.TorchChip(options.kind),
            summary="PyTorch on a CUDA GPU, or on the CPU where there is none (a witness); torch:cpu, torch:cuda:1",
            extra="torch",
            has_kinds=True,
        ),
        "jax": ChipEntry(
            module="ridgeline.chips.jax.chip",
            make=lambda module, options: module.JaxChip(),
            summary="JAX on the CPU; a witness",
            extra="jax",
        ),
        "simulated": ChipEntry(
            module="ridgeline.chips.simulated",
            make=_simulated,
            summary="a published chip on a virtual clock, such as simulated:h100; its text means nothing",
            has_kinds=True,
        ),
    }
)


def open_chip(name: str, *, cache_folder: Path | None = None, num_threads: int | None = None) -> AnyChip:
    """The chip of that name, opened.

    Raises UserError if there is no such chip, or the library that it needs is not installed.
    """
    base, _, kind = name.partition(":")
    entry = CHIPS.get(base)
    if entry is None or (kind and not entry.has_kinds):
        near = difflib.get_close_matches(base, CHIPS, n=1)
        raise UserError(
            f"there is no chip {name!r}; there are {', '.join(CHIPS)}",
            hint=f"did you mean {near[0]}?" if near else "see: ridgeline chips",
            field="chip",
        )
    try:
        module = import_module(entry.module)
    except ModuleNotFoundError as error:
        if not entry.extra:
            raise UserError(
                f"the {base} chip's native kernels are not built ({error.name} is missing)",
                hint="install the package again: pip install --force-reinstall ridgeline",
                field="chip",
            ) from error
        raise UserError(
            f"the {base} chip needs {error.name}, which is not installed",
            hint=f"pip install 'ridgeline[{entry.extra}]'",
            field="chip",
        ) from error
    return entry.make(module, ChipOptions(cache_folder=cache_folder, num_threads=num_threads, kind=kind))
