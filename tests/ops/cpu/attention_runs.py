"""Attention alone on a chip: queries, keys and values are rows of three tables, looked up by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ridgeline.ops.chip import AnyChip, KvFormat, PageLayout
from ridgeline.ops.conformance.case import source
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import PAGE_SLOTS, StepLimits

VOCABULARY = 97


@dataclass(frozen=True, kw_only=True)
class Shape:
    num_query_heads: int = 4
    num_kv_heads: int = 2
    head_width: int = 32
    window: int | None = None
    softcap: float | None = None
    scale: float = 0.2


class AttentionRun:
    """Sequences on a chip that are fed by hand. Holds: pages, and each sequence's length."""

    def __init__(
        self,
        chip: AnyChip,
        shape: Shape,
        kv_format: KvFormat,
        *,
        num_sequences: int = 1,
        max_tokens: int = 2048,
        order_seed: int = 0,
    ) -> None:
        query_width, kv_width = (heads * shape.head_width for heads in (shape.num_query_heads, shape.num_kv_heads))
        rng = np.random.default_rng(5)
        widths = {"q": query_width, "k": kv_width, "v": kv_width}
        tables = {name: rng.standard_normal((VOCABULARY, width)).astype(np.float32) for name, width in widths.items()}
        tables["k"][:, 1] += 20  # a channel far from zero, as biased keys have
        weights = chip.adopt({name: source(name, table) for name, table in tables.items()}, f"attention {shape}")
        pages_each = -(-max_tokens // PAGE_SLOTS)
        limits = StepLimits(
            max_tokens=max_tokens,
            max_sequences=num_sequences,
            max_logit_rows=max_tokens,
            max_pages_per_sequence=pages_each,
        )
        layout = PageLayout(layers=((shape.num_kv_heads, shape.head_width),), format=kv_format)
        pages = chip.allocate_pages(layout, num_sequences * pages_each, limits)

        def step(ops, arrays, pages):
            q, k, v = (
                ops.heads(ops.embed(weights[name], arrays.token_ids_T), heads)
                for name, heads in (("q", shape.num_query_heads), ("k", shape.num_kv_heads), ("v", shape.num_kv_heads))
            )
            y, pages = ops.store_and_attend(
                q, k, v, pages, 0, arrays, scale=shape.scale, window=shape.window, softcap=shape.softcap
            )
            return ops.take_rows(ops.merge_heads(y), arrays.logit_rows_B), pages

        self.compiled = chip.compile(step, pages, limits)
        order = np.random.default_rng(order_seed).permutation(num_sequences * pages_each)
        self._page_ids = order.reshape(num_sequences, pages_each)
        self._lengths = [0] * num_sequences

    def feed(self, tokens: dict[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """One step that appends these tokens; each sequence's results, a row per token."""
        parts = [
            StepPart(
                token_ids=list(own),
                start=self._lengths[sequence],
                page_ids=self._page_ids[sequence].tolist(),
                place=sequence,
                num_logit_rows=len(own),
            )
            for sequence, own in tokens.items()
        ]
        rows = self.compiled.run(host_step(parts)).copy()
        ends = np.cumsum([len(own) for own in tokens.values()])
        for sequence, own in tokens.items():
            self._lengths[sequence] += len(own)
        return dict(zip(tokens, np.split(rows, ends[:-1]), strict=True))

    def rewind(self, sequence: int, length: int) -> None:
        """Forget the last tokens of a sequence, as after drafts that were not accepted."""
        self._lengths[sequence] = length


def tokens_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng((3, seed)).integers(0, VOCABULARY, count).tolist()


def in_chunks(run: AttentionRun, tokens: Sequence[int], ends: Sequence[int]) -> np.ndarray:
    """All rows of sequence 0, fed up to each of these ends and then to the last token."""
    cuts = [0, *ends, len(tokens)]
    return np.concatenate([run.feed({0: tokens[start:end]})[0] for start, end in pairwise(cuts)])
