"""The engine on the simulated chip: virtual time, goals that are kept, faults that stay where they happen."""

from __future__ import annotations

import pytest

from ridgeline.chips.published import published_chip
from ridgeline.chips.simulated import Faults, SimulatedChip, next_token
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.request import FinishReason, Request, SamplingParams
from tests.tiny_models import write_tiny_gguf

VOCABULARY = 304


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def opened(tiny, *, faults: Faults | None = None, **said) -> tuple[Engine, SimulatedChip]:
    chip = SimulatedChip(published_chip("h100").facts(), faults=faults)
    options = {"model": str(tiny), "cache_folder": str(tiny.parent), **said}
    return open_engine(EngineSettings(**options), chip=chip), chip


def wanted(number: int, *, prompt_tokens: int = 100, max_tokens: int = 20) -> Request:
    prompt = tuple((number * 31 + i * i) % VOCABULARY for i in range(prompt_tokens))
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id=f"r{number}", prompt_token_ids=prompt, sampling=sampling, seed=0)


def expected(request: Request, num_tokens: int) -> tuple[int, ...]:
    tokens = list(request.prompt_token_ids)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, VOCABULARY))
    return tuple(tokens[len(request.prompt_token_ids) :])


def test_time_is_the_chips_and_the_prediction_is_exact(tiny) -> None:
    engine, chip = opened(tiny)
    engine.add(wanted(0))
    chunks = []
    while engine.has_work():
        chunks += engine.step()
    timing = chunks[-1].timing
    assert timing.prefill_seconds + timing.decode_seconds == pytest.approx(chip.clock.now())
    assert timing.queue_seconds == timing.stall_seconds == 0
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == expected(wanted(0), 20)
    statistics = engine.statistics()
    assert statistics.predicted_step_seconds == pytest.approx(statistics.measured_step_seconds)
    assert statistics.roofline_share == pytest.approx(1.0)


@pytest.mark.parametrize("goal_seconds", [2e-5, 1e-4])
def test_the_goal_is_kept_while_prompts_are_read(tiny, goal_seconds) -> None:
    """Beside a decoding request no step takes longer than the goal, and prompts are still read."""
    engine, chip = opened(tiny, goal_seconds_per_token=goal_seconds)
    engine.add(wanted(0, max_tokens=400))
    engine.step()
    alone_seconds = 0.0
    for _ in range(3):
        start = chip.clock.now()
        engine.step()
        alone_seconds = chip.clock.now() - start
    for number in range(1, 40):
        engine.add(wanted(number, prompt_tokens=1500, max_tokens=2))
    longest_seconds = 0.0
    num_finished = 0
    while num_finished < 39:
        start = chip.clock.now()
        num_finished += sum(chunk.finish_reason is not None for chunk in engine.step())
        longest_seconds = max(longest_seconds, chip.clock.now() - start)
    assert longest_seconds <= max(goal_seconds, 2 * alone_seconds) * 1.01
    assert longest_seconds >= 0.9 * goal_seconds, "the goal is used, not only kept"


def test_faults_end_what_they_hit_and_nothing_else(tiny) -> None:
    engine, _ = opened(tiny, faults=Faults(seed=3, error_share=0.02, nan_share=0.02, slow_share=0.1))
    requests = {f"r{n}": wanted(n, prompt_tokens=20 + n % 70) for n in range(300)}
    tokens: dict[str, tuple[int, ...]] = dict.fromkeys(requests, ())
    ends: dict[str, FinishReason] = {}
    for request in requests.values():
        engine.add(request)
    while engine.has_work():
        for chunk in engine.step():
            assert chunk.request_id not in ends
            tokens[chunk.request_id] += chunk.token_ids
            if chunk.finish_reason is not None:
                ends[chunk.request_id] = chunk.finish_reason
        engine.check_integrity()
    assert len(ends) == 300
    num_failed = sum(reason is FinishReason.ERROR for reason in ends.values())
    assert 0 < num_failed < 250
    for name, request in requests.items():
        assert tokens[name] == expected(request, len(tokens[name]))
        assert (len(tokens[name]) == 20) == (ends[name] is FinishReason.LENGTH)
    statistics = engine.statistics()
    assert statistics.num_free_pages == statistics.num_pages
    assert statistics.num_failed == num_failed
