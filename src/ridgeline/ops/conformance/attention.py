"""Cases of `store_kv` and `attend`: heads, windows, softcap, KV formats, sequences in chunks on scattered pages.

Queries, keys and values come from three F32 tables through `embed`, so that a token decides them alone.

Shape letters: T tokens, H query heads, K kv heads, C head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ridgeline.ops.chip import HostStep, KvFormat, StepFunction
from ridgeline.ops.conformance.case import KV_TOLERANCE, Bind, Case, Problem, SamenessCase, source
from ridgeline.ops.conformance.fine import AnyOps, normal
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import PAGE_SLOTS, StepArrays

VOCABULARY = 61
NUM_PAGES = 24
KV_FORMATS: tuple[KvFormat, ...] = ("f32", "bf16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """What is attended, and how."""

    num_query_heads: int = 4
    num_kv_heads: int = 2
    head_width: int = 64
    window: int | None = None
    softcap: float | None = None
    num_layers: int = 1

    def __str__(self) -> str:
        text = f"{self.num_query_heads}/{self.num_kv_heads}x{self.head_width}"
        text += "" if self.window is None else f" window {self.window}"
        return text + ("" if self.softcap is None else f" softcap {self.softcap:g}")


Chunk = tuple[int, int, int]
"""(sequence, first token, end) of what one step runs of a sequence."""


def steps_of_chunks(
    plan: Sequence[Sequence[Chunk]], *, page_seed: int = 0, places: Sequence[int] = range(8)
) -> tuple[HostStep, ...]:
    """Steps over sequences whose tokens follow from their number, on scattered pages, all new tokens' rows wanted."""
    order = np.random.default_rng(page_seed).permutation(NUM_PAGES)
    ends: dict[int, int] = {}
    for sequence, _, end in (chunk for step in plan for chunk in step):
        ends[sequence] = max(end, ends.get(sequence, 0))
    pages: dict[int, list[int]] = {}
    for sequence, end in ends.items():
        count = -(-end // PAGE_SLOTS)
        pages[sequence] = order[:count].tolist()
        order = order[count:]
    steps = []
    for chunks in plan:
        parts = [
            StepPart(
                token_ids=tokens_of(sequence, end)[start:],
                start=start,
                page_ids=pages[sequence],
                place=places[sequence],
                num_logit_rows=end - start,
            )
            for sequence, start, end in chunks
        ]
        steps.append(host_step(parts))
    return tuple(steps)


def tokens_of(sequence: int, count: int) -> list[int]:
    """The first tokens of a sequence."""
    tokens: list[int] = np.random.default_rng((77, sequence)).integers(0, VOCABULARY, 400)[:count].tolist()
    return tokens


# Prompts that end inside, at and past the end of a page, chunks that straddle pages, decodes beside them.
MIXED: tuple[tuple[Chunk, ...], ...] = (
    ((0, 0, 70), (1, 0, 1), (2, 0, 64)),
    ((0, 70, 71), (1, 1, 63), (2, 64, 65), (3, 0, 5)),
    ((0, 71, 72), (1, 63, 66), (2, 65, 66), (3, 5, 133)),
    ((0, 72, 200), (1, 66, 67), (3, 133, 134)),
    ((0, 200, 201), (2, 66, 67), (3, 134, 192)),
    ((0, 201, 202), (1, 67, 68), (2, 67, 68), (3, 192, 193)),
)


def attention_cases() -> Iterator[Case]:
    """What is attended."""
    shapes = [
        Heads(num_query_heads=h, num_kv_heads=k) for h, k in ((1, 1), (2, 2), (9, 3), (8, 1), (14, 2), (7, 1), (15, 5))
    ]
    shapes += [Heads(head_width=width) for width in (32, 48, 80, 96, 112, 128, 256)]
    shapes += [Heads(window=window) for window in (1, 2, 63, 64, 65, 100, 1000)]
    shapes += [Heads(softcap=20.0), Heads(softcap=5.0, window=70, num_query_heads=6, num_kv_heads=2, num_layers=3)]
    for kv_format in KV_FORMATS:
        for heads in shapes:
            yield Case(
                name=f"attend/{kv_format}/{heads}",
                build=partial(attention_problem, heads, MIXED),
                tolerance=KV_TOLERANCE[kv_format],
                kv_format=kv_format,
            )
        # A place is taken over by another sequence while its first holder's pages are still there.
        handed_on = (((0, 0, 90),), ((0, 90, 91), (1, 0, 80)), ((1, 80, 150), (2, 0, 10)), ((2, 10, 80), (1, 150, 151)))
        yield Case(
            name=f"places/{kv_format}",
            build=partial(attention_problem, Heads(), handed_on, places=(5, 2, 5)),
            tolerance=KV_TOLERANCE[kv_format],
            kv_format=kv_format,
        )


def attention_sameness_cases() -> Iterator[SamenessCase]:
    """A query's answer depends on its sequence alone."""
    whole = (((0, 0, 200),),)
    whole_rows = tuple((0, row) for row in range(200))
    cuts = {"in chunks": (1, 2, 63, 64, 65, 66, 130, 199), "token by token": tuple(range(1, 200))}
    for kv_format in KV_FORMATS:
        for heads in (Heads(), Heads(num_query_heads=9, num_kv_heads=3, window=70), Heads(softcap=10.0, head_width=96)):
            same = partial(
                SamenessCase,
                first=partial(attention_problem, heads, whole),
                tolerance=KV_TOLERANCE[kv_format],
                kv_format=kv_format,
            )
            for name, ends in cuts.items():
                plan = tuple(((0, start, end),) for start, end in zip((0, *ends), (*ends, 200), strict=True))
                yield same(
                    name=f"whole or {name}/{kv_format}/{heads}",
                    first_rows=whole_rows,
                    second=partial(attention_problem, heads, plan),
                    second_rows=tuple(
                        (k, row) for k, ((_, start, end),) in enumerate(plan) for row in range(end - start)
                    ),
                )
            yield same(
                name=f"alone or among others/{kv_format}/{heads}",
                first_rows=whole_rows,
                second=partial(attention_problem, heads, _AMONG, page_seed=9, places=(3, 1, 0, 2)),
                second_rows=tuple((k, row) for k, (first, end) in enumerate(_OWN) for row in range(first, end)),
            )


# Sequence 0 as the middle one of others; _OWN says which rows of each step are its own.
_AMONG: tuple[tuple[Chunk, ...], ...] = (
    ((1, 0, 30), (0, 0, 40), (2, 0, 7)),
    ((1, 30, 31), (0, 40, 41), (2, 7, 90)),
    ((1, 31, 64), (0, 41, 200), (3, 0, 3)),
)
_OWN = ((30, 70), (1, 2), (33, 192))


def attention_problem(
    heads: Heads, plan: Sequence[Sequence[Chunk]], *, page_seed: int = 0, places: Sequence[int] = range(8)
) -> Problem:
    """Layers of store and attend over three tables, their answers added up."""
    query_width, kv_width = heads.num_query_heads * heads.head_width, heads.num_kv_heads * heads.head_width
    # Keys with one large channel, as models have them: what a chip does with scales shows there.
    keys = normal(21, VOCABULARY, kv_width)
    keys[:, :: heads.head_width] += 6.0
    weights = (
        source("query", normal(20, VOCABULARY, query_width)),
        source("key", keys),
        source("value", normal(22, VOCABULARY, kv_width)),
    )
    return Problem(
        weights={weight.name: weight for weight in weights},
        bind=attention_bind(heads),
        steps=steps_of_chunks(plan, page_seed=page_seed, places=places),
        kv_layers=((heads.num_kv_heads, heads.head_width),) * heads.num_layers,
        num_pages=NUM_PAGES,
    )


def attention_bind(heads: Heads) -> Bind:
    """Store and attend as fine ops."""

    def bind(weights: Mapping[str, Any]) -> StepFunction[Any, Any, Any]:
        def step_function(ops: AnyOps, step: StepArrays[Any], pages: Any) -> tuple[Any, Any]:
            q_THC, k_TKC, v_TKC = looked_up(heads, ops, weights, step)
            total = None
            for layer in range(heads.num_layers):
                pages = ops.store_kv(pages, layer, ops.scale(k_TKC, 1.0 - 0.25 * layer), v_TKC, step)
                y_THC = ops.attend(
                    q_THC,
                    pages,
                    layer,
                    step,
                    scale=heads.head_width**-0.5,
                    window=heads.window if layer % 2 == 0 else None,
                    softcap=heads.softcap,
                )
                total = y_THC if total is None else ops.add(total, y_THC)
            return ops.take_rows(ops.merge_heads(total), step.logit_rows_B), pages

        return step_function

    return bind


def looked_up(heads: Heads, ops: AnyOps, weights: Mapping[str, Any], step: StepArrays[Any]) -> tuple[Any, Any, Any]:
    """(q_THC, k_TKC, v_TKC) of the step's tokens."""
    query = ops.heads(ops.embed(weights["query"], step.token_ids_T), heads.num_query_heads)
    key = ops.heads(ops.embed(weights["key"], step.token_ids_T), heads.num_kv_heads)
    value = ops.heads(ops.embed(weights["value"], step.token_ids_T), heads.num_kv_heads)
    return query, key, value
