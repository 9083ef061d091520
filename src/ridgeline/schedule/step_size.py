"""How many prompt tokens a step may take, from predicted step times: the one place where a goal becomes a number.

While nobody waits for a next token, a step takes all that fits: long steps read the weights the fewest times. While
somebody does, the step grows only as far as its predicted time stays within the goal; below the ridge point of the chip
more tokens cost next to nothing, so the search finds it without being told where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ridgeline.ops.step import SpanShape, StepShape
from ridgeline.schedule.sequence import Sequence

Predict = Callable[[StepShape], float]
"""Seconds that a step of this shape will take."""

DECODE_SHARE = 1.5
"""Where the goal cannot be had even without prompts, prompts may still take half of the decoding tokens' own time on
top: without it hardly a new request would be read on a chip that is slower than the goal."""
MIN_PREFILL_TOKENS = 16
"""Taken in any case, so that there is always progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Tokens [sequence.num_computed, end) of a sequence, to be run in the step."""

    sequence: Sequence
    end: int
    draft: tuple[int, ...] = ()
    """Guesses at the tokens after the known ones, which `end` includes."""

    @property
    def num_tokens(self) -> int:
        """Tokens to run."""
        return self.end - self.sequence.num_computed

    @property
    def num_rows(self) -> int:
        """Logit rows wanted."""
        return self.sequence.num_rows(self.end - len(self.draft)) + len(self.draft)

    @property
    def span(self) -> SpanShape:
        """Its cost's arguments."""
        return SpanShape(num_tokens=self.num_tokens, context_tokens=self.end)


def divide(sequences: Iterable[Sequence], num_tokens: int, num_rows: int) -> list[Share]:
    """Give at most `num_tokens` tokens and `num_rows` logit rows to sequences, first come first served."""
    shares: list[Share] = []
    for sequence in sequences:
        count = min(num_tokens, sequence.num_remaining)
        if sequence.num_rows(sequence.num_computed + count) > num_rows:
            # All logits of a prompt are wanted and they do not fit, or its last row does not: stop short.
            rows_from = count - 1 + sequence.num_computed if sequence.rows_from is None else sequence.rows_from
            count = min(count, rows_from - sequence.num_computed + num_rows)
        if count <= 0:
            continue
        share = Share(sequence=sequence, end=sequence.num_computed + count)
        num_tokens -= count
        num_rows -= share.num_rows
        shares.append(share)
    return shares


def prefill_shares(
    decoding: list[Share],
    prefilling: list[Sequence],
    *,
    max_tokens: int,
    max_rows: int,
    predict: Predict | None,
    goal_seconds: float | None,
) -> list[Share]:
    """The chunks of prompts to run beside the decoding sequences.

    `max_tokens` and `max_rows` are what the step has left for them. Monotone search over the number of tokens: the cost
    of a step never falls when a token is added.
    """
    most = min(max_tokens, sum(sequence.num_remaining for sequence in prefilling))
    if predict is None or goal_seconds is None or not decoding or not prefilling:
        return divide(prefilling, most, max_rows)
    spans = tuple(share.span for share in decoding)

    def seconds(num_tokens: int) -> float:
        shares = divide(prefilling, num_tokens, max_rows)
        num_rows = sum(share.num_rows for share in (*decoding, *shares))
        return predict(StepShape(spans=spans + tuple(share.span for share in shares), num_logit_rows=num_rows))

    budget_seconds = max(goal_seconds, DECODE_SHARE * seconds(0))
    low = min(MIN_PREFILL_TOKENS, most)
    high = most
    if seconds(high) <= budget_seconds:
        low = high
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(middle) <= budget_seconds:
            low = middle
        else:
            high = middle - 1
    return divide(prefilling, low, max_rows)
