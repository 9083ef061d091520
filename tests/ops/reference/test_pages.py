"""What the formats of keys and values keep, and what a query reads of them."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.chips.reference import ReferenceOps, ReferencePages
from ridgeline.chips.reference.ops import attention_of_one_query
from ridgeline.chips.reference.pages import key_codes, keys_through_codes, rounded_to_bf16, value_codes
from ridgeline.ops.chip import PageLayout
from ridgeline.ops.host_step import StepPart, host_step

SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2**126, min_value=-(2**126))


def nearest_bf16(value: float) -> float:
    """By search among the two neighbours, whose last bit decides ties."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    low, high = (struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in (bits >> 16, (bits >> 16) + 1))
    distance_low, distance_high = abs(value - low), abs(high - value)
    if distance_low == distance_high:
        return high if (bits >> 16) & 1 else low
    return low if distance_low < distance_high else high


@given(SINGLE)
def test_bf16_is_the_nearest_with_ties_to_even(value):
    assert float(rounded_to_bf16(np.array([value], dtype=np.float32))[0]) == nearest_bf16(value)


def test_bf16_of_special_values():
    given_values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 3.4e38], dtype=np.float32)
    rounded = rounded_to_bf16(given_values)
    assert rounded[0] == rounded[5] == np.inf and rounded[1] == -np.inf and math.isnan(rounded[2])
    assert rounded[3] == 0 and np.signbit(rounded[4])


def test_key_codes_span_each_channel_of_a_page():
    keys_SKC = np.random.default_rng(0).standard_normal((64, 2, 8)).astype(np.float32)
    codes_SKC, scale_KC, low_KC = key_codes(keys_SKC)
    assert (codes_SKC.min(axis=0) == 0).all() and (codes_SKC.max(axis=0) == 255).all()
    assert np.array_equal(low_KC, keys_SKC.min(axis=0))
    assert (np.abs(keys_through_codes(keys_SKC) - keys_SKC) <= scale_KC * 0.5001 + 1e-6).all()


def test_value_codes_span_each_token_and_head():
    values_SKC = np.random.default_rng(1).standard_normal((64, 2, 8)).astype(np.float32)
    codes_SKC, scale_SK1 = value_codes(values_SKC)
    assert (np.abs(codes_SKC.astype(int)).max(axis=-1) == 127).all()
    assert (np.abs(scale_SK1 * codes_SKC - values_SKC) <= scale_SK1 * 0.5001 + 1e-6).all()


def test_codes_round_half_to_even():
    keys_SKC = np.array([0.0, 0.5, 1.5, 2.5, 255.0], dtype=np.float32).reshape(5, 1, 1)
    assert key_codes(keys_SKC)[0].reshape(-1).tolist() == [0, 0, 2, 2, 255]
    values = np.array([[[-127.0, 0.5, 1.5, -2.5, 126.5]]], dtype=np.float32)
    assert value_codes(values)[0].reshape(-1).tolist() == [-127, 0, 2, -2, 126]


def test_constant_channels_and_zero_tokens_are_kept_exactly():
    keys_SKC = np.full((64, 1, 2), -3.25, dtype=np.float32)
    assert np.array_equal(keys_through_codes(keys_SKC), keys_SKC)
    codes, scale = value_codes(np.zeros((1, 1, 4), dtype=np.float32))
    assert not codes.any() and not scale.any()


LAYOUT = {kind: PageLayout(layers=((1, 4), (2, 8)), format=kind) for kind in ("f32", "bf16", "int8")}


def test_pages_that_were_never_stored_are_not_numbers():
    pages = ReferencePages.allocate(LAYOUT["bf16"], 3)
    assert all(np.isnan(part).all() for part in (*pages.keys, *pages.values))
    assert [part.shape for part in pages.keys] == [(192, 1, 4), (192, 2, 8)]


@pytest.mark.parametrize("kind", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("window", [None, 1, 30, 100])
def test_attend_reads_the_own_page_exactly_and_earlier_ones_as_the_format_says(kind, window):
    rng = np.random.default_rng(3)
    length, page_ids = 150, [4, 0, 2]
    q_THC, k_TKC, v_TKC = (rng.standard_normal((length, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    part = StepPart(token_ids=[0] * length, start=0, page_ids=page_ids, place=0, num_logit_rows=1)
    step = host_step([part])
    ops, pages = ReferenceOps(), ReferencePages.allocate(LAYOUT[kind], 5)
    pages = ops.store_kv(pages, 1, k_TKC, v_TKC, step)
    y_THC = ops.attend(q_THC, pages, 1, step, scale=0.5, window=window, softcap=None)
    kept_k, kept_v = (x if kind == "f32" else rounded_to_bf16(x) for x in (k_TKC, v_TKC))
    for t in (0, 63, 64, 127, 128, 149):
        seen_k, seen_v = kept_k[: t + 1].copy(), kept_v[: t + 1].copy()
        if kind == "int8":
            for start in range(0, t // 64 * 64, 64):
                page = slice(start, start + 64)
                seen_k[page] = keys_through_codes(kept_k[page])
                codes, scale = value_codes(kept_v[page])
                seen_v[page] = scale * codes
        first = 0 if window is None else max(0, t + 1 - window)
        wide = [part[first:].astype(np.float64) for part in (seen_k, seen_v)]
        expected = attention_of_one_query(q_THC[t].astype(np.float64), *wide, 0.5, None)
        assert np.array_equal(y_THC[t], expected), t
