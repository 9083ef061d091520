"""The torch chip on a GPU beyond the suite: contexts of many spans, products of real shapes, graphs, what it says.

    pytest -k cuda

runs this and the whole suite on `torch:cuda`; all of it is skipped, with the reason, where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ridgeline.chips.reference import ReferenceChip
from ridgeline.chips.registry import open_chip
from ridgeline.errors import CapacityError, UserError
from ridgeline.model.conformance import BIASED, SPECS, decoder_problem
from ridgeline.model.spec import RopeSpec
from ridgeline.ops.chip import AnyChip, KvFormat, PageLayout
from ridgeline.ops.conformance.attention import Heads, attention_bind
from ridgeline.ops.conformance.case import KV_TOLERANCE, Problem, run, source
from ridgeline.ops.conformance.fine import normal
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from tests.ops.chips import opened

NUM_TOKENS = 1500
"""Of a sequence: six spans of four pages."""
LIMITS = StepLimits(max_tokens=2048, max_sequences=8, max_logit_rows=2048, max_pages_per_sequence=32)


@pytest.fixture
def chip(tmp_path: Path) -> Iterator[AnyChip]:
    chip = opened("torch:cuda", tmp_path)
    yield chip
    chip.close()


def long_problem(heads: Heads, kv_format: str, cuts: tuple[int, ...], *, others: int = 0) -> Problem:
    """One long sequence in chunks that end at `cuts`, beside others that each get a token a step."""
    query_width, kv_width = heads.num_query_heads * heads.head_width, heads.num_kv_heads * heads.head_width
    rows = 97
    weights = (
        source("query", normal(20, rows, query_width)),
        source("key", normal(21, rows, kv_width)),
        source("value", normal(22, rows, kv_width)),
    )
    tokens = np.random.default_rng(3).integers(0, rows, 2048).tolist()
    pages = np.random.default_rng(4 + others).permutation(32 * 6).reshape(6, 32)
    steps = []
    for number, (start, end) in enumerate(zip((0, *cuts), (*cuts, NUM_TOKENS), strict=True)):
        mates = [
            StepPart(
                token_ids=[number % rows], start=number, page_ids=pages[1 + mate], place=1 + mate, num_logit_rows=1
            )
            for mate in range(others)
        ]
        own = StepPart(token_ids=tokens[start:end], start=start, page_ids=pages[0], place=0, num_logit_rows=end - start)
        steps.append(host_step([*mates, own]))
    return Problem(
        weights={weight.name: weight for weight in weights},
        bind=attention_bind(heads),
        steps=tuple(steps),
        kv_layers=((heads.num_kv_heads, heads.head_width),),
        num_pages=pages.size,
        limits=LIMITS,
    )


CUTS = (300, 301, 555, 700, 1024, *range(1025, 1040), 1280, 1499)


@pytest.mark.parametrize("kv_format", ["f32", "bf16"])
@pytest.mark.parametrize(
    "heads",
    [
        Heads(),
        Heads(num_query_heads=14, num_kv_heads=2),
        Heads(num_query_heads=12, num_kv_heads=2, head_width=128),
        Heads(num_query_heads=4, num_kv_heads=1, head_width=256, window=400),
        Heads(softcap=15.0, window=700),
    ],
    ids=str,
)
def test_long_contexts_have_the_same_bits_however_they_are_cut(chip: AnyChip, heads: Heads, kv_format: str) -> None:
    (whole,) = run(chip, long_problem(heads, kv_format, ()), kv_format, "whole")
    cut = run(chip, long_problem(heads, kv_format, CUTS, others=5), kv_format, "cut")
    own = np.concatenate([logits[5:] for logits in cut])
    assert (own == whole).all(), np.flatnonzero((own != whole).any(axis=1))[:9]
    some = slice(1400, None)
    (expected,) = run(ReferenceChip(), long_problem(heads, kv_format, ()), kv_format, "whole")
    error = np.sqrt(np.mean((whole[some] - expected[some]) ** 2) / np.mean(expected[some] ** 2))
    assert error < KV_TOLERANCE[kv_format]


@pytest.mark.parametrize("format_name", ["F32", "BF16"])
@pytest.mark.parametrize(
    ("num_rows", "width"), [(1536, 1536), (2048, 1536), (1536, 8960), (4864, 896), (896, 4864), (3000, 1000)]
)
def test_rows_of_real_products_do_not_depend_on_their_number(
    chip: AnyChip, num_rows: int, width: int, format_name: str
) -> None:
    table = normal(1, 600, width)
    weight = normal(2, num_rows, width, size=width**-0.5)
    problem = partial(
        Problem,
        weights={"x": source("x", table), "weight": source("weight", weight, format_name)},
        bind=lambda w: (
            lambda ops, step, pages: (
                ops.take_rows(ops.linear(ops.embed(w["x"], step.token_ids_T), w["weight"]), step.logit_rows_B),
                pages,
            )
        ),
        num_pages=64,
        limits=LIMITS,
    )

    def step_of(tokens: list[int]):
        pages = range(-(-len(tokens) // PAGE_SLOTS))
        return host_step([StepPart(token_ids=tokens, start=0, page_ids=pages, place=0, num_logit_rows=len(tokens))])

    ends = (1, 2, 4, 9, 20, 40, 70, 135, 330, 600)
    parts = [list(range(start, end)) for start, end in zip((0, *ends[:-1]), ends, strict=True)]
    (whole,) = run(chip, problem(steps=(step_of(list(range(600))),)), "bf16", "whole")
    cut = np.concatenate(run(chip, problem(steps=tuple(map(step_of, parts))), "bf16", "parts"))
    assert (cut == whole).all(), np.flatnonzero((cut != whole).any(axis=1))[:9]
    expected = table.astype(np.float64) @ weight.T.astype(np.float64)
    error = np.sqrt(np.mean((whole - expected) ** 2) / np.mean(expected**2))
    assert error < (2e-6 if format_name == "F32" else 5e-3)


WIDE = replace(
    SPECS["biased, tied"],
    width=1024,
    layers=(replace(BIASED, num_query_heads=8, num_kv_heads=2, head_width=128, mlp_width=8704),) * 2,
    ropes=(RopeSpec(frequencies=tuple(10000.0 ** -(index / 64) for index in range(64))),),
)
"""Its products have one, two and several spans, and the kernels that take several ops at once run on all of it."""


@pytest.mark.parametrize(("format_name", "kv_format"), [("BF16", "bf16"), ("F32", "f32")])
def test_wide_decoders_have_the_same_bits_however_they_are_cut(
    chip: AnyChip, format_name: str, kv_format: KvFormat
) -> None:
    ends = (3, 4, 70, 71, 150, 310, 311, 312, 340, 380)
    whole = decoder_problem(WIDE, format_name, (((0, 0, 380),),))
    cut = decoder_problem(
        WIDE,
        format_name,
        tuple(((1, end - 1, end), (0, start, end)) for start, end in zip((0, *ends[:-1]), ends, strict=True)),
        page_seed=3,
    )
    limits = replace(LIMITS, max_pages_per_sequence=16)
    (one,) = run(chip, replace(whole, limits=limits), kv_format, "whole")
    many = np.concatenate([logits[1:] for logits in run(chip, replace(cut, limits=limits), kv_format, "cut")])
    assert (one == many).all(), np.flatnonzero((one != many).any(axis=1))[:9]
    (expected,) = run(ReferenceChip(), replace(whole, limits=limits), kv_format, "whole")
    error = np.sqrt(np.mean((one - expected) ** 2) / np.mean(expected**2))
    assert error < (5e-5 if format_name == "F32" else 2e-2)


def test_a_graph_that_is_replayed_sees_new_tokens_pages_and_lengths(chip: AnyChip) -> None:
    """The same shapes again and again, each time with other contents; the reference knows none of graphs."""
    plan = tuple(((0, end - 1, end), (1, end + 19, end + 20)) for end in range(1, 90))
    plan = (((1, 0, 20),), *plan)
    problem = decoder_problem(SPECS["plain"], "F32", plan, page_seed=5)
    found = np.concatenate(run(chip, problem, "f32", "graphs"))
    expected = np.concatenate(run(ReferenceChip(), problem, "f32", "graphs"))
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 5e-5


def test_facts_are_measured_and_name_the_gpu(chip: AnyChip) -> None:
    facts = chip.facts()
    assert facts.source == "measured" and facts.kv_formats == ("f32", "bf16")
    assert facts.operations_per_second["bf16"] > facts.operations_per_second["fp32"] > 1e11
    assert facts.bandwidth_bytes_per_second > 1e10 and facts.memory_bytes > 1e9
    assert "multiprocessors" in facts.description


def test_pages_beyond_the_memory_are_refused(chip: AnyChip) -> None:
    with pytest.raises(CapacityError, match="pages take"):
        chip.allocate_pages(PageLayout(layers=((64, 256),) * 100), 1 << 20, LIMITS)


@pytest.mark.torch
@pytest.mark.parametrize(("kind", "said"), [("cuda:99", "sees . GPUs"), ("tpu", "not on 'tpu'"), ("cuda:x", "cuda:x")])
def test_a_device_that_is_not_there_is_named(kind: str, said: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(UserError, match=said):
        open_chip(f"torch:{kind}")
