"""The definition of each op, against the plainest loops over Python floats that say the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ridgeline.chips.reference import ReferenceOps, ReferenceWeight
from ridgeline.chips.reference.ops import attention_of_one_query
from ridgeline.ops.chip import TensorSource
from tests.tiny_models import host_tensor

OPS = ReferenceOps()


def weight(values) -> ReferenceWeight:
    tensor = host_tensor("w", np.asarray(values, dtype=np.float32))
    return ReferenceWeight(TensorSource(name="w", shape=tensor.shape, format_name="F32", read=lambda: tensor))


def random(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 33, 300), (2, 9001, 3), (2, 3, 9001)])
def test_linear_is_a_product_with_each_row(shape):
    num_tokens, rows, width = shape
    x_TD, w_FD, bias_F = random(num_tokens, width), random(rows, width, seed=1), random(rows, seed=2)
    exact = x_TD.astype(np.float64) @ w_FD.astype(np.float64).T
    assert OPS.linear(x_TD, weight(w_FD)) == pytest.approx(exact, abs=1e-3)
    assert OPS.linear(x_TD, weight(w_FD), weight(bias_F)) == pytest.approx(exact + bias_F, abs=1e-3)


def test_a_row_of_a_product_depends_on_its_own_row_alone():
    x_TD, w = random(50, 777), weight(random(301, 777, seed=1))
    together = OPS.linear(x_TD, w)
    for t in (0, 7, 49):
        assert np.array_equal(OPS.linear(x_TD[t : t + 1], w)[0], together[t])
    assert np.array_equal(OPS.linear(x_TD[::-1], w)[::-1], together)


def test_embed_and_take_rows_are_rows():
    table = random(9, 4)
    ids = np.array([8, 0, 8], dtype=np.int32)
    assert np.array_equal(OPS.embed(weight(table), ids), table[[8, 0, 8]])
    assert np.array_equal(OPS.take_rows(table, ids), table[[8, 0, 8]])
    for wrong in (-1, 9):
        with pytest.raises(AssertionError):
            OPS.embed(weight(table), np.array([wrong], dtype=np.int32))


def test_rms_norm_divides_by_the_root_mean_square():
    x_THC, w_C = random(2, 3, 8), random(8, seed=1)
    for t, h in np.ndindex(2, 3):
        row = [float(value) for value in x_THC[t, h]]
        root = math.sqrt(sum(value * value for value in row) / 8 + 0.5)
        expected = [value / root * float(w) for value, w in zip(row, w_C, strict=True)]
        assert OPS.rms_norm(x_THC, weight(w_C), 0.5)[t, h] == pytest.approx(expected, rel=1e-6)


def test_activations_at_known_points():
    x = np.array([[0, 1, -1, 3, -200, 200]], dtype=np.float32)
    assert OPS.activate(x, "silu")[0] == pytest.approx([0, 0.7310586, -0.2689414, 2.8577224, 0, 200], abs=1e-6)
    assert OPS.activate(x, "gelu_tanh")[0] == pytest.approx([0, 0.841192, -0.158808, 2.996363, 0, 200], abs=1e-6)


def test_softcap_is_nearly_the_identity_near_zero_and_never_above_the_cap():
    assert OPS.softcap(np.array([0.001, -1e9, 1e9, 30.0], dtype=np.float32), 30.0) == pytest.approx(
        [0.001, -30, 30, 30 * math.tanh(1)], rel=1e-6
    )


def test_heads_are_the_same_values():
    x_TD = random(3, 12)
    x_THC = OPS.heads(x_TD, 4)
    assert x_THC.shape == (3, 4, 3) and np.array_equal(x_THC[1, 2], x_TD[1, 6:9])
    assert np.array_equal(OPS.merge_heads(x_THC), x_TD)


def test_rope_turns_pairs_half_a_width_apart():
    x_THC = random(3, 2, 10)
    positions = np.array([0, 5, 1000], dtype=np.int32)
    angles = OPS.angles(positions, weight([1.0, 0.25, 0.01]), 1.5)
    turned = OPS.rope(x_THC, angles)
    for t, h, i in np.ndindex(3, 2, 3):
        angle = float(positions[t]) * [1.0, 0.25, 0.01][i]
        first, second = float(x_THC[t, h, i]), float(x_THC[t, h, i + 3])
        cosine, sine = 1.5 * math.cos(angle), 1.5 * math.sin(angle)
        assert turned[t, h, i] == pytest.approx(first * cosine - second * sine, abs=1e-5)
        assert turned[t, h, i + 3] == pytest.approx(second * cosine + first * sine, abs=1e-5)
    assert np.array_equal(turned[..., 6:], x_THC[..., 6:])


def test_products_of_turned_heads_depend_on_the_distance_alone():
    q, k = random(1, 1, 8), random(1, 1, 8, seed=1)
    frequencies = weight([1.0, 0.3, 0.1, 0.03])

    def product(query_position, key_position):
        angles = [OPS.angles(np.array([p], dtype=np.int32), frequencies, 1.0) for p in (query_position, key_position)]
        return float((OPS.rope(q, angles[0]) * OPS.rope(k, angles[1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-5)
    assert product(7, 3) != pytest.approx(product(8, 3), abs=1e-2)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_is_a_softmax_over_keys(softcap):
    q_HC, k_PKC, v_PKC = (part.astype(np.float64) for part in (random(4, 6), random(5, 2, 6), random(5, 2, 6, seed=3)))
    y_HC = attention_of_one_query(q_HC, k_PKC, v_PKC, 0.7, softcap)
    for h in range(4):
        scores = [0.7 * sum(q_HC[h, c] * k_PKC[p, h // 2, c] for c in range(6)) for p in range(5)]
        if softcap is not None:
            scores = [softcap * math.tanh(score / softcap) for score in scores]
        total = sum(math.exp(score) for score in scores)
        for c in range(6):
            expected = sum(math.exp(scores[p]) / total * v_PKC[p, h // 2, c] for p in range(5))
            assert y_HC[h, c] == pytest.approx(expected, abs=1e-6)
