"""Guesses copied from the sample's own tokens: what followed the last two tokens when they stood there before.

Texts that are edited, quoted or filled in follow a source with small deviations. So after a guess that was wrong, the
next one is looked for close behind the place that was being copied, before it is looked for anywhere.

Source: prompt lookup decoding (A. Saxena, 2023), for n-grams of the prompt as drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ridgeline.speculate.drafter import NO_DRAFT, Draft
from ridgeline.speculate.hit_rates import HitRates

NEAR_TOKENS = 48
"""How far behind the place that was copied from the text is looked for again."""
MAX_MISSES_NEAR = 8
"""After so many wrong guesses in a row the text has left that place for good."""
MAX_CANDIDATES = 8
"""Earlier places, the newest, among which the one with the longest match is taken."""
MAX_MATCH_TOKENS = 32
"""Longer matches count as this long."""


class NgramDrafter:
    """See the module.

    Holds: the sample's tokens, which it only reads; where each pair of tokens stands; the place in the tokens that is
    being copied from (`_source`, the index of the next guess, or None) and how many tokens before it match. Changed by:
    `propose`.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._num_seen = 0
        self._places: dict[tuple[int, int], list[int]] = {}
        self._source: int | None = None
        self._match_tokens = 0
        self._left_at: int | None = None
        """The place of the last wrong guess, while the text may come back to what follows it."""
        self._num_misses = 0
        self._rates = HitRates()

    def propose(self, max_tokens: int) -> Draft:
        """See Drafter."""
        self._catch_up()
        if self._source is None:
            return NO_DRAFT
        chances = self._rates.chances(self._match_tokens, max_tokens)
        if not chances:
            return NO_DRAFT
        guesses = tuple(self._token_ids[self._source : self._source + len(chances)])
        return Draft(token_ids=guesses, chances=chances[: len(guesses)])

    def _catch_up(self) -> None:
        tokens, places = self._token_ids, self._places
        is_first = self._num_seen == 0
        for index in range(self._num_seen, len(tokens)):
            if self._source is not None:
                self._compare(tokens[index])
            if index > 0:
                places.setdefault((tokens[index - 1], tokens[index]), []).append(index + 1)
            if self._source is None and not is_first:
                self._find_source(index)
        self._num_seen = len(tokens)
        if is_first and self._num_seen:
            self._find_source(self._num_seen - 1)

    def _compare(self, token_id: int) -> None:
        assert self._source is not None
        is_hit = self._token_ids[self._source] == token_id
        self._rates.note(self._match_tokens, is_hit=is_hit)
        if is_hit:
            self._source += 1
            self._match_tokens = min(self._match_tokens + 1, MAX_MATCH_TOKENS)
            self._num_misses = 0
            return
        self._num_misses += 1
        if self._match_tokens > 0:
            self._left_at = self._source
        if self._num_misses > MAX_MISSES_NEAR:
            self._left_at = None
        self._source = None

    def _find_source(self, index: int) -> None:
        """Look for what may come after the token at `index`, the newest that is known."""
        tokens = self._token_ids
        # The newest place is this one itself.
        candidates = self._places[tokens[index - 1], tokens[index]][:-1] if index > 0 else []
        if self._left_at is not None:
            near = range(self._left_at, min(self._left_at + NEAR_TOKENS, index + 1))
            pair = next((place for place in candidates if place in near), None)
            if pair is not None:
                return self._follow(pair, index)
            single = next((place + 1 for place in near if tokens[place] == tokens[index] and place < index), None)
            if single is not None:
                return self._follow(single, index)
        if candidates:
            newest_first = candidates[: -MAX_CANDIDATES - 1 : -1]
            return self._follow(max(newest_first, key=lambda place: self._match_before(place, index)), index)
        if self._left_at is not None:
            # Perhaps one token was put in the place of one.
            self._source, self._match_tokens = min(self._left_at + 1, index), 0
        return None

    def _follow(self, source: int, index: int) -> None:
        self._source = source
        self._match_tokens = self._match_before(source, index)

    def _match_before(self, place: int, index: int) -> int:
        """How many tokens before `place` are equal to those up to `index`, as far as it matters."""
        tokens = self._token_ids
        length = 0
        while length < min(MAX_MATCH_TOKENS, place) and tokens[place - 1 - length] == tokens[index - length]:
            length += 1
        return length
