"""What one step runs: decided by the scheduler, integers only.

Made for every sequence and step, so they are structs of msgspec, which are frozen without a price.
"""

from __future__ import annotations

import msgspec


class BatchEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence's part of a step: the tokens [start, end) of it are run."""

    sequence_id: int
    """The engine's own number of the sequence (a sample of a request)."""
    start: int
    end: int
    token_ids: tuple[int, ...]
    """The tokens at [start, end)."""
    page_ids: tuple[int, ...]
    """The sequence's pages, enough for `end` tokens."""
    place: int
    """See `StepArrays.places_N`."""
    num_logit_rows: int
    """How many of the last tokens' logits are wanted: 0 for a chunk that does not reach the end of the prompt, 1 where
    a token is sampled, more for prompt log-probabilities and for drafts."""
    num_drafted: int = 0
    """How many of the last tokens are drafts: guesses that stand only where the sampled tokens are equal."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One step."""

    entries: tuple[BatchEntry, ...]

    @property
    def num_tokens(self) -> int:
        """New tokens of all entries."""
        return sum(entry.end - entry.start for entry in self.entries)
