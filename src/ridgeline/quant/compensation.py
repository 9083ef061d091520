"""Rounding a matrix for the inputs that it meets: what is lost in one column is made up for in those that follow.

A row w of the matrix is replaced by a row q of its format's grid so that its products with the inputs x change least.
With e = w - q and the Gram matrix H = sum of x x^T, that is e H e^T. Let H = V V^T, V upper triangular: the loss is the
squared length of e V, whose entry i is e_i V_ii plus what the columns before i lost. So columns are rounded one after
another, each aiming at w_i + (sum over j < i of e_j V_ji) / V_ii, which would take back all of their loss that can be
taken back here. Scales of a block are chosen when it is reached, for what its columns will aim at.

Sources: GPTQ, arXiv 2210.17323, in the form without an inverse (the nearest-plane algorithm of Babai, Combinatorica 6,
1986).

Knows: grids, Gram matrices. Does not know: models, where inputs come from.

Letters: R rows, D columns (width).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.quant.formats import Format
from ridgeline.quant.grids import GRIDS, Fit, Grid
from ridgeline.quant.packing import Bytes
from ridgeline.quant.rounding import check_finite

Floats = npt.NDArray[np.float32]

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it: inputs that were hardly seen count for a little."""
ROWS_AT_ONCE = 4096
"""Rows that are rounded together; bounds the temporaries."""
COLUMNS_AT_ONCE = 32
"""Columns after which the errors are spread over all that follow, in one product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What is known of the inputs of a matrix, made by `inputs_of`."""

    spread_DD: Floats
    """V_ji / V_ii: how much of the error of column j column i has to take back."""
    weights_D: Floats
    """V_ii^2: what a squared error in column i costs in the end."""


def inputs_of(gram_DD: npt.NDArray[np.floating], damping: float = DAMPING) -> Inputs:
    """What the rounding needs to know of inputs x.

    Args:
        gram_DD: the sum of x x^T.
        damping: share of the mean of the diagonal that is added to it.
    """
    damped = gram_DD.astype(np.float64)
    damped[np.diag_indices_from(damped)] += damping * (float(np.diagonal(damped).mean()) or 1.0)
    # A lower triangular factor of the matrix with its rows and columns in opposite order is V in opposite order.
    factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    diagonal = np.diagonal(factor)
    return Inputs(
        spread_DD=(factor / diagonal).astype(np.float32),
        weights_D=(diagonal**2).astype(np.float32),
    )


def compensated(values_RD: Floats, entry: Format, inputs: Inputs) -> Bytes:
    """The bytes of a matrix in a format, one-dimensional, in row order.

    Args:
        values_RD: the matrix; its width is a whole number of blocks.
        entry: a format that has a grid.
        inputs: that it meets.

    Raises UserError where the values cannot be held.
    """
    grid = GRIDS[entry.name]
    num_rows, width = values_RD.shape
    data = np.empty((num_rows, entry.row_bytes(width)), dtype=np.uint8)
    check_finite(values_RD, entry)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        wanted_DR = np.array(values_RD[start : start + ROWS_AT_ONCE].T, dtype=np.float32, order="C")
        with np.errstate(over="ignore", under="ignore"):
            data[start : start + ROWS_AT_ONCE] = _rounded(wanted_DR, grid, inputs)
    return data.reshape(-1)


def _rounded(wanted_DR: Floats, grid: Grid, inputs: Inputs) -> Bytes:
    """Round column after column."""
    block_values = grid.entry.block_values
    width, num_rows = wanted_DR.shape
    aims_DR = wanted_DR.copy()
    parts = []
    for start in range(0, width, block_values):
        block = slice(start, start + block_values)
        fit = grid.fit(grid, _expected(wanted_DR[block], aims_DR[block], inputs.spread_DD[block, block]),
                       inputs.weights_D[block, None])  # fmt: skip
        codes = np.empty((block_values, num_rows), dtype=np.int32)
        for first in range(start, start + block_values, COLUMNS_AT_ONCE):
            last = min(first + COLUMNS_AT_ONCE, start + block_values)
            errors = wanted_DR[first:last]  # each row of it becomes the error of its column
            _round_columns(aims_DR, errors, fit, inputs.spread_DD, codes, start, first)
            aims_DR[last:] += inputs.spread_DD[first:last, last:].T @ errors
        parts.append(fit.packed(codes))
    return np.concatenate(parts, axis=1)


def _expected(wanted_VR: Floats, aims_VR: Floats, spread_VV: Floats) -> Floats:
    """What the columns of a block will aim at if each of them can be had exactly.

    A column's aim changes when the columns before it give up something of their own; by then scales must be chosen.
    """
    share = np.linalg.inv(spread_VV.T.astype(np.float64)).astype(np.float32)
    expected: Floats = wanted_VR + share @ (aims_VR - wanted_VR)
    return expected


def _round_columns(
    aims_DR: Floats,
    errors: Floats,
    fit: Fit,
    spread_DD: Floats,
    codes: npt.NDArray[np.int32],
    start: int,
    first: int,
) -> None:
    """Round the columns from `first` on, as many as `errors` has rows, of the block at `start`."""
    sub_block_values = fit.grid.entry.block_values // fit.grid.num_sub_blocks
    last = first + len(errors)
    for column in range(first, last):
        sub_block = (column - start) // sub_block_values
        chosen = fit.codes(aims_DR[column], sub_block)
        errors[column - first] -= fit.values(chosen, sub_block)
        codes[column - start] = chosen
        aims_DR[column + 1 : last] += spread_DD[column, column + 1 : last, None] * errors[column - first]
