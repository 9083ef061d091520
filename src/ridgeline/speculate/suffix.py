"""Guesses copied from where the longest suffix of the text stood before: in the sample itself, or in recent answers.

A longer match is a better guess, and matches of any length are found in constant time a token, in text of any length.

Source: suffix automata over prompts and earlier outputs as drafters: SuffixDecoding, Oliaro et al., arXiv 2411.04975,
section 4, which counts continuations in suffix trees; here the newest place speaks for all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ridgeline.speculate import _native
from ridgeline.speculate.drafter import NO_DRAFT, Draft
from ridgeline.speculate.hit_rates import HitRates

MAX_RECENT_TOKENS = 1 << 14
"""Of one half of a salt's recent texts; the older half goes when the newer is full. About 100 bytes each."""
MAX_SALTS = 16
"""Whose recent texts are kept; those that were used longest ago go first."""
KEPT_PROMPT_TOKENS = 512
"""Of a finished prompt, its end: enough to be recognised by, when the same is asked again."""


class SuffixDrafter:
    """Follows a sample's text through an automaton: its own (which it then makes) or one of recent texts.

    Holds: the sample's tokens, which it only reads; the place of the text in the automaton. Changed by: `propose`.
    """

    def __init__(self, token_ids: Sequence[int], recent: _native.SuffixAutomaton | None = None) -> None:
        self._token_ids = token_ids
        automaton = _native.SuffixAutomaton() if recent is None else recent
        self._own = automaton if recent is None else None
        self._cursor = _native.Cursor(automaton)
        self._num_seen = 0 if recent is None else max(0, len(token_ids) - KEPT_PROMPT_TOKENS)
        self._has_begun = False
        self._match_tokens = 0
        self._rates = HitRates()

    def propose(self, max_tokens: int) -> Draft:
        """See Drafter."""
        self._catch_up()
        if self._match_tokens == 0:
            return NO_DRAFT
        chances = self._rates.chances(self._match_tokens, max_tokens)
        if not chances:
            return NO_DRAFT
        guesses = tuple(self._cursor.guesses(len(chances)))
        return Draft(token_ids=guesses, chances=chances[: len(guesses)])

    def _catch_up(self) -> None:
        new = self._token_ids[self._num_seen :]
        self._num_seen = len(self._token_ids)
        if not self._has_begun:
            self._has_begun = True
            return self._read(new)
        for token_id in new:
            foreseen = self._cursor.follow(token_id, self._own)
            if foreseen >= 0:
                self._rates.note(self._match_tokens, is_hit=foreseen == 1)
            self._match_tokens = self._cursor.match_tokens
        return None

    def _read(self, token_ids: Sequence[int]) -> None:
        if self._own is None:
            self._cursor.advance(token_ids)
        else:
            _native.advance_and_append(self._cursor, self._own, token_ids)
        self._match_tokens = self._cursor.match_tokens


class RecentTexts:
    """Texts of requests that have ended, by salt: who shares no cached prefix shares no text either.

    Holds: for each salt two automata, of the newest texts and of those before. Changed by: `add`.
    """

    def __init__(self) -> None:
        self._halves: OrderedDict[str, tuple[_native.SuffixAutomaton, _native.SuffixAutomaton]] = OrderedDict()

    def add(self, salt: str, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Remember a text that is whole."""
        newer, older = (
            self._halves.pop(salt) if salt in self._halves else (_native.SuffixAutomaton(), _native.SuffixAutomaton())
        )
        if newer.num_tokens >= MAX_RECENT_TOKENS:
            newer, older = _native.SuffixAutomaton(), newer
        begin = max(0, num_prompt_tokens - KEPT_PROMPT_TOKENS)
        room = MAX_RECENT_TOKENS - newer.num_tokens
        newer.append(token_ids[begin : begin + room])
        newer.separate()
        self._halves[salt] = newer, older
        if len(self._halves) > MAX_SALTS:
            self._halves.popitem(last=False)

    def drafters(self, salt: str, token_ids: Sequence[int]) -> list[SuffixDrafter]:
        """Those that copy from this salt's texts, as far as there are any."""
        halves = self._halves.get(salt, ())
        if halves:
            self._halves.move_to_end(salt)
        return [SuffixDrafter(token_ids, half) for half in halves if half.num_tokens]
