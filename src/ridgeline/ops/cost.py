"""What a step costs, in closed form: floating-point operations and bytes, linear in what the step looks like.

Knows: the shape of a step, a chip's roofline. Does not know: decoders, ops, who counted.

A step's *features* are the numbers that its cost is linear in: its tokens, its logit rows, whether there are any (a
weight is read once, by however many rows), and for each window size in the model the query-key pairs that attention
sees and the keys that it reads. `ridgeline.chips.counting` finds the coefficients by running the decoder once.

Source of the model (a time is the longer of moving and computing): Roofline, Williams et al., CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ridgeline.ops.chip import Arithmetic, ChipFacts, KvFormat, PageLayout
from ridgeline.ops.step import PAGE_SLOTS, StepShape

TOKENS, LOGIT_ROWS, SEQUENCES, ANY_TOKENS, ANY_LOGIT_ROWS = range(5)
"""Places of a step's features; then, for each window, PAIRS and KEYS."""
NUM_PLAIN_FEATURES = 5

OpKind = Literal["embed", "linear", "attend", "store_kv", "elementwise"]

LinearForm = tuple[tuple[int, int], ...]
"""(place of a feature, coefficient), coefficients not zero."""

_WIDER: Mapping[Arithmetic, tuple[Arithmetic, ...]] = {
    "int8": ("int8", "bf16", "fp32"),
    "bf16": ("bf16", "fp32"),
    "fp32": ("fp32", "bf16"),
}
"""What a chip that publishes no peak for an arithmetic runs it in; it emulates fp32 with bf16 as the last resort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerm:
    """All ops of one kind on weights of one format that are bound by the same thing."""

    kind: OpKind
    format_name: str
    """The weights' format; for `attend` and `store_kv` the format of keys and values; F32 for elementwise ops."""
    operations: LinearForm
    bytes: LinearForm


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """The cost of any step of one model: exact, because it was added up by the decoder itself."""

    windows: tuple[int | None, ...]
    terms: tuple[CostTerm, ...]

    def operations(self, shape: StepShape) -> int:
        """Floating-point operations of the step; a multiply-add is two."""
        features = step_features(shape, self.windows)
        return sum(_evaluate(term.operations, features) for term in self.terms)

    def bytes(self, shape: StepShape) -> int:
        """Bytes that the step must move between memory and chip at least.

        Each weight once, keys and values once a sequence and kv head, float32 activations in and out of each op; what
        a coarse op keeps to itself is not counted.
        """
        features = step_features(shape, self.windows)
        return sum(_evaluate(term.bytes, features) for term in self.terms)

    def seconds(self, shape: StepShape, facts: ChipFacts) -> float:
        """How long the step takes on a chip at its roofline, plus the chip's overhead for a step.

        The definition, term by term; who asks at every step asks `ChipCost`.
        """
        features = step_features(shape, self.windows)
        bandwidth = facts.bandwidth_bytes_per_second
        seconds = facts.step_overhead_seconds
        for term in self.terms:
            moved = 0
            for place, coefficient in term.bytes:
                moved += coefficient * features[place]
            done = 0
            for place, coefficient in term.operations:
                done += coefficient * features[place]
            seconds += max(moved / bandwidth, done / peak(facts, term.format_name))
        return seconds


