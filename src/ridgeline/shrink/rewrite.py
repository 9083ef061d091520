"""The tensors of the smaller file: those that stay, as they are; those that change, rounded without any knowledge of
how they are used.

Knows: checkpoints, formats. Does not know: which format a tensor should get (`recipe`), what inputs it meets
(`calibration`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ridgeline.quant.reference import dequantize, quantize
from ridgeline.quant.tensor import HostTensor
from ridgeline.shrink.recipe import Choice
from ridgeline.weights.checkpoint import Checkpoint

VALUES_AT_ONCE = 1 << 24
"""Weights that are held as float32 at a time."""


def rounded(tensor: HostTensor, choice: Choice) -> HostTensor:
    """The tensor in the format that was chosen for it: the nearest values, block by block."""
    if not choice.is_changed:
        return tensor
    width = tensor.shape[-1]
    num_rows = tensor.num_values // width
    row_bytes = choice.chosen.row_bytes(width)
    data = np.empty(num_rows * row_bytes, dtype=np.uint8)
    step = max(1, VALUES_AT_ONCE // width)
    flat = replace(tensor, shape=(num_rows, width))
    for start in range(0, num_rows, step):
        rows = flat.rows(start, min(start + step, num_rows))
        values = dequantize(rows.data, rows.format, rows.shape)
        data[start * row_bytes : (start + rows.shape[0]) * row_bytes] = quantize(values, choice.chosen)
    return HostTensor(name=tensor.name, shape=tensor.shape, format=choice.chosen, data=data)


def rounded_tensors(
    checkpoint: Checkpoint, choices: Sequence[Choice], on_progress: Callable[[], None]
) -> list[HostTensor]:
    """All tensors of the smaller file, in the order of the source."""
    tensors = []
    for choice in choices:
        tensors.append(rounded(checkpoint.tensor(choice.name), choice))
        on_progress()
    return tensors
