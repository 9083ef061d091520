"""The values that a block can hold once its scales are chosen, and the choice of the scales.

Each format of codes is a `Grid`: `fit` chooses scales for blocks of values, so that the weighted sum of squares that
rounding loses is small; `Fit.codes` rounds values to the grid, all at once or one column after another; `Fit.packed`
makes the bytes.

Knows: the levels of each format and how precisely it keeps scales. Does not know: files, where weights of errors come
from.

Letters: V values of a block, N blocks, S sub-blocks of a block, P values of a sub-block. Blocks lie side by side, so
that numpy walks along N: arrays are (V, N).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.quant import formats, packing
from ridgeline.quant.formats import Format
from ridgeline.quant.packing import Bytes, Codes, Halves, half

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.floating]

COARSE_SHIFTS = tuple(0.3 * step for step in range(-3, 4))
FINE_SHIFTS = tuple(0.1 * step for step in range(-9, 10))
"""How far from the plain choice a scale may lie, in code steps: the range of ggml's own search. A scale alone is found
as well by few trials as by many; a scale and a minimum lose 1 % with few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Blocks whose scales are chosen.

    A code stands for `scale * level + minimum`; the level is the code itself but where a format has a code book.
    """

    grid: Grid
    scales_SN: Floats
    minima_SN: Floats
    kept: tuple[npt.NDArray[Any], ...]
    """What the bytes say of the scales, (N, 1) or (N, S) each, in the order that the packing takes."""

    def codes(self, values: Floats, sub_block: int) -> Codes:
        """The nearest codes of values (..., N) of one sub-block."""
        shifted = (values - self.minima_SN[sub_block]) * inverse(self.scales_SN[sub_block])
        return self.grid.nearest(shifted)

    def values(self, codes: Codes, sub_block: int) -> Floats:
        """What codes of one sub-block stand for."""
        levels = codes.astype(np.float32) if self.grid.book is None else self.grid.book[codes]
        values: Floats = self.scales_SN[sub_block] * levels + self.minima_SN[sub_block]
        return values

    def all_codes(self, values_VN: Floats) -> Codes:
        """The nearest codes of whole blocks, (V, N)."""
        width = len(values_VN) // self.grid.num_sub_blocks
        return np.concatenate(
            [self.codes(values_VN[s * width : (s + 1) * width], s) for s in range(self.grid.num_sub_blocks)]
        )

    def packed(self, codes_VN: Codes) -> Bytes:
        """The bytes of the blocks, (N, bytes of a block)."""
        return self.grid.pack(*self.kept, np.ascontiguousarray(codes_VN.T))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A format of scales and codes."""

    entry: Format
    num_sub_blocks: int
    lowest: int
    highest: int
    fit: Callable[[Grid, Floats, Floats], Fit]
    """(grid, values_VN, weights_VN) -> Fit; the weight of a value's squared error. Raises UserError where a scale is
    beyond float16."""
    pack: Callable[..., Bytes]
    levels: tuple[int, ...] = ()
    """Of a code book; empty where a code is its own level."""
    highest_scale: int = 0
    """Of the codes of the sub-blocks' scales, where they share one."""
    book: Floats | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "book", np.array(self.levels, dtype=np.float32) if self.levels else None)

    def nearest(self, scaled: Floats) -> Codes:
        """The codes nearest to values that were divided by their scale."""
        if self.levels:
            return nearest_levels(scaled, self.levels)
        codes: Codes = np.clip(np.rint(scaled), self.lowest, self.highest).astype(np.int32)
        return codes


def inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 where the scale is 0 (or too small to have a finite inverse)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverses = np.float32(1) / scales
    return np.where(np.isfinite(inverses), inverses, 0).astype(np.float32)


def nearest_levels(scaled: Floats, levels: tuple[int, ...]) -> Codes:
    """The index of the nearest level of each value.

    Levels are whole numbers, so the borders between them lie on halves, and a table over halves answers at once.
    """
    table = _nearest_table(levels)
    halves = np.clip(np.floor(scaled * 2), 2 * min(levels), 2 * max(levels)).astype(np.int32)
    return table[halves - 2 * min(levels)]


@functools.cache
def _nearest_table(levels: tuple[int, ...]) -> Codes:
    """For each h from twice the lowest level to twice the highest: the level nearest to all of [h, h + 1) / 2."""
    middles = np.arange(2 * min(levels), 2 * max(levels) + 1) / 2 + 0.25
    table: Codes = np.abs(middles[:, None] - np.array(levels)[None, :]).argmin(axis=1).astype(np.int32)
    return table


def _largest(values_VN: Floats) -> Floats:
    """The value of the largest magnitude of each block, (N,)."""
    largest_1N: Floats = np.take_along_axis(values_VN, np.abs(values_VN).argmax(axis=0)[None], axis=0)
    largest_N: Floats = largest_1N[0]
    return largest_N


