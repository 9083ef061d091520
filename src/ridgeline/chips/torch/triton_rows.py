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


def normed_rows(x_ND: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """X / sqrt(mean(x²) + epsilon) * weight, row by row."""
    num_rows, width = x_ND.shape
    y_ND = torch.empty((num_rows, width), dtype=torch.float32, device=x_ND.device)
    block = triton.next_power_of_2(width)
    if num_rows:
        _normed_rows[(num_rows,)](
            x_ND, weight_D, y_ND, x_ND.stride(0), epsilon, WIDTH=width, BLOCK=block,
            num_warps=min(8, max(1, block // 256)),
        )  # fmt: skip
    return y_ND


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


@triton.jit
def _normed_rows(
    x: tl.tensor,
    weight: tl.tensor,
    y: tl.tensor,
    x_stride: tl.tensor,
    epsilon: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, BLOCK)
    x_D = tl.load(x + row * x_stride + d_D, mask=d_D < WIDTH, other=0.0)
    size = tl.sqrt(tl.sum(x_D * x_D, axis=0) / WIDTH + epsilon)
    weight_D = tl.load(weight + d_D, mask=d_D < WIDTH, other=0.0)
    tl.store(y + row * WIDTH + d_D, x_D / size * weight_D, mask=d_D < WIDTH)


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
