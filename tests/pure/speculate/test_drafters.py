"""Who guesses what, and how sure he is: n-grams that keep their place, chances that follow hits and misses."""

from __future__ import annotations

import pytest

from ridgeline.speculate.hit_rates import PRIOR_RATES, HitRates
from ridgeline.speculate.ngram import NgramDrafter
from ridgeline.speculate.suffix import SuffixDrafter

BOTH = pytest.mark.parametrize("drafter", [NgramDrafter, SuffixDrafter])


@BOTH
def test_it_copies_what_followed_before(drafter) -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 2, 3]
    assert drafter(tokens).propose(3).token_ids == (4, 5, 6)


@BOTH
def test_it_says_nothing_of_a_text_that_repeats_nothing(drafter) -> None:
    tokens = list(range(10))
    made = drafter(tokens)
    for token in range(10, 40):
        assert made.propose(8).token_ids == ()
        tokens.append(token)


@BOTH
def test_the_longest_match_speaks(drafter) -> None:
    tokens = [1, 2, 3, 50, 9, 2, 3, 60, 8, 2, 3, 70, 1, 2, 3]
    assert drafter(tokens).propose(1).token_ids == (50,)


@BOTH
def test_chances_rise_with_hits_and_fall_with_misses(drafter) -> None:
    source = list(range(100, 160))
    tokens = [*source, 7, 100, 101]
    made = drafter(tokens)
    before = made.propose(4)
    assert before.token_ids == (102, 103, 104, 105)
    assert all(earlier <= later for earlier, later in zip(before.chances, before.chances[1:], strict=False))
    for token in range(102, 150):
        tokens.append(token)
        made.propose(4)
    assert made.propose(1).chances[0] > before.chances[0]
    # From here on what comes is never what came before.
    for number in range(60):
        tokens += [100 + number % 50, 101 + number % 50]
        made.propose(4)
        tokens.append(1000 + number)
        made.propose(4)
    tokens += [120, 121]
    assert sum(made.propose(1).chances) < before.chances[0], "little, or too little to be said"


def test_after_an_edit_copying_goes_on_close_behind() -> None:
    """A name that is put in the place of another, of more tokens or fewer, costs a miss and not the whole line."""
    line = [1, 2, 5, 6, 11, 20, 21, 22, 5, 6, 12, 30, 31, 32, 5, 6, 11, 40, 41, 42]
    tokens = [*line, 99, 1, 2]
    made = NgramDrafter(tokens)
    made.propose(4)
    for token in (5, 6, 11, 77, 78, 21):  # 77 78 in the place of 20
        tokens.append(token)
        made.propose(4)
    assert made.propose(3).token_ids == (22, 5, 6)
    for token in (22, 5, 6):
        tokens.append(token)
        made.propose(4)
    assert made.propose(2).token_ids == (12, 30), "of two like places the one that comes next"


def test_one_token_in_the_place_of_one_is_foreseen() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 90, 1, 2]
    made = NgramDrafter(tokens)
    assert made.propose(2).token_ids == (3, 4)
    tokens.append(80)
    assert made.propose(1).token_ids == (4,)


def test_prior_rates_are_what_is_said_before_anything_is_seen() -> None:
    rates = HitRates()
    assert rates.chances(1, 2) == (PRIOR_RATES[1], PRIOR_RATES[2])
    assert rates.chances(4, 3) == (PRIOR_RATES[3],) * 3
    assert len(rates.chances(1, 9)) == 2, "the third is reached once in fifty times"
    assert rates.chances(1000, 2) == (PRIOR_RATES[-1],) * 2


def test_a_change_is_followed_and_other_classes_are_left_alone() -> None:
    rates = HitRates()
    for _ in range(200):
        rates.note(5, is_hit=True)
    assert rates.chances(4, 1)[0] > 0.98
    for _ in range(60):
        rates.note(6, is_hit=False)
    assert rates.chances(7, 1)[0] < 0.1
    assert rates.chances(9, 1)[0] == PRIOR_RATES[4]
