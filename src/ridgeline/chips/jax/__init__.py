"""The JAX chip: the decoder traced and compiled by XLA, on the CPU. It proves that decoders never look at a value."""

from __future__ import annotations

from importlib import import_module

from ridgeline.errors import UserError
from ridgeline.ops.chip import AnyChip


def open_jax_chip() -> AnyChip:
    """The chip; JAX is imported here and not before. Raises UserError when it is not installed."""
    try:
        chip: AnyChip = import_module("ridgeline.chips.jax.chip").JaxChip()
    except ImportError as error:
        raise UserError(
            f"the JAX chip needs the package jax, which cannot be imported: {error}",
            hint="pip install 'ridgeline[jax]'",
        ) from error
    return chip
