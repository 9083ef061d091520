"""What one step of the engine feeds the decoder, as arrays.

One ragged step serves prefill, chunks of prefill, decode and verification of speculated tokens alike: it is a list of
*sequences*, each with some new tokens that continue what its pages already hold. Nothing here says which is which.

Shape letters: T new tokens of all sequences, one sequence after another; N sequences; B rows of which logits are
wanted; P pages of the longest sequence (rows of shorter ones are padded with page 0, which is never read).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

A = TypeVar("A")

PAGE_SLOTS = 64
"""Tokens that a page of keys and values holds.

64 keys are four vectors of 16 lanes, the key block that the attention kernels walk; int8 keys are quantised per channel
over a closed page, for which 16 to 64 tokens measured alike (see docs/decisions/0001-page-of-64-slots.md).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArrays(Generic[A]):
    """One step's indices, all int32.

    A step may begin before the end of what the sequence's pages hold, where drafts did not stand: what is stored then
    replaces what was there. It begins less than a page before that end.

    Laws: query_starts_N1[0] = 0, query_starts_N1[N] = T; token t of sequence n is at position
    context_lengths_N[n] - (query_starts_N1[n + 1] - t), so positions of a sequence are consecutive;
    slots_T[t] = page_table_NP[n, positions_T[t] // PAGE_SLOTS] * PAGE_SLOTS + positions_T[t] % PAGE_SLOTS.
    """

    token_ids_T: A
    positions_T: A
    slots_T: A
    """Where in the pages each token's key and value are stored; no slot occurs twice in a step."""
    sequences_T: A
    """Which sequence each token belongs to, rising."""
    query_starts_N1: A
    """First token of each sequence, and T at the end."""
    context_lengths_N: A
    """Tokens that the sequence's pages hold after this step's are stored."""
    page_table_NP: A
    """The pages of each sequence, in order."""
    places_N: A
    """A number below `StepLimits.max_sequences` that stays with a request while it runs; chips that keep the open page
    of a sequence apart (int8 keys and values) find it there."""
    logit_rows_B: A
    """Indices into T, rising."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The largest step that will ever be asked for, so that memory is placed once."""

    max_tokens: int
    max_sequences: int
    max_logit_rows: int
    max_pages_per_sequence: int


class SpanShape(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence's part of a step, for its cost: `num_tokens` new ones, after which it holds `context_tokens`."""

    num_tokens: int
    context_tokens: int


class StepShape(msgspec.Struct, frozen=True, kw_only=True):
    """All of a step that its cost depends on."""

    spans: tuple[SpanShape, ...]
    num_logit_rows: int

    @property
    def num_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(span.num_tokens for span in self.spans)
