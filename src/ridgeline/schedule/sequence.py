"""A sequence as the scheduler sees it: tokens that are to be run, pages that hold those that were.

A sequence is one sample of a request. Its tokens are the prompt and what was sampled so far; which is which matters
only to what is reported, never to what is run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ridgeline.cache.prefix import page_key, root_key
from ridgeline.ops.step import PAGE_SLOTS


def pages_for(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE_SLOTS)


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One sample of a request, as the scheduler keeps it.

    The first part is given; the second belongs to the scheduler, which alone changes it.
    """

    sequence_id: int
    token_ids: list[int]
    """Prompt and output; `Scheduler.accept` appends."""
    num_prompt_tokens: int
    salt: str = ""
    priority: int = 0
    """Lower runs first; lowered by the scheduler when the sequence has waited through many admissions."""
    arrival: int = 0
    rows_from: int | None = None
    """The first position from which on all logits are wanted, for prompt log-probabilities; None once they are done."""

    num_computed: int = 0
    """Tokens whose keys and values the pages hold."""
    pages: list[int] = field(default_factory=list)
    place: int | None = None
    """None while it waits."""
    num_cached_tokens: int = 0
    """Prompt tokens that the first admission found in the prefix index."""
    num_preemptions: int = 0
    keys: list[bytes] = field(default_factory=list)
    """Of whole pages, as far as they have been needed."""

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first; no two are equal."""
        return (self.priority, self.arrival)

    @property
    def num_remaining(self) -> int:
        """Tokens that are known and not yet run."""
        return len(self.token_ids) - self.num_computed

    def extend_keys(self, num_pages: int) -> None:
        """Make the keys of the first `num_pages` pages, whose tokens must be known."""
        while len(self.keys) < num_pages:
            start = len(self.keys) * PAGE_SLOTS
            parent = self.keys[-1] if self.keys else root_key(self.salt)
            self.keys.append(page_key(parent, self.token_ids[start : start + PAGE_SLOTS]))

    def matchable_keys(self) -> list[bytes]:
        """The keys of pages that may come from the index: never the last token's, nor any whose logits are wanted."""
        limit = len(self.token_ids) - 1
        if self.rows_from is not None:
            limit = min(limit, self.rows_from)
        num_pages = limit // PAGE_SLOTS
        self.extend_keys(num_pages)
        return self.keys[:num_pages]

    def num_rows(self, end: int) -> int:
        """Logit rows that a chunk from `num_computed` to `end` must give, all of its last tokens."""
        if self.rows_from is not None:
            return max(0, end - max(self.num_computed, self.rows_from))
        return 1 if end == len(self.token_ids) else 0
