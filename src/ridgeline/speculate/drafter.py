"""What makes drafts: the seam between those who guess tokens and those who run them.

A draft is free of consequences for the answer: it stands only where the model draws the same token. So a drafter may
guess by any means; all that it owes is an honest chance for each guess, by which the length is chosen.

Knows: tokens as integers. Does not know: steps, pages, models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Guessed tokens, in order."""

    token_ids: tuple[int, ...] = ()
    chances: tuple[float, ...] = ()
    """Of each token: the estimated probability, 0 to 1, that it stands if those before it do."""


NO_DRAFT = Draft()


class Drafter(Protocol):
    """Guesses how one sample goes on.

    It is made with the sample's list of tokens, prompt and output, to which others append.
    """

    def propose(self, max_tokens: int) -> Draft:
        """At most so many guesses at what follows the list as it is now; called at every decoding step.

        The tokens that were appended since the last call are learned from first, whether or not what was proposed
        then was run: so chances stay honest while nothing is drafted.
        """
