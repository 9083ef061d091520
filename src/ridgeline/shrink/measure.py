"""What a smaller file costs and brings, measured: quality over a text, bytes, predicted and measured speed.

Knows: the chip contract, models. Does not know: how the smaller file was made, where texts come from.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ridgeline.engine.cost import step_cost
from ridgeline.errors import UserError
from ridgeline.model.load import ModelPlan, load_plan, plan_model
from ridgeline.model.tensors import EMBEDDING
from ridgeline.model.trial import Logits, Trial
from ridgeline.ops.chip import AnyChip
from ridgeline.ops.step import SpanShape, StepShape
from ridgeline.quant.formats import BY_NAME
from ridgeline.shrink.distance import Summary, distances, joined
from ridgeline.weights.checkpoint import Checkpoint

WINDOW_TOKENS = 320
"""Tokens that are fed as one fresh context."""
MIN_TEXT_TOKENS = 64
"""Fewer positions say nothing about a distribution."""
PREFILL_TOKENS = 512
DECODE_CONTEXT_TOKENS = 128
DECODE_STEPS = 48
SPEED_ROUNDS = 3

Progress = Callable[[], None]
"""Told each time a piece of work is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second of one stream."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of one of the two files."""

    weight_bytes: int
    touched_bytes: int
    """Weights that a step of one token reads."""
    predicted: Speed
    """At the chip's measured roofline."""
    measured: Speed


def windows_of(token_ids: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The text in windows of so many tokens; what is left at the end is left out if it is short."""
    windows = [list(token_ids[start : start + max_tokens]) for start in range(0, len(token_ids), max_tokens)]
    if len(windows) > 1 and len(windows[-1]) < MIN_TEXT_TOKENS:
        windows.pop()
    return windows


def check_text(token_ids: Sequence[int], what: str) -> None:
    """UserError where a text is too short to measure anything by it."""
    if len(token_ids) < MIN_TEXT_TOKENS:
        raise UserError(
            f"{what} has {len(token_ids)} tokens; at least {MIN_TEXT_TOKENS} are needed to measure anything by it",
            hint="give a longer text; several thousand tokens make figures that can be trusted",
            field="text",
        )


def touched_bytes(plan: ModelPlan) -> int:
    """Bytes of weights that a step of one token reads: all, but of an embedding that is only looked up one row."""
    total = plan.weight_bytes
    if not plan.spec.is_output_tied:
        table = plan.sources[EMBEDDING]
        total -= (table.shape[0] - 1) * BY_NAME[table.format_name].row_bytes(table.shape[1])
    return total


class Measured:
    """A model on a chip, to be asked and timed. Holds: the model, adopted; pages for one sequence."""

    def __init__(self, checkpoint: Checkpoint, chip: AnyChip) -> None:
        self._plan = plan_model(checkpoint)
        self._facts = chip.facts()
        self._max_tokens = min(PREFILL_TOKENS, self._plan.spec.context_tokens)
        self._trial = Trial(chip, load_plan(self._plan, chip), max_tokens=self._max_tokens, kv_format="bf16")

    def logits(self, window: Sequence[int]) -> Logits:
        """Logits of every token of a fresh context."""
        self._trial.forget(0)
        return self._trial.feed({0: window})[0]

    def prefill_seconds(self, token_ids: Sequence[int]) -> float:
        """Of one prompt, by the chip's clock."""
        self._trial.forget(0)
        self._trial.feed({0: token_ids}, last_only=True)
        return self._trial.seconds()

    def decode_seconds(self, token_ids: Sequence[int], num_steps: int) -> float:
        """Of a token after the prompt, by the chip's clock: the median step."""
        self.prefill_seconds(token_ids)
        seconds = []
        for number in range(num_steps):
            self._trial.feed({0: [token_ids[number % len(token_ids)]]}, last_only=True)
            seconds.append(self._trial.seconds())
        return statistics.median(seconds)

    def predicted(self, prefill_tokens: int, context_tokens: int) -> Speed:
        """Speed at the roofline."""
        cost = step_cost(self._plan, "bf16")
        prefill = StepShape(
            spans=(SpanShape(num_tokens=prefill_tokens, context_tokens=prefill_tokens),), num_logit_rows=1
        )
        decode = StepShape(spans=(SpanShape(num_tokens=1, context_tokens=context_tokens),), num_logit_rows=1)
        return Speed(
            prefill=prefill_tokens / cost.seconds(prefill, self._facts), decode=1 / cost.seconds(decode, self._facts)
        )

    def facts(self, measured: Speed, prefill_tokens: int, context_tokens: int) -> Facts:
        """Everything that a report says of the file."""
        return Facts(
            weight_bytes=self._plan.weight_bytes,
            touched_bytes=touched_bytes(self._plan),
            predicted=self.predicted(prefill_tokens, context_tokens),
            measured=measured,
        )

    @property
    def max_tokens(self) -> int:
        """The longest context that can be asked."""
        return self._max_tokens


def quality(source: Measured, result: Measured, windows: Sequence[list[int]], on_progress: Progress) -> Summary:
    """The distance of the result's answers from the source's over these windows."""
    found = []
    for window in windows:
        found.append(distances(source.logits(window), result.logits(window), window))
        on_progress()
    return joined(found).summary()


def speeds(models: Sequence[Measured], token_ids: Sequence[int], on_progress: Progress) -> list[Facts]:
    """Predicted and measured speed of each model, in turns, so that a slow moment of the machine spoils no single one.

    The tokens do not matter, but for their number: they are repeated as often as is needed.
    """
    longest = min(model.max_tokens for model in models)
    prompt = (list(token_ids) * (longest // len(token_ids) + 1))[:longest]
    num_context = min(DECODE_CONTEXT_TOKENS, longest // 2)
    num_steps = min(DECODE_STEPS, longest - num_context)
    prefill: list[list[float]] = [[] for _ in models]
    decode: list[list[float]] = [[] for _ in models]
    for _ in range(SPEED_ROUNDS):
        for number, model in enumerate(models):
            prefill[number].append(model.prefill_seconds(prompt))
            decode[number].append(model.decode_seconds(prompt[:num_context], num_steps))
            on_progress()
    return [
        model.facts(
            Speed(prefill=longest / statistics.median(prefill[number]), decode=1 / statistics.median(decode[number])),
            longest,
            num_context,
        )
        for number, model in enumerate(models)
    ]
