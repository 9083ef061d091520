"""How many drafts pay, by chances and by what rows cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.speculate.length import MIN_GAIN, choose_lengths


def cost(base: float, row: float, free_rows: int = 0):
    """Seconds of a step: a base, and something for each row beyond the free ones."""
    return lambda lengths: base + row * max(0, sum(lengths) + len(lengths) - free_rows)


def test_nothing_is_drafted_where_nobody_guesses() -> None:
    assert choose_lengths([(), ()], max_drafts=10, seconds=cost(1, 0)) == [0, 0]


def test_where_rows_are_free_all_are_run() -> None:
    assert choose_lengths([(0.9,) * 8], max_drafts=100, seconds=cost(1, 0)) == [8]


def test_where_a_row_costs_as_much_as_a_step_none_is() -> None:
    assert choose_lengths([(0.9,) * 8], max_drafts=100, seconds=cost(0, 1)) == [0]


def test_sure_guesses_are_longer_than_unsure_ones() -> None:
    chosen = [choose_lengths([(chance,) * 32], max_drafts=100, seconds=cost(1, 0.05))[0] for chance in (0.3, 0.6, 0.97)]
    assert 0 < chosen[0] < chosen[1] < chosen[2]


def test_unlikely_guesses_are_not_worth_an_error_of_the_prediction() -> None:
    assert choose_lengths([(0.05,)], max_drafts=100, seconds=cost(1, 0)) == [0]


def test_the_surest_get_what_room_there_is() -> None:
    lengths = choose_lengths([(0.2,) * 9, (0.95,) * 9, ()], max_drafts=6, seconds=cost(1, 0))
    assert lengths == [0, 6, 0]


def test_batch_mates_share_the_cost() -> None:
    """Alone a row costs next to nothing; among 31 others the step is bound by arithmetic, and a row costs a row."""
    alone = choose_lengths([(0.5,) * 4], max_drafts=100, seconds=cost(1, 0.1, free_rows=8))
    crowd = choose_lengths([(0.5,) * 4] + [()] * 31, max_drafts=100, seconds=cost(1, 0.1, free_rows=8))
    assert alone[0] >= 3 and crowd[0] <= 1


def test_the_goal_bounds_the_step() -> None:
    seconds = cost(1, 0.1)
    unbound = choose_lengths([(0.99,) * 32], max_drafts=100, seconds=seconds)[0]
    bound = choose_lengths([(0.99,) * 32], max_drafts=100, seconds=seconds, goal_seconds=1.8)[0]
    assert bound < unbound and seconds([bound]) <= 1.8


@given(
    chances=st.lists(st.lists(st.floats(0, 1), max_size=12), min_size=1, max_size=6),
    max_drafts=st.integers(1, 30),
    row=st.floats(0, 1),
)
def test_what_is_chosen_pays_and_fits(chances, max_drafts, row) -> None:
    seconds = cost(1, row)
    lengths = choose_lengths(chances, max_drafts=max_drafts, seconds=seconds)
    assert sum(lengths) <= max_drafts
    expected = 0.0
    for own, length in zip(chances, lengths, strict=True):
        assert 0 <= length <= len(own)
        reached = 1.0
        expected += 1
        for chance in own[:length]:
            reached *= chance
            expected += reached
    plain = len(chances) / seconds([0] * len(chances))
    if any(lengths):
        assert expected / seconds(lengths) >= plain * MIN_GAIN * (1 - 1e-9)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_certainty_is_no_special_case(chance) -> None:
    assert choose_lengths([(chance,) * 5], max_drafts=9, seconds=cost(1, 0.01)) == [int(chance) * 5]
