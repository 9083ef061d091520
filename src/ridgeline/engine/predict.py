"""How long a step will take: the cost model's answer, corrected by how wrong it was of late.

Knows: the shape of steps, seconds. Does not know: what decides by it.
"""

from __future__ import annotations

import math
from collections import Counter

from ridgeline.ops.chip import ChipFacts
from ridgeline.ops.cost import ChipCost, StepCost
from ridgeline.ops.step import StepShape

CORRECTION_WEIGHT = 0.1
"""Of the newest step; about twenty steps, a second or less, until a change of speed is followed."""
FADING = 0.98
"""What an observation is worth after each later step."""
WORTH_AT_DISTANCE = tuple(0.5**distance for distance in range(128))
"""What an observation is worth to a class so many classes away."""
FRESH_WORTH = 0.5
"""A class that is worth less is learned anew, beginning with what its neighbours say."""
MAX_SURPRISE = math.log(1.5)
"""One step moves what is known by no more than this: it may have met a moment when the machine was busy."""
MAX_CORRECTION = 1e4
"""Bounds on measured over predicted, either way, so that one absurd measurement cannot poison what follows."""


class StepPredictor:
    """Predicts the seconds of a step.

    Steps of few tokens wait for memory and steps of many for arithmetic, and a chip may be closer to one roof than to
    the other: so the error is followed separately for sizes of steps, four classes to each power of two. Neighbours
    speak for a class that has not been seen, and more and more for one that has not been seen lately: a size that was
    measured at a bad moment, and that nobody chose since for that reason, is tried again.

    The very first step is not learned from: it touches weights and pages for the first time and is far slower.

    Holds: for each class a running mean of log(measured / predicted) and how much it is worth; sums over all steps.
    Changed by: `observe`.
    """

    def __init__(self, cost: StepCost, facts: ChipFacts) -> None:
        self._cost = ChipCost(cost, facts)
        self._log_ratios: dict[int, float] = {}
        self._num_observed: Counter[int] = Counter()
        self._worths: dict[int, float] = {}
        self.predicted_seconds = 0.0
        """Sum over all observed steps of what was predicted."""
        self.measured_seconds = 0.0
        self.roofline_seconds = 0.0
        """Sum of the uncorrected predictions: what the steps would take at the chip's peaks."""
        self.roofline_share = 0.0
        """Uncorrected prediction over measurement: a running mean."""

    def seconds(self, shape: StepShape) -> float:
        """The predicted time of a step."""
        return self._cost.seconds(shape) * math.exp(self._log_ratio(shape.num_tokens))

    def observe(self, shape: StepShape, measured_seconds: float) -> None:
        """Learn from a step that was run."""
        at_roofline = self._cost.seconds(shape)
        if not 0.0 < measured_seconds < math.inf or not 0.0 < at_roofline < math.inf:
            return
        self.predicted_seconds += at_roofline * math.exp(self._log_ratio(shape.num_tokens))
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
        if not self._worths:
            self._log_ratios[step_class] = log_ratio
        else:
            # What was foretold counts like one observation.
            weight = max(CORRECTION_WEIGHT, 1 / (1 + self._num_observed[step_class]))
            is_fresh = self._worths.get(step_class, 0.0) >= FRESH_WORTH
            known = self._log_ratios[step_class] if is_fresh else self._log_ratio(shape.num_tokens)
            surprise = max(-MAX_SURPRISE, min(MAX_SURPRISE, log_ratio - known))
            self._log_ratios[step_class] = known + weight * surprise
        for each in self._worths:
            self._worths[each] *= FADING
        self._worths[step_class] = self._worths.get(step_class, 0.0) + 1.0

    def _log_ratio(self, num_tokens: int) -> float:
        if not self._log_ratios:
            return 0.0
        step_class = _class_of(num_tokens)
        total = sum_of_worths = 0.0
        for each, worth in self._worths.items():
            worth *= WORTH_AT_DISTANCE[abs(each - step_class)]
            total += worth * self._log_ratios[each]
            sum_of_worths += worth
        return total / sum_of_worths


def _class_of(num_tokens: int) -> int:
    return int(4 * math.log2(max(num_tokens, 1)))
