"""Finding the end of a text that comes in pieces: which of several strings is complete first.

Knows: characters. Does not know: tokens.
Source: Aho and Corasick, "Efficient string matching", CACM 18 (1975); here one state stands for the longest end of the
text that begins a stop string, so its depth is what has to be held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _State:
    depth: int
    next: dict[str, _State] = field(default_factory=dict)
    fallback: _State | None = None
    """The state of the longest shorter end of the text that also begins a stop string."""
    stop: str | None = None
    """The longest stop string that ends here."""


class StopAutomaton:
    """The states of a set of stop strings; built once, then only read, and shared by streams."""

    def __init__(self, stops: Iterable[str]) -> None:
        self.root = _State(0)
        for stop in stops:
            state = self.root
            for character in stop:
                state = state.next.setdefault(character, _State(state.depth + 1))
            if stop:
                state.stop = stop
        for state, character, child in self._breadth_first():
            fallback = state.fallback
            while fallback is not None and character not in fallback.next:
                fallback = fallback.fallback
            child.fallback = self.root if fallback is None else fallback.next[character]
            child.stop = child.stop or child.fallback.stop

    def _breadth_first(self) -> Iterator[tuple[_State, str, _State]]:
        waiting = deque([self.root])
        while waiting:
            state = waiting.popleft()
            for character, child in state.next.items():
                yield state, character, child
                waiting.append(child)

    def after(self, state: _State, character: str) -> _State:
        """The state that `character` leads to."""
        while character not in state.next:
            if state.fallback is None:
                return state
            state = state.fallback
        return state.next[character]


class StopFinder:
    """Watches a text for stop strings.

    The text ends at the first character that completes a stop string; of several that end there, the longest counts.
    How the text is cut into pieces makes no difference.
    Holds: the end of the text that may be the beginning of a stop string. Changed by: `push`, `finish`.
    """

    def __init__(self, automaton: StopAutomaton, *, keeps_stop: bool = False) -> None:
        self._automaton = automaton
        self._keeps_stop = keeps_stop
        self._state = automaton.root
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to be shown and was not returned yet."""
        assert self.stopped_by is None
        state = self._state
        for index, character in enumerate(text):
            state = self._automaton.after(state, character)
            if state.stop is not None:
                self.stopped_by = state.stop
                whole = self._held + text[: index + 1]
                self._held = ""
                return whole if self._keeps_stop else whole[: len(whole) - len(state.stop)]
        self._state = state
        whole = self._held + text
        certain = len(whole) - state.depth
        self._held = whole[certain:]
        return whole[:certain]

    def finish(self) -> str:
        """What was held back, now that no more comes."""
        held, self._held, self._state = self._held, "", self._automaton.root
        return held
