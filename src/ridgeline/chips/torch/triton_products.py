"""Products with weights on a GPU, in Triton: rows of y that do not depend on how many rows there are.

The tensor cores are given weights as the first operand and tokens as the second, so that one token and thousands run
the same instructions: a tile of tokens only grows wider. The sum over the width is cut into *spans* whose number
follows from the weight's shape alone. Where tokens are few, each span is a program of its own, so that even a small
weight keeps the whole chip reading; where they are many, one program adds up all spans, in the same order.

Knows: Triton, tensors. Does not know: decoders, weight formats.

Shape letters: T tokens, F rows of the weight, K its width, S spans, U half of F.
"""

# Kernels are written in Triton's language, which looks like Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined"
# ruff: noqa: ANN202

from __future__ import annotations

from dataclasses import dataclass

import torch  # type: ignore[import-not-found, unused-ignore]
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

BLOCK_WIDTH = 64
"""Weights of a row that a program takes at once, and the grain of spans."""
SPAN_ROWS = 64
MIN_SPAN_BLOCKS = 4
PROGRAMS_WANTED = 264
"""Two for each multiprocessor of an H100. A constant, not the chip's own: the bits follow from it."""
FEW_TOKENS = 64
"""Up to here a product is bound by reading the weight, and spans run beside one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """How a program is cut; it decides speed, never bits."""

    tokens: int
    rows: int
    width: int
    num_warps: int
    num_stages: int


def tile_for(num_tokens: int, *, is_float: bool) -> Tile:
    """The tile for so many tokens. float32 products are made without tensor cores, in one shape."""
    if is_float:
        return Tile(tokens=16, rows=64, width=32, num_warps=4, num_stages=2)
    if num_tokens <= 16:
        return Tile(tokens=16, rows=64, width=128, num_warps=4, num_stages=4)
    if num_tokens <= 32:
        return Tile(tokens=32, rows=64, width=128, num_warps=4, num_stages=4)
    if num_tokens <= FEW_TOKENS:
        return Tile(tokens=64, rows=64, width=128, num_warps=4, num_stages=3)
    if num_tokens <= 256:
        return Tile(tokens=128, rows=64, width=64, num_warps=4, num_stages=4)
    return Tile(tokens=128, rows=128, width=64, num_warps=8, num_stages=3)


def span_blocks(num_rows: int, width: int) -> int:
    """Blocks of BLOCK_WIDTH that a span has: two programs for each multiprocessor, but none too short to read well."""
    blocks = triton.cdiv(width, BLOCK_WIDTH)
    wanted = round(PROGRAMS_WANTED / triton.cdiv(num_rows, SPAN_ROWS))
    num_spans = max(1, min(wanted, blocks // MIN_SPAN_BLOCKS))
    # Even numbers of blocks, so that tiles of two blocks never straddle a span.
    return 2 * int(triton.cdiv(triton.cdiv(blocks, num_spans), 2))


def product_spans(x_TK: Tensor, weight_FK: Tensor, tile: Tile | None = None) -> Tensor:
    """y_STF, whose sum over S is x @ weight.T; S is 1 where one program has added up all spans.

    Args:
        x_TK: float32, or the weight's own type; rows contiguous.
        weight_FK: bfloat16 or float32, contiguous.
        tile: another tile than the usual one, for measurements.
    """
    num_tokens, width = x_TK.shape
    num_rows = weight_FK.shape[0]
    is_float = weight_FK.dtype == torch.float32
    if num_tokens > FEW_TOKENS:
        x_TK = x_TK.to(weight_FK.dtype)
    tile = tile or tile_for(num_tokens, is_float=is_float)
    blocks_of_span = span_blocks(num_rows, width)
    num_spans = triton.cdiv(triton.cdiv(width, BLOCK_WIDTH), blocks_of_span)
    is_split = num_tokens <= FEW_TOKENS and num_spans > 1
    y_STF = torch.empty((num_spans if is_split else 1, num_tokens, num_rows), dtype=torch.float32, device=x_TK.device)
    if num_tokens == 0:
        return y_STF
    tiles = triton.cdiv(num_tokens, tile.tokens) * triton.cdiv(num_rows, tile.rows)
    _product[(tiles, num_spans if is_split else 1)](
        x_TK,
        weight_FK,
        y_STF,
        num_tokens,
        num_rows,
        width,
        x_TK.stride(0),
        SPAN=blocks_of_span * BLOCK_WIDTH,
        NUM_SPANS=num_spans,
        IS_SPLIT=is_split,
        IS_WIDTH_EVEN=width % tile.width == 0,
        PRECISION="ieee" if is_float else None,
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        WIDTH=tile.width,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return y_STF


def sum_of_spans(y_STF: Tensor, bias_F: Tensor | None) -> Tensor:
    """y_TF: spans added up in order, then the bias."""
    num_spans, num_tokens, num_rows = y_STF.shape
    if num_spans == 1 and bias_F is None:
        return y_STF[0]
    y_TF = torch.empty((num_tokens, num_rows), dtype=torch.float32, device=y_STF.device)
    if num_tokens:
        block = 256 if num_tokens <= FEW_TOKENS else 1024
        _sum_of_spans[(triton.cdiv(num_rows, block), num_tokens)](
            y_STF, y_TF if bias_F is None else bias_F, y_TF, num_tokens, num_rows,
            NUM_SPANS=num_spans, HAS_BIAS=bias_F is not None, BLOCK=block, num_warps=block // 128,
        )  # fmt: skip
    return y_TF


def gated(y_STF: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """activate(first half) * second half of the sums of spans, x_TU, as the next product reads it."""
    num_spans, num_tokens, num_rows = y_STF.shape
    x_TU = torch.empty((num_tokens, num_rows // 2), dtype=dtype, device=y_STF.device)
    if num_tokens:
        block = 256 if num_tokens <= FEW_TOKENS else 1024
        _gated[(triton.cdiv(num_rows // 2, block), num_tokens)](
            y_STF, x_TU, num_tokens, num_rows, NUM_SPANS=num_spans, IS_SILU=kind == "silu", BLOCK=block,
            num_warps=block // 128,
        )  # fmt: skip
    return x_TU


@triton.jit(do_not_specialize=["num_tokens"])
def _product(
    x: tl.tensor,
    weight: tl.tensor,
    y: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    width: tl.tensor,
    x_stride: tl.tensor,
    SPAN: tl.constexpr,
    NUM_SPANS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    IS_WIDTH_EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One tile of ROWS x TOKENS; neighbours share rows of the weight, so that it is read from memory once."""
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    tile = tl.program_id(0)
    f_F = (tile // token_tiles) * ROWS + tl.arange(0, ROWS)
    t_T = (tile % token_tiles) * TOKENS + tl.arange(0, TOKENS)
    # Rows past the end read the last one again, and are not written.
    x_T1 = x + tl.minimum(t_T, num_tokens - 1).to(tl.int64)[:, None] * x_stride
    weight_F1 = weight + tl.minimum(f_F, num_rows - 1).to(tl.int64)[:, None] * width
    k_K = tl.arange(0, WIDTH)
    first_span = tl.program_id(1) if IS_SPLIT else 0
    last_span = first_span + 1 if IS_SPLIT else NUM_SPANS
    total_FT = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    for span in range(first_span, last_span):
        span_FT = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, width), WIDTH):
            k_1K = (start + k_K)[None, :]
            if IS_WIDTH_EVEN:
                weight_FK = tl.load(weight_F1 + k_1K)
                x_TK = tl.load(x_T1 + k_1K)
            else:
                weight_FK = tl.load(weight_F1 + k_1K, mask=k_1K < width, other=0.0)
                x_TK = tl.load(x_T1 + k_1K, mask=k_1K < width, other=0.0)
            span_FT = tl.dot(weight_FK, x_TK.to(weight_FK.dtype).trans(), span_FT, input_precision=PRECISION)
        total_FT += span_FT
    place = tl.program_id(1) * num_tokens.to(tl.int64) + t_T
    is_inside = (f_F < num_rows)[:, None] & (t_T < num_tokens)[None, :]
    tl.store(y + place[None, :] * num_rows + f_F[:, None], total_FT, mask=is_inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_of_spans(
    y: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    NUM_SPANS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one token's row."""
    f_F = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64)
    total_F = tl.zeros((BLOCK,), dtype=tl.float32)
    for span in tl.static_range(NUM_SPANS):
        total_F += tl.load(y + (span * num_tokens + token) * num_rows + f_F, mask=f_F < num_rows)
    if HAS_BIAS:
        total_F += tl.load(bias + f_F, mask=f_F < num_rows)
    tl.store(out + token * num_rows + f_F, total_F, mask=f_F < num_rows)


@triton.jit(do_not_specialize=["num_tokens"])
def _gated(
    y: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    NUM_SPANS: tl.constexpr,
    IS_SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one token's row."""
    half = num_rows // 2
    u_U = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64)
    gate_U = tl.zeros((BLOCK,), dtype=tl.float32)
    up_U = tl.zeros((BLOCK,), dtype=tl.float32)
    for span in tl.static_range(NUM_SPANS):
        row = y + (span * num_tokens + token) * num_rows
        gate_U += tl.load(row + u_U, mask=u_U < half)
        up_U += tl.load(row + half + u_U, mask=u_U < half)
    if IS_SILU:
        activated_U = gate_U / (1.0 + tl.exp(-gate_U))
    else:
        # 0.5 (1 + tanh(z)) is 1 / (1 + exp(-2 z)).
        inner_U = 1.5957691216057308 * (gate_U + 0.044715 * gate_U * gate_U * gate_U)
        activated_U = gate_U / (1.0 + tl.exp(-inner_U))
    tl.store(out + token * half + u_U, (activated_U * up_U).to(out.dtype.element_ty), mask=u_U < half)
