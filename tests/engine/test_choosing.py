"""Tokens are the same whether the chip chooses them in its step or the host does from the logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ridgeline.engine.engine import Engine
from ridgeline.engine.runner import Runner
from ridgeline.ops.chip import ChoosingStep, CompiledStep, HostStep
from ridgeline.ops.choice import NO_TOKEN
from ridgeline.request import Request, SamplingParams
from tests.engine.fake_chip import Collector
from tests.engine.test_real_chips import BASE, NEEDS_CPU, Case, opened

OPTIONS: list[dict] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 0.9, "top_p": 0.8, "prompt_logprobs": 2},
    {"temperature": 1.0, "min_p": 0.05, "top_p": 0.95, "top_k": 200},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "frequency_penalty": 0.7, "presence_penalty": 0.2, "logit_bias": {5: 3.0}},
    {"temperature": 1.0, "allowed_token_ids": (9, 3, 200), "min_tokens": 3, "stop_token_ids": (9,)},
]


class NotChoosing:
    """A compiled step that hides that it could choose. Holds: the step."""

    def __init__(self, compiled: CompiledStep) -> None:
        self._compiled = compiled

    def run(self, step: HostStep):
        return self._compiled.run(step)

    def seconds(self) -> float:
        return self._compiled.seconds()


class Watched(NotChoosing):
    """Counts what the chip chose. Holds: the counts."""

    def __init__(self, compiled: CompiledStep) -> None:
        super().__init__(compiled)
        self.num_chosen = 0

    def run_and_choose(self, step, choices_B, adjustments):
        assert isinstance(self._compiled, ChoosingStep)
        logits_BV, tokens_B = self._compiled.run_and_choose(step, choices_B, adjustments)
        self.num_chosen += sum(token != NO_TOKEN for token in tokens_B)
        return logits_BV, tokens_B


def answers(engine: Engine) -> dict[tuple[str, int], list[int]]:
    collector = Collector()
    for number, options in enumerate(OPTIONS):
        sampling = SamplingParams(max_tokens=30, ignore_eos=True, **options)
        prompt = BASE[: 20 + 40 * (number % 3)]
        engine.add(Request(request_id=str(number), prompt_token_ids=prompt, sampling=sampling, seed=number))
    while engine.has_work():
        collector.take(engine.step())
    return collector.tokens


@NEEDS_CPU
@pytest.mark.parametrize("num_threads", [1, 2])
def test_whoever_chooses(tmp_path: Path, num_threads: int) -> None:
    engine = opened(tmp_path, Case("cpu", num_threads, "bf16"), spare_rows=400)
    limits = engine._runner._limits
    watched = Watched(engine._runner._compiled)
    engine._runner = Runner(watched, limits)
    by_chip = answers(engine)
    num_tokens = sum(len(tokens) for tokens in by_chip.values())
    assert watched.num_chosen == num_tokens > 200, "every token was the chip's"
    engine.forget_prefixes()
    engine._runner = Runner(NotChoosing(watched), limits)
    assert answers(engine) == by_chip
    engine.close()
