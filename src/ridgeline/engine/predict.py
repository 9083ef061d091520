"""How long a step will take: the cost model's answer, corrected by how wrong it was of late.

Knows: the shape of steps, seconds. Does not know: what decides by it.
"""

from __future__ import annotations

import math
from collections import Counter

from ridgeline.ops.chip import ChipFacts
from ridgeline.ops.cost import StepCost
from ridgeline.ops.step import StepShape

CORRECTION_WEIGHT = 0.1
"""Of the newest step; about twenty steps, a second or less, until a change of speed is followed."""
MAX_CORRECTION = 1e4
"""Bounds on measured over predicted, either way, so that one absurd measurement cannot poison what follows."""


class StepPredictor:
    """Predicts the seconds of a step.

    Steps of few tokens wait for memory and steps of many for arithmetic, and a chip may be closer to one roof than to
    the other: so the error is followed separately for each power of two of the number of tokens, and a class that has
    not been seen yet takes that of the nearest one that was.

    The very first step is not learned from: it touches weights and pages for the first time and is far slower.

    Holds: a running mean of log(measured / predicted) for each class; sums over all steps. Changed by: `observe`.
    """

    def __init__(self, cost: StepCost, facts: ChipFacts) -> None:
        self._cost = cost
        self._facts = facts
        self._log_ratios: dict[int, float] = {}
        self._num_observed: Counter[int] = Counter()
        self.predicted_seconds = 0.0
        """Sum over all observed steps of what was predicted."""
        self.measured_seconds = 0.0
        self.roofline_seconds = 0.0
        """Sum of the uncorrected predictions: what the steps would take at the chip's peaks."""
        self.roofline_share = 0.0
        """Uncorrected prediction over measurement: a running mean."""

    def seconds(self, shape: StepShape) -> float:
        """The predicted time of a step."""
        return self._cost.seconds(shape, self._facts) * math.exp(self._log_ratio(shape.num_tokens))

    def observe(self, shape: StepShape, measured_seconds: float) -> None:
        """Learn from a step that was run."""
        at_roofline = self._cost.seconds(shape, self._facts)
        if not 0.0 < measured_seconds < math.inf or not 0.0 < at_roofline < math.inf:
            return
        self.predicted_seconds += self.seconds(shape)
        self.measured_seconds += measured_seconds
        self.roofline_seconds += at_roofline
        share = at_roofline / measured_seconds
        if self.roofline_share == 0.0:
            self.roofline_share = share
            return
        self.roofline_share += CORRECTION_WEIGHT * (share - self.roofline_share)
        log_ratio = max(-math.log(MAX_CORRECTION), min(math.log(MAX_CORRECTION), -math.log(share)))
        step_class = _class_of(shape.num_tokens)
        self._num_observed[step_class] += 1
        weight = max(CORRECTION_WEIGHT, 1 / self._num_observed[step_class])
        known = self._log_ratios.get(step_class, 0.0)
        self._log_ratios[step_class] = known + weight * (log_ratio - known)

    def _log_ratio(self, num_tokens: int) -> float:
        if not self._log_ratios:
            return 0.0
        step_class = _class_of(num_tokens)
        if step_class in self._log_ratios:
            return self._log_ratios[step_class]
        nearest = min(self._log_ratios, key=lambda each: (abs(each - step_class), each))
        return self._log_ratios[nearest]


def _class_of(num_tokens: int) -> int:
    return num_tokens.bit_length()
