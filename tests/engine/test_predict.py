"""The predictor follows what is measured, forgets a cold start, and is not poisoned by absurd figures."""

from __future__ import annotations

import math

import pytest

from ridgeline.engine.predict import StepPredictor
from ridgeline.ops.chip import ChipFacts
from ridgeline.ops.cost import TOKENS, CostTerm, StepCost
from ridgeline.ops.step import SpanShape, StepShape

FACTS = ChipFacts(
    name="x",
    description="x",
    memory_bytes=1,
    bandwidth_bytes_per_second=1e9,
    operations_per_second={"fp32": 1e9},
    source="none",
)
COST = StepCost(
    windows=(),
    terms=(CostTerm(kind="linear", format_name="F32", operations=((TOKENS, 1_000_000),), bytes=()),),
)


def shape(num_tokens: int) -> StepShape:
    return StepShape(spans=(SpanShape(num_tokens=num_tokens, context_tokens=num_tokens),), num_logit_rows=1)


def test_it_starts_with_the_cost_model_and_learns_each_size() -> None:
    predictor = StepPredictor(COST, FACTS)
    assert predictor.seconds(shape(4)) == pytest.approx(0.004)
    predictor.observe(shape(4), 9.0)  # cold
    assert predictor.seconds(shape(4)) == pytest.approx(0.004)
    for _ in range(20):
        predictor.observe(shape(4), 0.008)
        predictor.observe(shape(400), 1.2)
    assert predictor.seconds(shape(4)) == pytest.approx(0.008)
    assert predictor.seconds(shape(5)) == pytest.approx(0.010)
    assert predictor.seconds(shape(400)) == pytest.approx(1.2, rel=0.05)
    assert predictor.seconds(shape(8000)) == pytest.approx(24.0, rel=0.05), "the nearest size that was seen"


def test_it_follows_a_change_of_speed() -> None:
    predictor = StepPredictor(COST, FACTS)
    for _ in range(50):
        predictor.observe(shape(4), 0.004)
    for _ in range(50):
        predictor.observe(shape(4), 0.012)
    assert predictor.seconds(shape(4)) == pytest.approx(0.012, rel=0.02)
    assert predictor.roofline_share == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("absurd", [0.0, -1.0, 1e300, math.inf])
def test_absurd_measurements_do_not_poison(absurd) -> None:
    predictor = StepPredictor(COST, FACTS)
    for _ in range(5):
        predictor.observe(shape(4), 0.004)
    predictor.observe(shape(4), absurd)
    for _ in range(100):
        predictor.observe(shape(4), 0.004)
    assert predictor.seconds(shape(4)) == pytest.approx(0.004, rel=0.05)


def test_sums_are_of_predictions_and_measurements() -> None:
    predictor = StepPredictor(COST, FACTS)
    for _ in range(10):
        predictor.observe(shape(4), 0.008)
    assert predictor.measured_seconds == pytest.approx(0.08)
    assert predictor.predicted_seconds == pytest.approx(0.004 * 2 + 0.008 * 8)


def test_one_slow_moment_hardly_matters_and_is_forgotten() -> None:
    """A size that looked slow is not chosen, so nothing corrects it but time."""
    predictor = StepPredictor(COST, FACTS)
    for _ in range(50):
        predictor.observe(shape(1), 0.001)
    predictor.observe(shape(8), 0.8)
    assert predictor.seconds(shape(8)) < 0.008 * 1.3
    for _ in range(30):
        predictor.observe(shape(8), 0.024)
    slow = predictor.seconds(shape(8))
    assert slow > 0.020
    for _ in range(1000):
        predictor.observe(shape(1), 0.001)
    assert predictor.seconds(shape(8)) < 0.009


def test_sizes_near_each_other_may_differ() -> None:
    predictor = StepPredictor(COST, FACTS)
    for _ in range(200):
        for num_tokens, factor in ((1, 1.0), (8, 1.5), (16, 3.0)):
            predictor.observe(shape(num_tokens), 0.001 * num_tokens * factor)
    for num_tokens, factor in ((1, 1.0), (8, 1.5), (16, 3.0)):
        assert predictor.seconds(shape(num_tokens)) == pytest.approx(0.001 * num_tokens * factor, rel=0.1)
