"""Attention over long contexts: against the reference, and the same bits however the work is shared out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from ridgeline.chips.cpu import CpuChip, _native
from ridgeline.chips.reference import ReferenceChip
from ridgeline.ops.chip import KvFormat
from tests.ops.cpu.attention_runs import AttentionRun, Shape, in_chunks, tokens_of

FORMATS: tuple[KvFormat, ...] = ("f32", "bf16", "int8")
TOLERANCES = {"f32": 2e-6, "bf16": 6e-3, "int8": 6e-3}
"""Of the largest value: bfloat16 products of queries and weights are rounded to 8 bits, and 500 of them are added."""
CONTEXT = 1200
"""More than two spans of 512."""
SHAPES = (
    Shape(),
    Shape(num_query_heads=7, num_kv_heads=1, head_width=64),
    Shape(window=700),
    Shape(window=100, softcap=8.0, head_width=80),
)


@pytest.fixture(params=("avx512", "avx2", "portable", "neon"))
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    chosen = _native.instruction_set()
    if not _native.set_instruction_set(request.param):
        pytest.skip(f"this CPU (or this build) has no kernels for {request.param}")
    yield request.param
    restore(chosen)


def restore(chosen: str) -> None:
    """`instruction_set` tells of extensions too (avx512-vnni-bf16); what is set is the name before them."""
    assert _native.set_instruction_set(chosen) or _native.set_instruction_set(chosen.split("-")[0])


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_long_contexts_agree_with_the_reference(shape: Shape, kv_format: KvFormat, instruction_set: str) -> None:
    tokens, ends = tokens_of(1, CONTEXT), [1000, 1001, 1130]
    found = in_chunks(AttentionRun(CpuChip(num_threads=2), shape, kv_format), tokens, ends)
    truth = AttentionRun(ReferenceChip(), shape, kv_format)
    # The reference is slow: its rows from 1000 on.
    truth_rows = in_chunks(truth, tokens, ends)[1000:] if shape.head_width == 32 else None
    if truth_rows is not None:
        assert np.abs(found[1000:] - truth_rows).max() < TOLERANCES[kv_format] * np.abs(truth_rows).max()
    whole = in_chunks(AttentionRun(CpuChip(num_threads=1), shape, kv_format), tokens, [])
    assert np.array_equal(found, whole)


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("head_width", [2, 6, 18, 66, 250])
def test_any_even_width_of_heads(head_width: int, kv_format: KvFormat, instruction_set: str) -> None:
    shape, tokens = Shape(num_query_heads=3, num_kv_heads=1, head_width=head_width, softcap=7.0), tokens_of(7, 70)
    found = in_chunks(AttentionRun(CpuChip(num_threads=2), shape, kv_format, max_tokens=128), tokens, [66])
    truth = in_chunks(AttentionRun(ReferenceChip(), shape, kv_format, max_tokens=128), tokens, [66])
    assert np.abs(found - truth).max() < TOLERANCES[kv_format] * np.abs(truth).max()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_heads_as_wide_as_a_latent_cache(kv_format: KvFormat, instruction_set: str) -> None:
    """One kv head of 512 + 64 channels for all query heads, as multi-head latent attention keeps it."""
    shape = Shape(num_query_heads=16, num_kv_heads=1, head_width=576, scale=0.05)
    tokens = tokens_of(8, 140)
    found = in_chunks(AttentionRun(CpuChip(num_threads=2), shape, kv_format, max_tokens=192), tokens, [138])
    truth = in_chunks(AttentionRun(ReferenceChip(), shape, kv_format, max_tokens=192), tokens, [138])
    assert np.abs(found - truth).max() < TOLERANCES[kv_format] * np.abs(truth).max()
    whole = in_chunks(AttentionRun(CpuChip(num_threads=1), shape, kv_format, max_tokens=192), tokens, [])
    assert np.array_equal(found, whole)


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_threads_share_spans_without_changing_bits(num_threads: int, kv_format: KvFormat) -> None:
    shape, tokens = Shape(num_query_heads=6, num_kv_heads=2, head_width=48, window=900), tokens_of(2, 1100)
    alone = in_chunks(AttentionRun(CpuChip(num_threads=1), shape, kv_format), tokens, [])
    shared = in_chunks(AttentionRun(CpuChip(num_threads=num_threads), shape, kv_format), tokens, [1090, 1095, 1099])
    assert np.array_equal(alone, shared)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_batch_mates_places_and_pages_change_no_bit(kv_format: KvFormat) -> None:
    shape, tokens = Shape(), tokens_of(0, 300)
    alone = in_chunks(AttentionRun(CpuChip(num_threads=2), shape, kv_format), tokens, [])
    run = AttentionRun(CpuChip(num_threads=2), shape, kv_format, num_sequences=5, max_tokens=512, order_seed=8)
    others = {n: tokens_of(n, 400) for n in range(5)}
    rows = []
    cuts = [0, 3, 60, 70, 135, 136, 290, 300]
    for start, end in pairwise(cuts):
        mates = {n: others[n][start : start + 1 + (start + n) % 90] for n in (1, 3) if start % 2 == 0}
        rows.append(run.feed({**{n: m for n, m in mates.items() if n < 2}, 2: tokens[start:end], **mates})[2])
    assert np.array_equal(alone, np.concatenate(rows))


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("kept", [61, 64, 66, 126])
def test_rejected_drafts_leave_no_trace(kept: int, kv_format: KvFormat) -> None:
    tokens, drafts = tokens_of(4, 200), tokens_of(5, 16)
    plain = in_chunks(AttentionRun(CpuChip(num_threads=2), Shape(), kv_format), tokens, [])
    run = AttentionRun(CpuChip(num_threads=2), Shape(), kv_format)
    before = run.feed({0: tokens[:kept]})[0]
    run.feed({0: drafts})
    run.rewind(0, kept)
    after = run.feed({0: tokens[kept:]})[0]
    assert np.array_equal(plain, np.concatenate([before, after]))


def test_what_others_left_in_a_page_is_never_read() -> None:
    run = AttentionRun(CpuChip(num_threads=1), Shape(), "bf16", max_tokens=128)
    plain = in_chunks(run, tokens_of(6, 100), [33, 34, 35])
    run.compiled._pages.memory.array()[:] = 0xFF  # NaN in every format
    run.rewind(0, 0)
    assert np.array_equal(plain, in_chunks(run, tokens_of(6, 100), [33, 34, 35]))
