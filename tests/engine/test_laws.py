"""What holds after any history: nothing leaks, everyone ends once, and nobody changes anybody's tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.engine import Engine
from ridgeline.request import FinishReason, Request
from tests.engine.fake_chip import Collector, expected_tokens, fake_engine, request, run_all

SAMPLING = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.02},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    {"temperature": 1.0, "allowed_token_ids": tuple(range(0, 60, 3))},
    {"temperature": 1.0, "stop": ("abc", "q"), "ignore_eos": False},
    {"temperature": 1.0, "logit_bias": {3: 4.0}, "bad_words": ("d", "ef"), "min_tokens": 1, "stop_token_ids": (9, 4)},
    {"temperature": 1.2, "n": 3},
]

one_request = st.fixed_dictionaries(
    {
        "shared": st.integers(0, 200),
        "own": st.integers(1, 70),
        "max_tokens": st.integers(1, 90),
        "sampling": st.integers(0, len(SAMPLING) - 1),
        "priority": st.integers(0, 2),
        "seed": st.integers(0, 2**64 - 1),
        "arrives": st.integers(0, 40),
        "cancelled": st.one_of(st.none(), st.none(), st.integers(0, 60)),
    }
)


def made(number: int, spec: dict) -> Request:
    rng = random.Random(spec["seed"])
    prompt = [token % 59 for token in range(spec["shared"])] + [rng.randrange(59) for _ in range(spec["own"])]
    options = SAMPLING[spec["sampling"]]
    return request(
        f"r{number}", prompt, priority=spec["priority"], max_tokens=spec["max_tokens"], seed=spec["seed"], **options
    )


def run_history(engine: Engine, requests: Sequence[Request], specs: Sequence[dict]) -> Collector:
    """Add and cancel the requests at the steps that their specs name, and run until nothing is left."""
    collector = Collector()
    for now in range(100_000):
        for each, spec in zip(requests, specs, strict=True):
            if spec["arrives"] == now:
                engine.add(each)
            if spec["cancelled"] == now:
                collector.take(engine.cancel(each.request_id))
                engine.check_integrity()
        if now > 60 and not engine.has_work():
            break
        collector.take(engine.step())
        engine.check_integrity()
    return collector


@settings(max_examples=120, deadline=None)
@given(
    specs=st.lists(one_request, min_size=1, max_size=10),
    num_pages=st.integers(5, 20),
    max_tokens=st.integers(5, 200),
    max_sequences=st.integers(1, 4),
)
def test_any_history(specs, num_pages, max_tokens, max_sequences) -> None:
    engine, _ = fake_engine(
        num_pages=num_pages, max_tokens=max_tokens, max_sequences=max_sequences, max_logit_rows=max_sequences
    )
    requests = [made(number, spec) for number, spec in enumerate(specs)]
    collector = run_history(engine, requests, specs)
    context = engine.model.context_tokens
    for each, spec in zip(requests, specs, strict=True):
        for index in range(each.sampling.n):
            key = (each.request_id, index)
            reference = expected_tokens(each, index, context)
            assert key in collector.ends, "no terminal state"
            if collector.ends[key].finish_reason is FinishReason.CANCELLED:
                assert spec["cancelled"] is not None
                assert collector.tokens[key] == reference[: len(collector.tokens[key])]
            else:
                assert collector.tokens[key] == reference
    statistics = engine.statistics()
    assert (statistics.num_running, statistics.num_waiting) == (0, 0)
    assert statistics.num_free_pages == num_pages, "a page leaked"
    assert statistics.num_finished + statistics.num_cancelled == len(requests)


def test_preemption_happens_and_changes_nothing() -> None:
    """The property test above may be spared of it; this history is not."""
    engine, _ = fake_engine(num_pages=6, max_sequences=4)
    requests = [request(f"r{i}", [i] * 50, max_tokens=150, temperature=1.0, seed=i) for i in range(4)]
    collector = run_all(engine, requests)
    assert engine.statistics().num_preemptions >= 2
    for each in requests:
        assert collector.tokens[(each.request_id, 0)] == expected_tokens(each)
        assert collector.ends[(each.request_id, 0)].timing.num_preemptions >= 0
    assert sum(end.timing.num_preemptions for end in collector.ends.values()) == engine.statistics().num_preemptions


def test_prompt_and_sample_logprobs_have_the_same_bits_in_any_company() -> None:
    base = [token % 59 for token in range(150)]
    wanted = request("x", [*base, 7, 8], max_tokens=30, temperature=0.9, seed=5, logprobs=4, prompt_logprobs=2)

    def chunks_of(engine, others) -> tuple:
        for each in others:
            engine.add(each)
        for _ in range(3 if others else 0):
            engine.step()
        engine.add(wanted)
        taken = []
        while engine.has_work():
            taken += [chunk for chunk in engine.step() if chunk.request_id == "x"]
            engine.check_integrity()
        return tuple(p for c in taken for p in c.logprobs), next(c.prompt_logprobs for c in taken)

    alone = chunks_of(fake_engine()[0], [])
    others = [request(f"o{i}", [*base, i], max_tokens=60, temperature=1.0, seed=i) for i in range(5)]
    assert chunks_of(fake_engine(max_tokens=40, num_pages=10, max_logit_rows=8)[0], others) == alone
    warm, step = fake_engine()
    run_all(warm, [request("w", [*base, 7, 8], max_tokens=1)])
    before = step.num_tokens
    assert chunks_of(warm, []) == alone
    assert step.num_tokens - before == 152 + 29, "the prompt was read again: its logits are not in the cache"
    assert len(alone[0]) == 30 and len(alone[1]) == 152
    assert alone[1][0] is None and all(len(each.top) == 2 for each in alone[1][1:])


def test_samples_share_the_prompt_and_differ_by_seed() -> None:
    engine, step = fake_engine()
    several = request("n", list(range(50)) * 3, max_tokens=9, temperature=1.0, seed=3, n=4)
    collector = run_all(engine, [several])
    for index in range(4):
        single = request(f"s{index}", list(range(50)) * 3, max_tokens=9, temperature=1.0, seed=3 + index)
        assert collector.tokens[("n", index)] == expected_tokens(single)
    assert len({tuple(tokens) for tokens in collector.tokens.values()}) == 4
    assert step.num_tokens == 150 + 3 * (150 - 128) + 4 * 8


def test_all_interleavings_of_small_histories() -> None:
    """Every order of {add a, add b, cancel a, cancel b, step} up to seven calls, each then run to its end."""
    prompt = [token % 59 for token in range(70)]
    a = request("a", [*prompt, 1], max_tokens=3)
    b = request("b", [*prompt, 2], max_tokens=2, temperature=1.0, seed=1)
    wanted = {"a": expected_tokens(a), "b": expected_tokens(b)}
    num_histories = 0
    for calls in product(("add a", "add b", "cancel a", "cancel b", "step"), repeat=6):
        if any(calls.count(call) > 1 for call in calls if call != "step"):
            continue
        num_histories += 1
        engine, _ = fake_engine(num_pages=3, max_tokens=50, max_sequences=2, max_logit_rows=2)
        collector = Collector()
        for call in calls:
            verb, _, name = call.partition(" ")
            if verb == "add":
                engine.add({"a": a, "b": b}[name])
            elif verb == "cancel":
                collector.take(engine.cancel(name))
            else:
                collector.take(engine.step())
            engine.check_integrity()
        while engine.has_work():
            collector.take(engine.step())
        for name in ("a", "b"):
            if f"add {name}" not in calls:
                continue
            end = collector.ends[(name, 0)]
            tokens = collector.tokens[(name, 0)]
            if end.finish_reason is FinishReason.CANCELLED:
                assert tokens == wanted[name][: len(tokens)]
            else:
                assert tokens == wanted[name], calls
        assert engine.statistics().num_free_pages == 3
    assert num_histories > 1000


def test_cancel_at_any_step_frees_all() -> None:
    for moment in range(45):
        engine, _ = fake_engine(num_pages=8, max_tokens=30, max_sequences=3)
        engine.add(request("a", list(range(40)) * 4, max_tokens=40))
        for _ in range(moment):
            engine.step()
        engine.cancel("a")
        assert engine.statistics().num_free_pages == 8
        engine.check_integrity()
        assert not engine.has_work() and engine.step() == []


def test_a_thousand_requests_with_a_tenth_cancelled() -> None:
    rng = random.Random(11)
    engine, _ = fake_engine(num_pages=40, max_sequences=16, max_tokens=300)
    requests = [
        request(
            f"r{i}",
            [token % 59 for token in range(rng.randrange(150))] + [rng.randrange(59) for _ in range(1 + i % 30)],
            max_tokens=rng.randrange(1, 24),
            temperature=i % 2,
            seed=i,
            priority=i % 3,
        )
        for i in range(1000)
    ]
    for each in requests:
        engine.add(each)
    doomed = rng.sample(range(1000), 100)
    collector = Collector()
    while engine.has_work():
        collector.take(engine.step())
        if doomed and rng.random() < 0.3:
            collector.take(engine.cancel(f"r{doomed.pop()}"))
    engine.check_integrity()
    assert len(collector.ends) == 1000
    num_checked = 0
    for each in requests:
        end = collector.ends[(each.request_id, 0)]
        if end.finish_reason is not FinishReason.CANCELLED:
            assert collector.tokens[(each.request_id, 0)] == expected_tokens(each)
            num_checked += 1
    assert num_checked >= 900
    assert engine.statistics().num_free_pages == 40


@pytest.mark.parametrize("order", ["together", "one by one"])
def test_a_prefix_hit_is_counted_and_saves_work(order) -> None:
    engine, step = fake_engine()
    prompts = [list(range(59)) * 4 + [i] for i in range(3)]
    requests = [request(f"r{i}", prompt, max_tokens=1) for i, prompt in enumerate(prompts)]
    if order == "together":
        collector = run_all(engine, requests)
        ends = collector.ends
    else:
        ends = {}
        for each in requests:
            ends |= run_all(engine, [each]).ends
    assert [ends[(f"r{i}", 0)].timing.num_cached_tokens for i in range(3)] == [0, 192, 192]
    assert step.num_tokens == 237 + 2 * (237 - 192)
    assert engine.statistics().num_cached_tokens == 384
