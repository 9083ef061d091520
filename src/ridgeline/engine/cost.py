"""What steps of a model cost: the decoder itself, run once on the chip that counts."""

from __future__ import annotations

from ridgeline.chips.counting import CountingChip
from ridgeline.model.load import ModelPlan, load_plan, page_layout, step_function
from ridgeline.ops.chip import KvFormat
from ridgeline.ops.cost import StepCost
from ridgeline.ops.step import StepLimits


def step_cost(plan: ModelPlan, kv_format: KvFormat) -> StepCost:
    """The cost of any step of this model."""
    counting = CountingChip()
    limits = StepLimits(max_tokens=1, max_sequences=1, max_logit_rows=1, max_pages_per_sequence=1)
    pages = counting.allocate_pages(page_layout(plan.spec, kv_format), 1, limits)
    return counting.compile(step_function(load_plan(plan, counting)), pages, limits).cost
