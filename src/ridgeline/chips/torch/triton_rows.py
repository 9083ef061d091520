"""Norms, rope and stores on a GPU, in Triton, each a row or a token a program.

Knows: Triton, tensors. Does not know: decoders.

Shape letters: T tokens, H heads, C head width, N rows of any kind, D their width, R turned width.
"""

# Kernels are written in Triton's language, which looks like Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined"
# ruff: noqa: ANN202

from __future__ import annotations

import torch  # type: ignore[import-not-found, unused-ignore]
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]


def normed_rows(
    spans_SND: Tensor,
    bias_D: Tensor | None,
    stream_ND: Tensor | None,
    weight_D: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    *,
    is_sum_wanted: bool,
) -> tuple[Tensor, Tensor]:
    """(y, x): x = stream + sum of spans + bias, and y = x / sqrt(mean(x²) + epsilon) * weight, row by row.

    y is of the type that is asked for; x is float32, and written only where it is wanted.
    """
    num_spans, num_rows, width = spans_SND.shape
    y_ND = torch.empty((num_rows, width), dtype=dtype, device=spans_SND.device)
    x_ND = torch.empty((num_rows, width), dtype=torch.float32, device=spans_SND.device) if is_sum_wanted else spans_SND
    block = triton.next_power_of_2(width)
    if num_rows:
        _normed_rows[(num_rows,)](
            spans_SND, weight_D if bias_D is None else bias_D, spans_SND if stream_ND is None else stream_ND,
            weight_D, y_ND, x_ND, num_rows, epsilon,
            NUM_SPANS=num_spans, HAS_BIAS=bias_D is not None, HAS_STREAM=stream_ND is not None,
            IS_SUM_WANTED=is_sum_wanted, WIDTH=width, BLOCK=block, num_warps=min(8, max(1, block // 256)),
        )  # fmt: skip
    return y_ND, x_ND


def turned_and_stored(
    spans_STF: Tensor,
    bias_F: Tensor | None,
    angles_T2R: Tensor,
    num_heads: int,
    keys: Tensor,
    values: Tensor,
    slots_T: Tensor,
) -> Tensor:
    """q_THC: the queries, turned. Keys, turned, and values go to their slots; a negative slot stores nothing.

    Args:
        spans_STF: queries, keys and values side by side.
        bias_F: theirs.
        angles_T2R: cosines and sines.
        num_heads: of the queries.
        keys: (slots, K, C), written.
        values: likewise.
        slots_T: where each token's are stored.
    """
    num_spans, num_tokens = spans_STF.shape[:2]
    num_kv_heads, width = keys.shape[1:]
    q_THC = torch.empty((num_tokens, num_heads, width), dtype=torch.float32, device=spans_STF.device)
    _turned_and_stored[(num_tokens, num_heads + 2 * num_kv_heads)](
        spans_STF, spans_STF if bias_F is None else bias_F, angles_T2R, q_THC, keys, values, slots_T, num_tokens,
        NUM_SPANS=num_spans, HAS_BIAS=bias_F is not None, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads,
        WIDTH=width, HALF=angles_T2R.shape[2], BLOCK=triton.next_power_of_2(width), num_warps=1,
    )  # fmt: skip
    return q_THC


def turned_heads(x_THC: Tensor, angles_T2R: Tensor) -> Tensor:
    """The pairs (x[i], x[i + R/2]) turned; each token's heads are contiguous."""
    num_tokens, num_heads, width = x_THC.shape
    half = angles_T2R.shape[2]
    y_THC = torch.empty((num_tokens, num_heads, width), dtype=torch.float32, device=x_THC.device)
    if num_tokens:
        _turned_heads[(num_tokens, num_heads)](
            x_THC, angles_T2R, y_THC, x_THC.stride(0),
            NUM_HEADS=num_heads, WIDTH=width, HALF=half, BLOCK=triton.next_power_of_2(width), num_warps=1,
        )  # fmt: skip
    return y_THC


def store_rows(k_TKC: Tensor, v_TKC: Tensor, keys: Tensor, values: Tensor, slots_T: Tensor) -> None:
    """Keys and values to their slots, rounded to the pages' type; a negative slot stores nothing."""
    num_tokens = k_TKC.shape[0]
    width = k_TKC.shape[1] * k_TKC.shape[2]
    _store_rows[(num_tokens,)](
        k_TKC, v_TKC, keys, values, slots_T, k_TKC.stride(0), v_TKC.stride(0),
        WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _normed_rows(
    spans: tl.tensor,
    bias: tl.tensor,
    stream: tl.tensor,
    weight: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    num_rows: tl.tensor,
    epsilon: tl.tensor,
    NUM_SPANS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STREAM: tl.constexpr,
    IS_SUM_WANTED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, BLOCK)
    x_D = _sum_of_row(spans + d_D, row, num_rows, WIDTH, d_D < WIDTH, NUM_SPANS)
    if HAS_BIAS:
        x_D += tl.load(bias + d_D, mask=d_D < WIDTH, other=0.0)
    if HAS_STREAM:
        x_D = tl.load(stream + row * WIDTH + d_D, mask=d_D < WIDTH, other=0.0) + x_D
    if IS_SUM_WANTED:
        tl.store(x + row * WIDTH + d_D, x_D, mask=d_D < WIDTH)
    size = tl.sqrt(tl.sum(x_D * x_D, axis=0) / WIDTH + epsilon)
    weight_D = tl.load(weight + d_D, mask=d_D < WIDTH, other=0.0)
    tl.store(y + row * WIDTH + d_D, (x_D / size * weight_D).to(y.dtype.element_ty), mask=d_D < WIDTH)


@triton.jit
def _sum_of_row(
    pointer: tl.tensor,
    row: tl.tensor,
    num_rows: tl.tensor,
    width: tl.tensor,
    is_inside: tl.tensor,
    NUM_SPANS: tl.constexpr,
):
    """Spans of a row, added up in order; where it is not inside, 0."""
    total = tl.load(pointer + row * width, mask=is_inside, other=0.0)
    for span in tl.static_range(1, NUM_SPANS):
        total += tl.load(pointer + (span * num_rows.to(tl.int64) + row) * width, mask=is_inside, other=0.0)
    return total


@triton.jit(do_not_specialize=["num_tokens"])
def _turned_and_stored(
    spans: tl.tensor,
    bias: tl.tensor,
    angles: tl.tensor,
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    slots: tl.tensor,
    num_tokens: tl.tensor,
    NUM_SPANS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one token: first the query heads, then those of keys, then those of values."""
    num_rows: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * WIDTH
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    c_C = tl.arange(0, BLOCK)
    is_inside_C = c_C < WIDTH
    f_C = head * WIDTH + c_C
    own_C = _sum_of_row(spans + f_C, token, num_tokens, num_rows, is_inside_C, NUM_SPANS)
    if HAS_BIAS:
        own_C += tl.load(bias + f_C, mask=is_inside_C, other=0.0)
    if head < NUM_HEADS + NUM_KV_HEADS:
        is_first_C = c_C < HALF
        is_turned_C = c_C < 2 * HALF
        pair_C = tl.where(is_first_C, c_C, c_C - HALF)
        other_f_C = tl.where(is_first_C, f_C + HALF, f_C - HALF)
        other_C = _sum_of_row(spans + other_f_C, token, num_tokens, num_rows, is_turned_C, NUM_SPANS)
        if HAS_BIAS:
            other_C += tl.load(bias + other_f_C, mask=is_turned_C, other=0.0)
        cosine_C = tl.load(angles + token * (2 * HALF) + pair_C, mask=is_turned_C, other=1.0)
        sine_C = tl.load(angles + token * (2 * HALF) + HALF + pair_C, mask=is_turned_C, other=0.0)
        own_C = own_C * cosine_C + tl.where(is_first_C, -other_C, other_C) * sine_C
    if head < NUM_HEADS:
        tl.store(q + (token * NUM_HEADS + head) * WIDTH + c_C, own_C, mask=is_inside_C)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        kv_head = (head - NUM_HEADS) % NUM_KV_HEADS
        place_C = (slot * NUM_KV_HEADS + kv_head) * WIDTH + c_C
        is_stored_C = is_inside_C & (slot >= 0)
        rounded_C = own_C.to(keys.dtype.element_ty)
        if head < NUM_HEADS + NUM_KV_HEADS:
            tl.store(keys + place_C, rounded_C, mask=is_stored_C)
        else:
            tl.store(values + place_C, rounded_C, mask=is_stored_C)


@triton.jit
def _turned_heads(
    x: tl.tensor,
    angles: tl.tensor,
    y: tl.tensor,
    x_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    c_C = tl.arange(0, BLOCK)
    x_row = x + token * x_stride + head * WIDTH
    is_first_C = c_C < HALF
    is_turned_C = c_C < 2 * HALF
    pair_C = tl.where(is_first_C, c_C, c_C - HALF)
    cosine_C = tl.load(angles + token * (2 * HALF) + pair_C, mask=is_turned_C, other=1.0)
    sine_C = tl.load(angles + token * (2 * HALF) + HALF + pair_C, mask=is_turned_C, other=0.0)
    own_C = tl.load(x_row + c_C, mask=c_C < WIDTH, other=0.0)
    other_C = tl.load(x_row + tl.where(is_first_C, c_C + HALF, c_C - HALF), mask=is_turned_C, other=0.0)
    turned_C = own_C * cosine_C + tl.where(is_first_C, -other_C, other_C) * sine_C
    tl.store(y + (token * NUM_HEADS + head) * WIDTH + c_C, turned_C, mask=c_C < WIDTH)


@triton.jit
def _store_rows(
    k: tl.tensor,
    v: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    slots: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        c_C = tl.arange(0, BLOCK)
        k_C = tl.load(k + token * k_stride + c_C, mask=c_C < WIDTH)
        v_C = tl.load(v + token * v_stride + c_C, mask=c_C < WIDTH)
        tl.store(keys + slot * WIDTH + c_C, k_C.to(keys.dtype.element_ty), mask=c_C < WIDTH)
        tl.store(values + slot * WIDTH + c_C, v_C.to(values.dtype.element_ty), mask=c_C < WIDTH)
