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
MIN_SPAN_BLOCKS = 6
PROGRAMS_WANTED = 160
"""A few more than an H100 has multiprocessors. A constant, not the chip's own: the bits follow from it."""
CAST_TOKENS = 16
"""Up to here float32 tokens are rounded where they are multiplied; beyond, once before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """How a program is cut; it decides speed, never bits."""

    tokens: int
    rows: int
    width: int
    num_warps: int
    num_stages: int


def tile_for(num_tokens: int, width: int, *, is_float: bool, is_spans_added: bool) -> Tile:
    """The fastest of those tried on an H100. float32 products are made without tensor cores, in one shape."""
    if is_float:
        return Tile(tokens=16, rows=64, width=32, num_warps=4, num_stages=2)
    if num_tokens <= 16:
        return Tile(tokens=16, rows=64, width=128, num_warps=4, num_stages=4)
    if num_tokens <= 32:
        return Tile(tokens=32, rows=64, width=128, num_warps=4, num_stages=3)
    if num_tokens <= 64:
        return Tile(tokens=64, rows=64, width=64, num_warps=4, num_stages=4)
    if is_spans_added:
        if width < 4096:
            return Tile(tokens=64, rows=128, width=64, num_warps=4, num_stages=4)
        return Tile(tokens=128, rows=128, width=64, num_warps=8, num_stages=4)
    if num_tokens <= 512:
        return Tile(tokens=128, rows=64, width=64, num_warps=4, num_stages=4)
    return Tile(tokens=256, rows=128, width=64, num_warps=8, num_stages=3)


def is_split(num_tokens: int, num_rows: int) -> bool:
    """Whether spans run beside one another: where there would be too few programs without."""
    return num_tokens <= 64 or bool(triton.cdiv(num_tokens, 64) * triton.cdiv(num_rows, SPAN_ROWS) <= 192)


def span_blocks(num_rows: int, width: int) -> int:
    """Blocks of BLOCK_WIDTH that a span has: as many programs as are wanted, but none too short to read well."""
    blocks = triton.cdiv(width, BLOCK_WIDTH)
    wanted = PROGRAMS_WANTED // triton.cdiv(num_rows, SPAN_ROWS)
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
    num_spans = _num_spans(weight_FK) if is_split(len(x_TK), len(weight_FK)) else 1
    y_STF = torch.empty((num_spans, len(x_TK), len(weight_FK)), dtype=torch.float32, device=x_TK.device)
    _launch(x_TK, weight_FK, y_STF, tile, num_programs_of_tile=num_spans, gate="")
    return y_STF


def gated_product(x_TK: Tensor, weight_FK: Tensor, kind: str, dtype: torch.dtype, tile: Tile | None = None) -> Tensor:
    """activate(x @ first half of the rows) * (x @ second half), x_TU, in the type that the next product reads."""
    if _num_spans(weight_FK) > 1:
        return gated(product_spans(x_TK, weight_FK, tile), kind, dtype)
    y_TU = torch.empty((len(x_TK), len(weight_FK) // 2), dtype=dtype, device=x_TK.device)
    _launch(x_TK, weight_FK, y_TU, tile, num_programs_of_tile=1, gate=kind)
    return y_TU


def _num_spans(weight_FK: Tensor) -> int:
    num_rows, width = weight_FK.shape
    return int(triton.cdiv(triton.cdiv(width, BLOCK_WIDTH), span_blocks(num_rows, width)))


def _launch(
    x_TK: Tensor, weight_FK: Tensor, y: Tensor, tile: Tile | None, *, num_programs_of_tile: int, gate: str
) -> None:
    num_tokens, width = x_TK.shape
    num_rows = len(weight_FK)
    is_float = weight_FK.dtype == torch.float32
    if num_tokens == 0:
        return
    if num_tokens > CAST_TOKENS:
        x_TK = x_TK.to(weight_FK.dtype)
    num_spans = _num_spans(weight_FK)
    is_spans_added = num_programs_of_tile < num_spans
    tile = tile or tile_for(num_tokens, width, is_float=is_float, is_spans_added=is_spans_added)
    tiles = triton.cdiv(num_tokens, tile.tokens) * triton.cdiv(num_rows, tile.rows)
    _product[(tiles, num_programs_of_tile)](
        x_TK,
        weight_FK,
        y,
        num_tokens,
        num_rows,
        width,
        x_TK.stride(0),
        SPAN=span_blocks(num_rows, width) * BLOCK_WIDTH,
        NUM_SPANS=num_spans,
        IS_SPANS_ADDED=is_spans_added,
        IS_WIDTH_EVEN=width % tile.width == 0,
        GATE=gate,
        PRECISION="ieee" if is_float else None,
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        WIDTH=tile.width,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def sum_of_spans(y_STF: Tensor, bias_F: Tensor | None) -> Tensor:
    """y_TF: spans added up in order, then the bias."""
    num_spans, num_tokens, num_rows = y_STF.shape
    if num_spans == 1 and bias_F is None:
        return y_STF[0]
    y_TF = torch.empty((num_tokens, num_rows), dtype=torch.float32, device=y_STF.device)
    if num_tokens:
        block = 256 if num_tokens <= 64 else 1024
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
        block = 256 if num_tokens <= 64 else 1024
        _gated[(triton.cdiv(num_rows // 2, block), num_tokens)](
            y_STF, x_TU, num_tokens, num_rows, NUM_SPANS=num_spans, GATE=kind, BLOCK=block,
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
    IS_SPANS_ADDED: tl.constexpr,
    IS_WIDTH_EVEN: tl.constexpr,
    GATE: tl.constexpr,
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
    row_F = f_F
    if GATE != "":
        # Rows of both halves take turns, so that each pair is in the same tile.
        row_F = f_F // 2 + (f_F % 2) * (num_rows // 2)
    # Rows past the end read the last one again, and are not written.
    x_T1 = x + tl.minimum(t_T, num_tokens - 1).to(tl.int64)[:, None] * x_stride
    weight_F1 = weight + tl.minimum(row_F, num_rows - 1).to(tl.int64)[:, None] * width
    if IS_SPANS_ADDED:
        total_FT = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        for span in range(NUM_SPANS):
            end = tl.minimum((span + 1) * SPAN, width)
            total_FT += _span(x_T1, weight_F1, span * SPAN, end, width, IS_WIDTH_EVEN, PRECISION, TOKENS, ROWS, WIDTH)
    else:
        start = tl.program_id(1) * SPAN
        end = tl.minimum(start + SPAN, width)
        total_FT = _span(x_T1, weight_F1, start, end, width, IS_WIDTH_EVEN, PRECISION, TOKENS, ROWS, WIDTH)
    if GATE != "":
        gate_UT, up_UT = total_FT.reshape(ROWS // 2, 2, TOKENS).permute(0, 2, 1).split()
        u_U = (tile // token_tiles) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        half = num_rows // 2
        is_inside = (u_U < half)[:, None] & (t_T < num_tokens)[None, :]
        pointer = y + t_T.to(tl.int64)[None, :] * half + u_U[:, None]
        tl.store(pointer, (_activated(gate_UT, GATE) * up_UT).to(y.dtype.element_ty), mask=is_inside)
    else:
        place_T = tl.program_id(1) * num_tokens.to(tl.int64) + t_T
        is_inside = (f_F < num_rows)[:, None] & (t_T < num_tokens)[None, :]
        tl.store(y + place_T[None, :] * num_rows + f_F[:, None], total_FT, mask=is_inside)


@triton.jit
def _span(
    x_T1: tl.tensor,
    weight_F1: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    width: tl.tensor,
    IS_WIDTH_EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The sum over [start, end) of the width, ROWS x TOKENS: one chain of additions in the tensor cores."""
    sum_FT = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    for place in range(start, end, WIDTH):
        k_1K = (place + tl.arange(0, WIDTH))[None, :]
        if IS_WIDTH_EVEN:
            weight_FK = tl.load(weight_F1 + k_1K)
            x_TK = tl.load(x_T1 + k_1K)
        else:
            weight_FK = tl.load(weight_F1 + k_1K, mask=k_1K < width, other=0.0)
            x_TK = tl.load(x_T1 + k_1K, mask=k_1K < width, other=0.0)
        sum_FT = tl.dot(weight_FK, x_TK.to(weight_FK.dtype).trans(), sum_FT, input_precision=PRECISION)
    return sum_FT


@triton.jit
def _activated(x: tl.tensor, KIND: tl.constexpr):
    """SiLU, or GELU in its tanh form: 0.5 (1 + tanh(z)) is 1 / (1 + exp(-2 z))."""
    if KIND == "silu":
        return x / (1.0 + tl.exp(-x))
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


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
    GATE: tl.constexpr,
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
    activated_U = _activated(gate_U, GATE)
    tl.store(out + token * half + u_U, (activated_U * up_U).to(out.dtype.element_ty), mask=u_U < half)
