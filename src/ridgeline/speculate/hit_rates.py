"""How often a drafter's next token was right, by how much of the text before it had matched.

Knows: lengths of matches, hits and misses. Does not know: tokens.
"""

from __future__ import annotations

PRIOR_RATES = (0.15, 0.15, 0.35, 0.6, 0.8, 0.9, 0.95)
"""Chances before anything was seen, by class of match length (see `_class_of`): hopeful, because a wrong guess costs
little once, and a hope that nobody tries is never corrected by deeds."""
PRIOR_WEIGHT = 3
"""So many observations the prior counts for."""
MIN_CHANCE = 0.03
"""A guess that is less likely to be reached and right is not worth thinking about."""
NEWEST_WEIGHT = 1 / 24
"""Of an observation in the long run: about two dozen tokens until a change of the text's nature is followed."""


class HitRates:
    """Running means of hits, one for each class of match length. Changed by: `note`.

    Kept per sample and drafter, never across requests: what one tenant's text is like shows in nobody else's timing.
    """

    def __init__(self) -> None:
        self._rates = list(PRIOR_RATES)
        self._counts = [PRIOR_WEIGHT] * len(PRIOR_RATES)

    def note(self, match_tokens: int, *, is_hit: bool) -> None:
        """A token was, or was not, what a match of this many tokens foretold."""
        number = _class_of(match_tokens)
        self._counts[number] += 1
        weight = max(NEWEST_WEIGHT, 1 / self._counts[number])
        self._rates[number] += weight * (is_hit - self._rates[number])

    def chances(self, match_tokens: int, most: int) -> tuple[float, ...]:
        """Of tokens in a row after a match of this many; each that stands makes the match longer.

        At most so many, and none that is reached with less than MIN_CHANCE.
        """
        found: list[float] = []
        reached = 1.0
        for number in range(most):
            chance = self._rates[_class_of(match_tokens + number)]
            reached *= chance
            if reached < MIN_CHANCE:
                break
            found.append(chance)
        return tuple(found)


def _class_of(match_tokens: int) -> int:
    """0, 1, 2 and 3, 4 to 7, 8 to 15, 16 to 31, more."""
    return min(match_tokens.bit_length(), len(PRIOR_RATES) - 1)
