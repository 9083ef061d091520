"""The real engine, scheduler and page table on the simulated chip: much traffic in seconds, and faults on purpose."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

import pytest

from ridgeline.chips.published import published_chip
from ridgeline.chips.simulated import Faults, SimulatedChip, next_token
from ridgeline.engine.client import EngineModel, EngineStatistics
from ridgeline.engine.engine import Engine
from ridgeline.engine.predict import StepPredictor
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from ridgeline.request import FinishReason, Request
from ridgeline.schedule.sequence import pages_for
from tests.engine.fake_chip import Collector, LetterText, request
from tests.ops.test_simulated import SEVEN_BILLION, opened

CONTEXT_TOKENS = 1024
NUM_PAGES = 70
"""Too few for 32 sequences at their full length."""
SPEC = replace(SEVEN_BILLION, vocabulary_size=8000)


def simulated_engine(
    *, faults: Faults | None = None, num_pages: int, chip_name: str = "h100", max_sequences: int = 32
) -> tuple[Engine, SimulatedChip]:
    chip, compiled = opened(spec=SPEC, faults=faults, num_pages=num_pages, chip_name=chip_name)
    limits = StepLimits(
        max_tokens=512,
        max_sequences=max_sequences,
        max_logit_rows=max_sequences,
        max_pages_per_sequence=pages_for(CONTEXT_TOKENS),
    )
    facts = chip.facts()
    model = EngineModel(
        name="simulated",
        family=SPEC.family,
        format_name="Q4_K",
        vocabulary_size=SPEC.vocabulary_size,
        context_tokens=CONTEXT_TOKENS,
        num_pages=num_pages,
        page_slots=PAGE_SLOTS,
        weight_bytes=0,
        kv_format="bf16",
        chip=facts.description,
    )
    engine = Engine(
        model=model,
        compiled=compiled,
        limits=limits,
        text=LetterText(),
        predictor=StepPredictor(compiled.cost, facts),
        goal_seconds_per_token=0.02,
        max_queued_requests=100_000,
        clock=chip.clock.now,
    )
    return engine, chip


@dataclass(frozen=True)
class Arrival:
    seconds: float
    request: Request
    cancel_seconds: float | None


def traffic(count: int, *, seed: int, requests_per_second: float, cancelled_share: float = 0.0) -> list[Arrival]:
    """Prompts that begin with one of eight common texts, of many lengths, at random times."""
    generator = random.Random(seed)
    common = [[generator.randrange(SPEC.vocabulary_size) for _ in range(200)] for _ in range(8)]
    arrivals, now = [], 0.0
    for number in range(count):
        now += generator.expovariate(requests_per_second)
        own = [generator.randrange(SPEC.vocabulary_size) for _ in range(generator.randrange(1, 200))]
        wanted = request(
            f"r{number}",
            generator.choice(common) + own,
            max_tokens=generator.choice([2, 8, 16, 40]),
            priority=generator.choice([0, 0, 0, -1]),
        )
        is_cancelled = generator.random() < cancelled_share
        arrivals.append(Arrival(now, wanted, now + generator.random() * 0.5 if is_cancelled else None))
    return arrivals


def drive(engine: Engine, chip: SimulatedChip, arrivals: list[Arrival]) -> tuple[Collector, EngineStatistics]:
    """Run the traffic to its end on virtual time."""
    collector = Collector()
    waiting = sorted(arrivals, key=lambda arrival: arrival.seconds, reverse=True)
    cancels = sorted(
        ((arrival.cancel_seconds, arrival.request.request_id) for arrival in arrivals if arrival.cancel_seconds),
        reverse=True,
    )
    while waiting or engine.has_work():
        while waiting and waiting[-1].seconds <= chip.clock.now():
            engine.add(waiting.pop().request)
        while cancels and cancels[-1][0] <= chip.clock.now():
            collector.take(engine.cancel(cancels.pop()[1]))
        if engine.has_work():
            collector.take(engine.step())
        elif waiting:
            chip.clock.advance_to(waiting[-1].seconds)
    engine.check_integrity()
    return collector, engine.statistics()


def expected_output(wanted: Request) -> list[int]:
    tokens = list(wanted.prompt_token_ids)
    for _ in range(wanted.sampling.max_tokens or 0):
        tokens.append(next_token(tokens, SPEC.vocabulary_size))
    return tokens[len(wanted.prompt_token_ids) :]


def test_thousands_of_requests_in_seconds_and_every_token_right() -> None:
    engine, chip = simulated_engine(num_pages=NUM_PAGES)
    arrivals = traffic(2000, seed=1, requests_per_second=800.0, cancelled_share=0.1)
    start = time.perf_counter()
    collector, statistics = drive(engine, chip, arrivals)
    real_seconds = time.perf_counter() - start
    print(
        f"{len(arrivals)} requests, {statistics.num_steps} steps: {chip.clock.now():.1f} s of an H100's time in "
        f"{real_seconds:.1f} s; {statistics.num_preemptions} preemptions, {statistics.num_cached_tokens} tokens cached"
    )
    assert len(collector.ends) == len(arrivals)
    num_cancelled = 0
    for arrival in arrivals:
        key = (arrival.request.request_id, 0)
        output = expected_output(arrival.request)
        if collector.ends[key].finish_reason is FinishReason.CANCELLED:
            num_cancelled += 1
            assert arrival.cancel_seconds is not None
            assert collector.tokens[key] == output[: len(collector.tokens[key])]
        else:
            assert collector.tokens[key] == output
    assert statistics.num_cancelled == num_cancelled > 50
    assert statistics.num_preemptions > 0, "too many pages to be a test"
    assert statistics.num_cached_tokens > 100_000
    assert statistics.num_free_pages == NUM_PAGES, "a page was leaked"
    # The simulated chip takes exactly what is predicted.
    assert statistics.predicted_step_seconds == pytest.approx(statistics.measured_step_seconds, rel=1e-6)
    assert statistics.roofline_share == pytest.approx(1.0)


def history(seed: int, fault_seed: int, chip_name: str = "h100") -> tuple[list[object], dict[str, list[int]], float]:
    faults = Faults(seed=fault_seed, error_share=0.01, slow_share=0.05, slow_factor=30.0, nan_share=0.05)
    engine, chip = simulated_engine(faults=faults, num_pages=100, chip_name=chip_name)
    collector, statistics = drive(engine, chip, traffic(500, seed=seed, requests_per_second=60.0))
    assert statistics.num_free_pages == 100, "a page was leaked"
    events = [(key, end.finish_reason, end.error, end.timing) for key, end in collector.ends.items()]
    return events, {key[0]: tokens for key, tokens in collector.tokens.items()}, chip.clock.now()


def test_the_same_seed_gives_the_same_history_to_the_last_digit() -> None:
    assert history(3, 5) == history(3, 5)
    assert history(3, 5) != history(3, 6)


@pytest.mark.parametrize("chip_name", ["h100", "l4", "ascend-910b4"])
def test_faults_end_the_requests_that_they_hit_and_change_no_token_of_others(chip_name: str) -> None:
    events, tokens, _ = history(4, 1, chip_name)
    errors = {key[0]: error for key, reason, error, _ in events if reason is FinishReason.ERROR}
    assert any("chip failed" in error for error in errors.values())
    assert any("not finite" in error for error in errors.values())
    assert len(errors) < 250
    for arrival in traffic(500, seed=4, requests_per_second=60.0):
        name, output = arrival.request.request_id, expected_output(arrival.request)
        assert tokens[name] == (output[: len(tokens[name])] if name in errors else output)


def test_slow_chips_are_slower_in_the_right_proportion() -> None:
    """Decoding alone reads the weights and the keys once a token: time goes with bandwidth."""
    seconds = {}
    for chip_name in ("h100", "l4"):
        engine, chip = simulated_engine(num_pages=64, chip_name=chip_name)
        drive(engine, chip, [Arrival(0.0, request("r", [1] * 3, max_tokens=200), None)])
        seconds[chip_name] = chip.clock.now()
    assert seconds["l4"] / seconds["h100"] == pytest.approx(3350 / 300, rel=0.02)
    bytes_per_token = published_chip("l4").facts().bandwidth_bytes_per_second * seconds["l4"] / 200
    assert 3.6e9 < bytes_per_token < 3.9e9, "6.5 billion weights of layers at 4.5 bits, and the head of 8,000 rows"
