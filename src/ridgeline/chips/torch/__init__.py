"""The torch chip: PyTorch, eager, on the CPU. It is here to prove that decoders are bound to no library."""

from __future__ import annotations

from importlib import import_module

from ridgeline.errors import UserError
from ridgeline.ops.chip import AnyChip


def open_torch_chip() -> AnyChip:
    """The chip; torch is imported here and not before. Raises UserError when it is not installed."""
    try:
        chip: AnyChip = import_module("ridgeline.chips.torch.chip").TorchChip()
    except ImportError as error:
        raise UserError(
            f"the torch chip needs the package torch, which cannot be imported: {error}",
            hint="pip install 'ridgeline[torch]'",
        ) from error
    return chip
