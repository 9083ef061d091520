"""Attention over pages on a GPU, in Triton: a query's bits depend on its position alone.

Keys are walked in pages, and pages in *spans* of SPAN_PAGES from the sequence's start. Within a span the softmax is
carried along (Online normalizer calculation for softmax, arXiv 1805.02867); spans are merged in order. Where queries
are few, each span is a program of its own and a second kernel merges (as Flash-Decoding does); where they are many,
one program walks and merges all spans. Both make the same operations in the same order. Spans and pages that a query
does not see change nothing of its sums, not even a bit: they multiply by 1 and add 0.

Knows: Triton, pages of tensors. Does not know: decoders, requests.

Shape letters: R rows of a tile, that is queries of a few tokens and of all query heads of one kv head; P keys of a
page, C head width, T tokens, H query heads, S spans.
"""

# Kernels are written in Triton's language, which looks like Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, attr-defined"
# ruff: noqa: ANN202

from __future__ import annotations

import torch  # type: ignore[import-not-found, unused-ignore]
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

from ridgeline.ops.step import PAGE_SLOTS, StepArrays

TILE_ROWS = 64
"""The fewest that one instruction of Hopper's tensor cores takes."""
SPAN_PAGES = 2
MAX_SPLIT_PLACES = 8192
"""Tokens times spans up to which spans are programs of their own: beyond, there are programs enough without."""
LOG2_E = 1.4426950408889634
NOTHING = tl.constexpr(-1.0e30)
"""Stands for minus infinity, of which no differences could be taken."""


