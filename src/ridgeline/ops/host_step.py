"""From parts of sequences to the arrays of a step, by the laws of `StepArrays`.

Knows: pages and slots. Does not know: requests, who gave the pages out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ridgeline.ops.chip import HostStep
from ridgeline.ops.step import PAGE_SLOTS, StepArrays


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPart:
    """One sequence's part of a step."""

    token_ids: Sequence[int]
    """The new tokens."""
    start: int
    """Tokens that the sequence's pages hold already."""
    page_ids: Sequence[int]
    """The sequence's pages, enough for the new tokens too."""
    place: int
    num_logit_rows: int
    """How many of the last new tokens' logits are wanted."""


def host_step(parts: Sequence[StepPart]) -> HostStep:
    """The step that runs these parts, one after another."""
    counts = [len(part.token_ids) for part in parts]
    starts = np.cumsum([0, *counts])
    positions = [np.arange(part.start, part.start + count) for part, count in zip(parts, counts, strict=True)]
    pages = [np.asarray(part.page_ids, dtype=np.int64) for part in parts]
    slots = [
        page_ids[position // PAGE_SLOTS] * PAGE_SLOTS + position % PAGE_SLOTS
        for page_ids, position in zip(pages, positions, strict=True)
    ]
    num_pages = [-(-(part.start + count) // PAGE_SLOTS) for part, count in zip(parts, counts, strict=True)]
    table_NP = np.zeros((len(parts), max(num_pages)), dtype=np.int32)
    for n, page_ids in enumerate(pages):
        table_NP[n, : num_pages[n]] = page_ids[: num_pages[n]]
    rows = [np.arange(end - part.num_logit_rows, end) for part, end in zip(parts, starts[1:], strict=True)]
    return StepArrays(
        token_ids_T=np.concatenate([np.asarray(part.token_ids, dtype=np.int32) for part in parts]),
        positions_T=np.concatenate(positions).astype(np.int32),
        slots_T=np.concatenate(slots).astype(np.int32),
        sequences_T=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        query_starts_N1=starts.astype(np.int32),
        context_lengths_N=np.array([part.start + len(part.token_ids) for part in parts], dtype=np.int32),
        page_table_NP=table_NP,
        places_N=np.array([part.place for part in parts], dtype=np.int32),
        logit_rows_B=np.concatenate(rows).astype(np.int32),
    )
