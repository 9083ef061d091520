"""Rounding for the inputs that a matrix meets, held against rounding to the nearest at equal bytes."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.errors import UserError
from ridgeline.quant.compensation import DAMPING, compensated, inputs_of
from ridgeline.quant.formats import BY_NAME, Format
from ridgeline.quant.grids import GRIDS
from ridgeline.quant.reference import dequantize, quantize

WIDTH, ROWS, TOKENS = 512, 96, 2048


def related_inputs(seed: int) -> np.ndarray:
    """Inputs that follow a few directions far more than others, as those of a model do; the same ones for all seeds."""
    mixing = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) * np.exp(-np.arange(WIDTH) / 60)
    random = np.random.default_rng(seed)
    return (random.standard_normal((TOKENS, WIDTH)) @ mixing.T).astype(np.float32)


def matrix() -> np.ndarray:
    return (np.random.default_rng(3).standard_normal((ROWS, WIDTH)) * 0.02).astype(np.float32)


def loss(values: np.ndarray, data: np.ndarray, entry: Format, x_TD: np.ndarray) -> float:
    return float((((dequantize(data, entry, values.shape) - values) @ x_TD.T) ** 2).sum())


@pytest.mark.parametrize("name", GRIDS)
def test_products_keep_more_than_nearest_values_do(name: str) -> None:
    entry, values, x_TD = BY_NAME[name], matrix(), related_inputs(1)
    data = compensated(values, entry, inputs_of(x_TD.T @ x_TD))
    nearest = quantize(values, entry)
    assert data.nbytes == nearest.nbytes
    assert loss(values, data, entry, x_TD) < 0.4 * loss(values, nearest, entry, x_TD)
    unseen_TD = related_inputs(2)
    assert loss(values, data, entry, unseen_TD) < 0.5 * loss(values, nearest, entry, unseen_TD)


@pytest.mark.parametrize("name", GRIDS)
def test_unrelated_inputs_leave_the_nearest_values(name: str) -> None:
    entry, values = BY_NAME[name], matrix()
    data = compensated(values, entry, inputs_of(np.eye(WIDTH, dtype=np.float32)))
    nearest = quantize(values, entry)
    assert (data != nearest).mean() < 0.01  # the search for a scale may settle a tie the other way
    unrelated_TD = np.eye(WIDTH, dtype=np.float32)
    assert loss(values, data, entry, unrelated_TD) == pytest.approx(
        loss(values, nearest, entry, unrelated_TD), rel=1e-3
    )


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q4_K", "Q6_K"])
def test_the_loss_of_a_row_is_what_the_columns_leave(name: str) -> None:
    """The weights of the columns and their spread are those of the Gram matrix: e H e^T = |e V|^2."""
    entry, values, x_TD = BY_NAME[name], matrix(), related_inputs(2)
    gram_DD = x_TD.T @ x_TD
    inputs = inputs_of(gram_DD)
    damped_DD = gram_DD + DAMPING * np.diagonal(gram_DD).mean(dtype=np.float64) * np.eye(WIDTH)
    error = (dequantize(quantize(values, entry), entry, values.shape) - values).astype(np.float64)
    whole = np.einsum("rd,de,re->r", error, damped_DD, error)
    left = ((error @ inputs.spread_DD.astype(np.float64)) ** 2 * inputs.weights_D).sum(axis=1)
    np.testing.assert_allclose(left, whole, rtol=1e-3)


def test_the_same_inputs_give_the_same_bytes() -> None:
    entry, values, x_TD = BY_NAME["Q4_K"], matrix(), related_inputs(7)
    first, second = (compensated(values, entry, inputs_of(x_TD.T @ x_TD)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    entry, values, x_TD = BY_NAME["IQ4_NL"], matrix(), related_inputs(8)
    x_TD[:, 64:128] = 0
    for gram_DD in (x_TD.T @ x_TD, np.zeros((WIDTH, WIDTH), np.float32)):
        back = dequantize(compensated(values, entry, inputs_of(gram_DD)), entry, values.shape)
        assert np.abs(back - values).max() < 0.05


def test_values_that_are_no_numbers_are_refused() -> None:
    values = matrix()
    values[3, 5] = np.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        compensated(values, BY_NAME["Q4_0"], inputs_of(np.eye(WIDTH)))


@pytest.mark.parametrize("name", GRIDS)
def test_bytes_hold_what_the_grid_said(name: str) -> None:
    grid = GRIDS[name]
    values_VN = np.random.default_rng(9).standard_normal((grid.entry.block_values, 40)).astype(np.float32)
    fit = grid.fit(grid, values_VN, np.ones_like(values_VN))
    codes = fit.all_codes(values_VN)
    width = grid.entry.block_values // grid.num_sub_blocks
    said = np.concatenate([fit.values(codes[s * width : (s + 1) * width], s) for s in range(grid.num_sub_blocks)])
    np.testing.assert_array_equal(dequantize(fit.packed(codes), grid.entry, said.T.shape), said.T)


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q4_1", "Q4_K", "Q5_0", "Q6_K"])
def test_importance_moves_the_error_to_where_it_matters_less(name: str) -> None:
    entry, values = BY_NAME[name], matrix()
    importance = np.where(np.arange(WIDTH) % 4 == 0, 25.0, 1.0)

    def weighted(data: np.ndarray) -> float:
        return float((importance * (dequantize(data, entry, values.shape) - values) ** 2).sum())

    assert weighted(quantize(values, entry, importance)) < weighted(quantize(values, entry))
    np.testing.assert_array_equal(quantize(values, entry, np.full(WIDTH, 4.0)), quantize(values, entry))