class ChipCost:
    """`StepCost.seconds` on one chip, to be asked at every step: what can be reckoned before is.

    A term of which moving outlasts computing (or the other way) feature by feature is never bound by the other, so all
    such terms are one sum.

    Holds: seconds for each feature; the terms that may be bound by either.
    """

    def __init__(self, cost: StepCost, facts: ChipFacts) -> None:
        self._windows = cost.windows
        self._overhead_seconds = facts.step_overhead_seconds
        sums = [0.0] * (NUM_PLAIN_FEATURES + 2 * len(cost.windows))
        self._either: list[tuple[list[tuple[int, float]], list[tuple[int, float]]]] = []
        for term in cost.terms:
            chip_peak = peak(facts, term.format_name)
            moving = {place: count / facts.bandwidth_bytes_per_second for place, count in term.bytes}
            computing = {place: count / chip_peak for place, count in term.operations}
            for longer, shorter in ((moving, computing), (computing, moving)):
                if all(longer.get(place, 0.0) >= seconds for place, seconds in shorter.items()):
                    for place, seconds in longer.items():
                        sums[place] += seconds
                    break
            else:
                self._either.append((list(moving.items()), list(computing.items())))
        self._sums = [(place, seconds) for place, seconds in enumerate(sums) if seconds]

    def seconds(self, shape: StepShape) -> float:
        """How long the step takes at the chip's roofline, plus the chip's overhead for a step."""
        features = step_features(shape, self._windows)
        total = self._overhead_seconds
        for place, seconds in self._sums:
            total += seconds * features[place]
        for moving, computing in self._either:
            moved = done = 0.0
            for place, seconds in moving:
                moved += seconds * features[place]
            for place, seconds in computing:
                done += seconds * features[place]
            total += moved if moved > done else done
        return total


def peak(facts: ChipFacts, format_name: str) -> float:
    """Operations per second that products with weights of this format run at; fp32 where the facts do not say."""
    peaks = facts.operations_per_second
    for arithmetic in _WIDER[facts.arithmetic.get(format_name, "fp32")]:
        if arithmetic in peaks:
            return peaks[arithmetic]
    return max(peaks.values())


def step_features(shape: StepShape, windows: tuple[int | None, ...]) -> list[int]:
    """The numbers that costs are linear in, at their places."""
    spans = shape.spans
    num_tokens = 0
    pairs_twice = 0
    keys = 0
    for span in spans:
        count = span.num_tokens
        context = span.context_tokens
        num_tokens += count
        keys += context
        pairs_twice += count * (2 * context - count + 1)
    rows = shape.num_logit_rows
    features = [num_tokens, rows, len(spans), 1 if num_tokens else 0, 1 if rows else 0]
    for window in windows:
        if window is None:
            features += (pairs_twice // 2, keys)
        else:
            features += _windowed(shape, window)
    return features


def _windowed(shape: StepShape, window: int) -> tuple[int, int]:
    """(pairs, keys read) where a query sees `window` positions back, itself included.

    The queries of a span see first..last keys, one more each, but never more than the window:

        seen   ^        ______ window
               |      /
               |    /            first = context - count + 1, last = context
               +--------------> query
    """
    pairs = 0
    keys = 0
    for span in shape.spans:
        count = span.num_tokens
        last = span.context_tokens
        if last <= window:
            pairs += count * (2 * last - count + 1) // 2
            keys += last
            continue
        first = last - count + 1
        rising = max(0, window - first)  # queries that see less than the window
        pairs += count * window - rising * (rising + 1) // 2
        keys += min(last, count + window - 1)
    return pairs, keys


def _evaluate(form: LinearForm, features: list[int]) -> int:
    return sum(coefficient * features[place] for place, coefficient in form)


def kv_token_bytes(num_kv_heads: int, head_width: int, kv_format: KvFormat) -> int:
    """Bytes of one token's keys and values in one layer, scales included.

    int8: a float32 scale and offset a key channel and page, a float32 scale a value head and token.
    """
    values = num_kv_heads * head_width
    if kv_format == "int8":
        return 2 * values + -(-values * 8 // PAGE_SLOTS) + 4 * num_kv_heads
    return 2 * values * {"f32": 4, "bf16": 2}[kv_format]


def page_bytes(layout: PageLayout) -> int:
    """Bytes of one page over all layers, as the cost model counts them; a chip may need a little more."""
    return PAGE_SLOTS * sum(kv_token_bytes(heads, width, layout.format) for heads, width in layout.layers)