def _best_scales(grid: Grid, values_VN: Floats, weights_VN: Floats, ends: Mapping[float, float]) -> Floats:
    """For each block the scale whose grid comes nearest to it, (N,).

    Tries inverse scales around those that put the largest magnitude on an end of the grid. For each, the best scale
    for its codes is the least-squares one, sum(w x q) / sum(w q q), which takes sum(w x q)^2 / sum(w q q) off the
    error. `ends`: the level that the largest magnitude is put on -> width of a step there.
    """
    over_largest = inverse(_largest(values_VN))
    weighted = weights_VN * values_VN
    best_gain = np.zeros_like(over_largest)
    best_scale = np.zeros_like(over_largest)
    for end, step in ends.items():
        for shift in COARSE_SHIFTS:
            scaled = values_VN * (np.float32(end + step * shift) * over_largest)
            if grid.book is None:
                levels = np.clip(np.rint(scaled), grid.lowest, grid.highest)
            else:
                levels = grid.book[grid.nearest(scaled)]
            along = (weighted * levels).sum(axis=0)
            norm = (weights_VN * levels * levels).sum(axis=0)
            scale = along * inverse(norm)
            is_better = along * scale > best_gain
            best_gain = np.where(is_better, along * scale, best_gain)
            best_scale = np.where(is_better, scale, best_scale)
    return best_scale


def _affine(grid: Grid, values_VN: Floats, weights_VN: Floats, *, may_lift: bool) -> tuple[Floats, Floats]:
    """For each block the scale and the minimum for which `scale * code + minimum` comes nearest, each (N,).

    The scale is never negative. With `may_lift` false the minimum is never above zero (the K formats subtract an
    unsigned minimum). For each trial of codes the two are the least-squares ones.
    """
    low = values_VN.min(axis=0)
    if not may_lift:
        low = np.minimum(low, 0)
    spread = np.maximum(values_VN.max(axis=0) - low, 0)
    over_spread = inverse(spread)
    best_scale, best_minimum = (spread / grid.highest).astype(np.float32), low
    best_error = np.full_like(low, np.inf)
    total = weights_VN.sum(axis=0)
    mean_value = (weights_VN * values_VN).sum(axis=0) * inverse(total)
    for shift in FINE_SHIFTS:
        codes = np.clip(np.rint((values_VN - low) * (np.float32(grid.highest + shift) * over_spread)), 0, grid.highest)
        weighted = weights_VN * codes
        mean_code = weighted.sum(axis=0) * inverse(total)
        variance = (weighted * (codes - mean_code)).sum(axis=0)
        covariance = (weighted * (values_VN - mean_value)).sum(axis=0)
        scale = covariance * inverse(variance)
        minimum = mean_value - scale * mean_code
        if not may_lift:
            through_zero = (weighted * values_VN).sum(axis=0) * inverse((weighted * codes).sum(axis=0))
            scale, minimum = np.where(minimum > 0, through_zero, scale), np.minimum(minimum, 0)
        error = (weights_VN * (scale * codes + minimum - values_VN) ** 2).sum(axis=0)
        is_better = (error < best_error) & (scale >= 0)
        best_error = np.where(is_better, error, best_error)
        best_scale = np.where(is_better, scale, best_scale)
        best_minimum = np.where(is_better, minimum, best_minimum)
    return best_scale, best_minimum


def _made(grid: Grid, scales_SN: Numbers, minima_SN: Numbers | None, *kept: npt.NDArray[Any]) -> Fit:
    scales = scales_SN.astype(np.float32)
    minima = np.zeros_like(scales) if minima_SN is None else minima_SN.astype(np.float32)
    return Fit(grid=grid, scales_SN=scales, minima_SN=minima, kept=kept)


def _plain(grid: Grid, values_VN: Floats, weights_VN: Floats) -> Fit:
    """Q4_0, Q5_0: the largest magnitude near the lowest code."""
    scale = half(_best_scales(grid, values_VN, weights_VN, {float(grid.lowest): 1.0}))
    return _made(grid, scale[None], None, scale[:, None])


def _fine(grid: Grid, values_VN: Floats, weights_VN: Floats) -> Fit:
    """Q8_0: steps are so fine that a search finds nothing."""
    del weights_VN
    scale = half(np.abs(values_VN).max(axis=0) / grid.highest)
    return _made(grid, scale[None], None, scale[:, None])


def _with_book(grid: Grid, values_VN: Floats, weights_VN: Floats) -> Fit:
    """IQ4_NL: either sign of scale may be better; its levels are about 13 apart."""
    ends = {float(grid.levels[0]): 13.0, float(grid.levels[-1]): 13.0}
    scale = half(_best_scales(grid, values_VN, weights_VN, ends))
    return _made(grid, scale[None], None, scale[:, None])


