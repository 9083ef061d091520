"""Figures of a checkpoint that can be said before a byte of its weights is read."""

from __future__ import annotations

from ridgeline.weights.checkpoint import Checkpoint


def memory_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of the weights in each format, by the format's name, largest first; their sum is what the weights take."""
    totals: dict[str, int] = {}
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        totals[tensor.format.name] = totals.get(tensor.format.name, 0) + tensor.data.nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def main_format(checkpoint: Checkpoint) -> str:
    """The name of the format that holds most bytes of the weights."""
    return next(iter(memory_bytes(checkpoint)))
