"""How many drafts a step runs: those that raise the tokens per second that the step is expected to make.

A guess that stands with the chance c, given those before it, adds the product of the chances up to it to the tokens
that are expected, and a row to the step. Below the ridge point of a chip a row costs little, beyond it a whole token's
arithmetic; the predicted time of the step says which it is, batch mates included. So no threshold is needed, and
nothing is drafted where it does not pay.

Knows: chances and seconds. Does not know: tokens, drafters, where the seconds come from.

Source: the objective of Leviathan et al., Fast inference from transformers via speculative decoding, arXiv 2211.17192,
section 3.5, with predicted seconds in place of a constant ratio of costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_GAIN = 1.08
"""Drafts must raise the expected tokens per second by this factor at least: chances and times are estimates, and what
an error would win on a text that does not repeat is less than what it would lose."""
TRIED_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of drafts whose time is asked for."""

GUESSED_COUNTS = (1, 2, 3, 4, 6, 8, 12)
"""Numbers of guesses that a draft model is asked for; each takes a run of it."""

Seconds = Callable[[Sequence[int]], float]
"""The predicted time of a step in which each sequence brings so many drafts."""


def choose_lengths(
    chances: Sequence[Sequence[float]], *, max_drafts: int, seconds: Seconds, goal_seconds: float = float("inf")
) -> list[int]:
    """How many drafts each sequence brings.

    Args:
        chances: for each sequence of the step, its guesses' chances; empty where there are none.
        max_drafts: of all sequences together.
        seconds: predicts.
        goal_seconds: no step is made longer than this for the sake of drafts.
    """
    lengths = [0] * len(chances)
    gains: list[tuple[float, int, int]] = []
    for number, own in enumerate(chances):
        gain = 1.0
        for depth, chance in enumerate(own):
            gain *= chance
            gains.append((-gain, depth, number))
    gains.sort()
    del gains[max_drafts:]
    if len(chances) - sum(gain for gain, _, _ in gains) <= len(chances) * MIN_GAIN:
        return lengths  # not even if rows cost nothing
    best_count, best_rate = 0, len(chances) / seconds(lengths) * MIN_GAIN
    expected, count = float(len(chances)), 0
    tried = [0] * len(chances)
    for gain, _, number in gains:
        tried[number] += 1
        expected -= gain
        count += 1
        if count not in TRIED_COUNTS and count < len(gains):
            continue
        step_seconds = seconds(tried)
        if step_seconds > goal_seconds:
            break
        if expected / step_seconds > best_rate:
            best_count, best_rate = count, expected / step_seconds
    for _, _, number in gains[:best_count]:
        lengths[number] += 1
    return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """What a draft model is asked for."""

    group: tuple[int, ...]
    """Numbers of the sequences."""
    num_guesses: int
    gained_seconds_per_token: float
    """Of the step's expected tokens, over doing without the model."""


def choose_guesses(
    copied: Sequence[Sequence[float]],
    chances: Sequence[float],
    room: Sequence[int],
    *,
    max_drafts: int,
    seconds: Seconds,
    making_seconds: Callable[[Sequence[int], int], float],
) -> Guesses | None:
    """Whether a draft model is asked, for which sequences and for how many guesses.

    Args:
        copied: for each sequence the chances of the drafts that it has without the model.
        chances: for each that a guess of the model stands.
        room: for each how many guesses it could use.
        max_drafts: of all sequences together.
        seconds: of the step.
        making_seconds: (numbers of sequences, guesses for each) -> time of the model.
    """
    expected_copied = [expected_tokens(own) for own in copied]
    lengths = [len(own) for own in copied]
    plain_rate = (len(copied) + sum(expected_copied)) / seconds(lengths)
    best_rate, best = plain_rate * MIN_GAIN, None
    for count in GUESSED_COUNTS:
        expected, tried, group = float(len(copied)), list(lengths), []
        for number, chance in enumerate(chances):
            length = min(count, room[number])
            gain = expected_tokens((chance,) * length)
            if gain > expected_copied[number]:
                tried[number] = length
                group.append(number)
            expected += max(gain, expected_copied[number])
        if not group or sum(tried) > max_drafts:
            break
        rate = expected / (seconds(tried) + making_seconds(group, count))
        if rate > best_rate:
            best_rate = rate
            best = Guesses(
                group=tuple(group), num_guesses=count, gained_seconds_per_token=1 / plain_rate - 1 / best_rate
            )
    return best


def expected_tokens(chances: Sequence[float]) -> float:
    """How many of the guesses are expected to stand."""
    expected, reached = 0.0, 1.0
    for chance in chances:
        reached *= chance
        expected += reached
    return expected