def _with_minimum(grid: Grid, values_VN: Floats, weights_VN: Floats) -> Fit:
    """Q4_1, Q5_1."""
    scale, minimum = (half(part) for part in _affine(grid, values_VN, weights_VN, may_lift=True))
    return _made(grid, scale[None], minimum[None], scale[:, None], minimum[:, None])


def _sub_blocks(array_VN: Floats, num_sub_blocks: int) -> Floats:
    """(V, N) as (P, S * N): sub-blocks side by side."""
    cut = array_VN.reshape(num_sub_blocks, -1, array_VN.shape[1])
    return np.ascontiguousarray(cut.transpose(1, 0, 2)).reshape(cut.shape[1], -1)


def _shared(parts_SN: Floats, highest: int) -> tuple[Halves, Codes]:
    """Sub-block scales (none negative) as one float16 (N,) and a code in [0, highest] for each."""
    scale = half(parts_SN.max(axis=0) / highest)
    codes = np.clip(np.rint(parts_SN * inverse(scale.astype(np.float32))), 0, highest).astype(np.int32)
    return scale, codes


def _affine_k(grid: Grid, values_VN: Floats, weights_VN: Floats) -> Fit:
    """Q2_K, Q4_K, Q5_K."""
    shape = (grid.num_sub_blocks, values_VN.shape[1])
    parts = _sub_blocks(values_VN, shape[0])
    weights = _sub_blocks(np.broadcast_to(weights_VN, values_VN.shape), shape[0])
    scales, minima = _affine(grid, parts, weights, may_lift=False)
    scale, scale_codes_SN = _shared(scales.reshape(shape), grid.highest_scale)
    minimum, minimum_codes_SN = _shared(-minima.reshape(shape), grid.highest_scale)
    return _made(
        grid,
        scale.astype(np.float32) * scale_codes_SN,
        -(minimum.astype(np.float32) * minimum_codes_SN),
        scale[:, None],
        minimum[:, None],
        scale_codes_SN.T,
        minimum_codes_SN.T,
    )


def _signed_k(grid: Grid, values_VN: Floats, weights_VN: Floats) -> Fit:
    """Q3_K, Q6_K: sub-block scales of either sign."""
    shape = (grid.num_sub_blocks, values_VN.shape[1])
    parts = _sub_blocks(values_VN, shape[0])
    weights = _sub_blocks(np.broadcast_to(weights_VN, values_VN.shape), shape[0])
    scales_SN = _best_scales(grid, parts, weights, {float(grid.lowest): 1.0}).reshape(shape)
    lowest_scale = -grid.highest_scale - 1
    scale = half(_largest(scales_SN) / lowest_scale)
    ratios = scales_SN * inverse(scale.astype(np.float32))
    scale_codes_SN = np.clip(np.rint(ratios), lowest_scale, grid.highest_scale).astype(np.int32)
    return _made(grid, scale.astype(np.float32) * scale_codes_SN, None, scale[:, None], scale_codes_SN.T)


def _grid(
    entry: Format,
    lowest: int,
    highest: int,
    fit: Callable[[Grid, Floats, Floats], Fit],
    pack: Callable[..., Bytes],
    num_sub_blocks: int = 1,
    highest_scale: int = 0,
    levels: tuple[int, ...] = (),
) -> Grid:
    return Grid(
        entry=entry,
        num_sub_blocks=num_sub_blocks,
        lowest=lowest,
        highest=highest,
        fit=fit,
        pack=pack,
        levels=levels,
        highest_scale=highest_scale,
    )


GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        grid.entry.name: grid
        for grid in (
            _grid(formats.Q4_0, -8, 7, _plain, packing.q4_0),
            _grid(formats.Q5_0, -16, 15, _plain, packing.q5_0),
            _grid(formats.Q8_0, -127, 127, _fine, packing.q8_0),
            _grid(formats.Q4_1, 0, 15, _with_minimum, packing.q4_1),
            _grid(formats.Q5_1, 0, 31, _with_minimum, packing.q5_1),
            _grid(formats.IQ4_NL, 0, 15, _with_book, packing.iq4_nl, levels=formats.IQ4_NL_LEVELS),
            _grid(formats.Q2_K, 0, 3, _affine_k, packing.q2_k, 16, 15),
            _grid(formats.Q4_K, 0, 15, _affine_k, packing.q4_k, 8, 63),
            _grid(formats.Q5_K, 0, 31, _affine_k, packing.q5_k, 8, 63),
            _grid(formats.Q3_K, -4, 3, _signed_k, packing.q3_k, 16, 31),
            _grid(formats.Q6_K, -32, 31, _signed_k, packing.q6_k, 16, 127),
        )
    }
)
"""By the name of the format; formats whose codes are not on a grid of scales have none."""
