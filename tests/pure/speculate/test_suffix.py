"""The automaton against the plainest means: every earlier place of every suffix, looked for anew."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.speculate.suffix import KEPT_PROMPT_TOKENS, MAX_RECENT_TOKENS, MAX_SALTS, RecentTexts, SuffixDrafter

native = pytest.importorskip("ridgeline.speculate._native", reason="the native modules are not built")

texts = st.lists(st.integers(0, 3), max_size=60)


def places_of(pattern: list[int], text: list[int]) -> list[int]:
    """Where the token after each place of the pattern is."""
    size = len(pattern)
    return [end for end in range(size, len(text) + 1) if text[end - size : end] == pattern]


def longest_known_suffix(text: list[int], documents: list[list[int]]) -> int:
    return next(
        (size for size in range(len(text), 0, -1) if any(places_of(text[-size:], each) for each in documents)), 0
    )


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_a_text_followed_in_itself(text) -> None:
    automaton = native.SuffixAutomaton()
    cursor = native.Cursor(automaton)
    for number, token in enumerate(text):
        native.advance_and_append(cursor, automaton, [token])
        known, earlier = text[: number + 1], text[:number]
        size = longest_known_suffix(known, [earlier])
        assert cursor.match_tokens == size
        guesses = cursor.guesses(5)
        if size:
            places = places_of(known[-size:], earlier)
            continuations = [known[place : place + 5] for place in places]
            assert guesses in continuations and guesses
            if number < 32:
                assert guesses == continuations[-1], "the newest place"
        else:
            assert guesses == []


@settings(max_examples=300, deadline=None)
@given(documents=st.lists(texts, max_size=5), text=texts, when=st.lists(st.integers(0, 60), min_size=5, max_size=5))
def test_a_text_followed_in_others_that_come_while_it_is_read(documents, text, when) -> None:
    automaton = native.SuffixAutomaton()
    cursor = native.Cursor(automaton)
    present: list[list[int]] = []
    for number, token in enumerate(text):
        for document, time in zip(documents, when, strict=False):
            if time == number:
                automaton.append(document)
                automaton.separate()
                present.append(document)
        cursor.advance([token])
        known = text[: number + 1]
        # What came later than a part of the match is found only as it is followed, so the match may be shorter.
        size = cursor.match_tokens
        assert size <= longest_known_suffix(known, present)
        assert size >= longest_known_suffix(known, [each for each, at in zip(documents, when, strict=False) if at == 0])
        if size:
            continuations = [each[place : place + 4] for each in present for place in places_of(known[-size:], each)]
            assert cursor.guesses(4) in continuations


def test_negative_tokens_are_refused() -> None:
    automaton = native.SuffixAutomaton()
    with pytest.raises(ValueError, match="negative"):
        automaton.append([1, -1])
    with pytest.raises(ValueError, match="negative"):
        native.Cursor(automaton).advance([-5])


def test_one_token_over_and_over_takes_no_quadratic_time_or_room() -> None:
    drafter = SuffixDrafter([7] * 20_000)
    draft = drafter.propose(8)
    assert draft.token_ids and set(draft.token_ids) == {7}


def drafts(recent: RecentTexts, salt: str, tokens: list[int], count: int = 5) -> list[tuple[int, ...]]:
    return [drafter.propose(count).token_ids for drafter in recent.drafters(salt, tokens)]


def test_recent_texts_go_to_the_same_salt_alone() -> None:
    recent = RecentTexts()
    recent.add("a", [1, 2, 3, 4, 5, 6], 2)
    assert drafts(recent, "a", [9, 2, 3]) == [(4, 5, 6)]
    assert drafts(recent, "", [9, 2, 3]) == [] == drafts(recent, "b", [9, 2, 3])
    recent.add("", [2, 3, 8], 1)
    assert drafts(recent, "a", [9, 2, 3]) == [(4, 5, 6)]
    assert drafts(recent, "", [9, 2, 3]) == [(8,)]


def test_a_guess_never_goes_on_from_one_text_into_the_next() -> None:
    recent = RecentTexts()
    recent.add("", [1, 2, 3], 1)
    recent.add("", [4, 5, 6], 1)
    assert drafts(recent, "", [1, 2]) == [(3,)]
    assert drafts(recent, "", [2, 3]) == [()]
    assert drafts(recent, "", [3, 4]) == [(5, 6)], "the match begins at a text's first token"


def test_recent_texts_are_bounded() -> None:
    recent = RecentTexts()
    rng = random.Random(1)
    early = [rng.randrange(1000) for _ in range(1000)]
    recent.add("", early, 0)
    assert drafts(recent, "", early[500:510]) == [tuple(early[510:515])]
    for _ in range(2 * MAX_RECENT_TOKENS // 1000 + 4):
        recent.add("", [rng.randrange(1000) for _ in range(1000)], 0)
    assert tuple(early[510:515]) not in drafts(recent, "", early[500:510])
    for number in range(MAX_SALTS + 1):
        recent.add(f"s{number}", [1, 2, 3], 0)
    assert drafts(recent, "", early[:1]) == [] == drafts(recent, "s0", [1])
    assert drafts(recent, "s1", [1]) == [(2, 3)]


def test_of_a_long_prompt_the_end_is_kept() -> None:
    recent = RecentTexts()
    prompt = list(range(10_000))
    recent.add("", [*prompt, 3, 1, 4], len(prompt))
    assert drafts(recent, "", prompt) == [(3, 1, 4)]
    assert drafts(recent, "", prompt[: -KEPT_PROMPT_TOKENS - 5]) == [()]