def paged_attention(
    q_THC: Tensor,
    keys: Tensor,
    values: Tensor,
    step: StepArrays[Tensor],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """y_THC of `FineOps.attend`, float32.

    Args:
        q_THC: float32, each token's heads contiguous.
        keys: (slots, kv heads, C), bfloat16 or float32; multiplied in that type.
        values: likewise.
        step: the step's arrays on the device; tokens of no sequence get undefined rows.
        scale: of the scores.
        window: positions that a query sees, itself included.
        softcap: of the scores.
    """
    num_tokens, num_heads, width = q_THC.shape
    num_kv_heads = keys.shape[1]
    num_sequences, num_pages = step.page_table_NP.shape
    num_spans = triton.cdiv(num_pages, SPAN_PAGES)
    is_split = num_spans > 1 and num_tokens * num_spans <= MAX_SPLIT_PLACES
    group = num_heads // num_kv_heads
    tile_tokens = max(1, TILE_ROWS // group)
    y_THC = torch.empty((num_tokens, num_heads, width), dtype=torch.float32, device=q_THC.device)
    part_THSC, most_THS, sum_THS = y_THC, y_THC, y_THC
    if is_split:
        part_THSC = torch.empty((num_tokens, num_heads, num_spans, width), dtype=torch.float32, device=q_THC.device)
        most_THS, sum_THS = torch.empty(
            (2, num_tokens, num_heads, num_spans), dtype=torch.float32, device=q_THC.device
        ).unbind()
    is_float = keys.dtype == torch.float32
    # A sequence's last tile may be partly empty: at most one each.
    num_tiles = num_tokens // tile_tokens + num_sequences
    _attend[(num_tiles, num_kv_heads, num_spans if is_split else 1)](
        q_THC, keys, values, y_THC, part_THSC, most_THS, sum_THS,
        step.query_starts_N1, step.context_lengths_N, step.page_table_NP,
        num_sequences, num_pages, num_spans, q_THC.stride(0), scale,
        GROUP=group, TILE_TOKENS=tile_tokens, ROWS=max(TILE_ROWS, triton.next_power_of_2(group)),
        NUM_HEADS=num_heads, WIDTH=width, BLOCK=max(16, triton.next_power_of_2(width)),
        WINDOW=window or 0, SOFTCAP=softcap or 0.0, SLOTS=PAGE_SLOTS, SPAN=SPAN_PAGES, IS_SPLIT=is_split,
        PRECISION="ieee" if is_float else None,
        num_warps=8 if is_float or width > 128 else 4, num_stages=1 if is_float else 2, enable_fp_fusion=False,
    )  # fmt: skip
    if is_split:
        _merge[(num_tokens, num_heads)](
            part_THSC, most_THS, sum_THS, y_THC, step.positions_T, num_spans,
            NUM_HEADS=num_heads, WIDTH=width, BLOCK=triton.next_power_of_2(width),
            WINDOW=window or 0, SPAN_SLOTS=SPAN_PAGES * PAGE_SLOTS, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return y_THC


@triton.jit(do_not_specialize=["num_sequences", "num_pages", "num_spans"])
def _attend(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    y: tl.tensor,
    part: tl.tensor,
    most: tl.tensor,
    sums: tl.tensor,
    query_starts: tl.tensor,
    context_lengths: tl.tensor,
    page_table: tl.tensor,
    num_sequences: tl.tensor,
    num_pages: tl.tensor,
    num_spans: tl.tensor,
    q_stride: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SLOTS: tl.constexpr,
    SPAN: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of queries of one kv head, over one span or over all."""
    # Later tiles have more keys to walk: the longest begin first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    # The tiles of sequence n begin at query_starts[n] // TILE_TOKENS + n: the last n where that is not beyond us.
    sequence = 0
    beyond = num_sequences
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        if tl.load(query_starts + middle) // TILE_TOKENS + middle <= tile:
            sequence = middle
        else:
            beyond = middle
    start = tl.load(query_starts + sequence)
    end = tl.load(query_starts + sequence + 1)
    first = start + (tile - start // TILE_TOKENS - sequence) * TILE_TOKENS
    if first >= end:
        return
    before = tl.load(context_lengths + sequence) - (end - start)  # position of the sequence's first new token
    last_position = before + tl.minimum(first + TILE_TOKENS, end) - 1 - start
    end_page = last_position // SLOTS + 1
    first_page = 0
    if WINDOW > 0:
        first_page = tl.maximum(0, before + first - start - WINDOW + 1) // SLOTS
    first_span = first_page // SPAN
    end_span = tl.cdiv(end_page, SPAN)
    if IS_SPLIT:
        if (tl.program_id(2) < first_span) | (tl.program_id(2) >= end_span):
            return
        first_span = tl.program_id(2)
        end_span = first_span + 1

    r_R = tl.arange(0, ROWS)
    c_C = tl.arange(0, BLOCK)
    p_P = tl.arange(0, SLOTS)
    token_R = first + r_R // GROUP
    head_R = tl.program_id(1) * GROUP + r_R % GROUP
    is_query_R = (r_R < TILE_TOKENS * GROUP) & (token_R < end)
    position_R = before + token_R - start
    is_inside_C = c_C < WIDTH
    q_RC = tl.load(
        q + token_R.to(tl.int64)[:, None] * q_stride + head_R[:, None] * WIDTH + c_C[None, :],
        mask=is_query_R[:, None] & is_inside_C[None, :],
        other=0.0,
    ).to(keys.dtype.element_ty)
    num_kv_heads = NUM_HEADS // GROUP
    row_PC = (p_P[:, None] * num_kv_heads + tl.program_id(1)) * WIDTH + c_C[None, :]

    all_most_R = tl.full((ROWS,), NOTHING, dtype=tl.float32)
    all_sum_R = tl.zeros((ROWS,), dtype=tl.float32)
    all_RC = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for span in range(first_span, end_span):
        most_R = tl.full((ROWS,), NOTHING, dtype=tl.float32)
        sum_R = tl.zeros((ROWS,), dtype=tl.float32)
        y_RC = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for page in range(tl.maximum(span * SPAN, first_page), tl.minimum((span + 1) * SPAN, end_page)):
            page_id = tl.load(page_table + sequence.to(tl.int64) * num_pages + page)
            offset = page_id.to(tl.int64) * (SLOTS * num_kv_heads * WIDTH)
            k_PC = tl.load(keys + offset + row_PC, mask=is_inside_C[None, :], other=0.0)
            v_PC = tl.load(values + offset + row_PC, mask=is_inside_C[None, :], other=0.0)
            scores_RP = tl.dot(q_RC, k_PC.trans(), input_precision=PRECISION) * scale
            if SOFTCAP > 0:
                # Cap * tanh(x / cap), and in powers of two from here on.
                scores_RP = SOFTCAP - (2.0 * SOFTCAP) / (tl.exp(scores_RP * (2.0 / SOFTCAP)) + 1.0)
            back_RP = position_R[:, None] - (page * SLOTS + p_P)[None, :]
            is_seen_RP = back_RP >= 0
            if WINDOW > 0:
                is_seen_RP = is_seen_RP & (back_RP < WINDOW)
            scores_RP = tl.where(is_seen_RP, scores_RP, NOTHING)
            new_R = tl.maximum(most_R, tl.max(scores_RP, axis=1))
            weights_RP = tl.where(is_seen_RP, tl.exp(scores_RP - new_R[:, None]), 0.0)
            shrunk_R = tl.exp(most_R - new_R)
            sum_R = sum_R * shrunk_R + tl.sum(weights_RP, axis=1)
            y_RC = y_RC * shrunk_R[:, None]
            y_RC = tl.dot(weights_RP.to(v_PC.dtype), v_PC, y_RC, input_precision=PRECISION)
            most_R = new_R
        if IS_SPLIT:
            place_R = (token_R.to(tl.int64) * NUM_HEADS + head_R) * num_spans + span
            tl.store(most + place_R, most_R, mask=is_query_R)
            tl.store(sums + place_R, sum_R, mask=is_query_R)
            is_written_RC = is_query_R[:, None] & is_inside_C[None, :]
            tl.store(part + place_R[:, None] * WIDTH + c_C[None, :], y_RC, mask=is_written_RC)
        else:
            new_R = tl.maximum(all_most_R, most_R)
            old_R = tl.exp(all_most_R - new_R)
            own_R = tl.exp(most_R - new_R)
            all_sum_R = all_sum_R * old_R + sum_R * own_R
            all_RC = all_RC * old_R[:, None] + y_RC * own_R[:, None]
            all_most_R = new_R
    if not IS_SPLIT:
        place_R = token_R.to(tl.int64) * NUM_HEADS + head_R
        is_written_RC = is_query_R[:, None] & is_inside_C[None, :]
        tl.store(y + place_R[:, None] * WIDTH + c_C[None, :], all_RC / all_sum_R[:, None], mask=is_written_RC)


@triton.jit(do_not_specialize=["num_spans"])
def _merge(
    part: tl.tensor,
    most: tl.tensor,
    sums: tl.tensor,
    y: tl.tensor,
    positions: tl.tensor,
    num_spans: tl.tensor,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SPAN_SLOTS: tl.constexpr,
):
    """One query: the spans that it sees, in order, as `_attend` merges them."""
    c_C = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * NUM_HEADS + tl.program_id(1)
    position = tl.load(positions + tl.program_id(0))
    first_span = 0
    if WINDOW > 0:
        first_span = tl.maximum(0, position - WINDOW + 1) // SPAN_SLOTS
    all_most = NOTHING
    all_sum = 0.0
    all_C = tl.zeros((BLOCK,), dtype=tl.float32)
    for span in range(first_span, position // SPAN_SLOTS + 1):
        own_place = place * num_spans + span
        own_most = tl.load(most + own_place)
        new = tl.maximum(all_most, own_most)
        old = tl.exp(all_most - new)
        own = tl.exp(own_most - new)
        all_sum = all_sum * old + tl.load(sums + own_place) * own
        all_C = all_C * old + tl.load(part + own_place * WIDTH + c_C, mask=c_C < WIDTH, other=0.0) * own
        all_most = new
    tl.store(y + place * WIDTH + c_C, all_C / all_sum, mask=c_C < WIDTH)
