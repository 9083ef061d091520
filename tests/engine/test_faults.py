"""Bad days: faults of one request end that request; faults of a step end its requests; the rest go on."""

from __future__ import annotations

import pytest

from ridgeline.errors import EngineDeadError, OverloadedError, RequestError
from ridgeline.request import FinishReason
from tests.engine.fake_chip import Collector, LetterStream, Ticks, expected_tokens, fake_engine, request, run_all


def test_a_row_that_is_not_finite_ends_its_request_alone_and_leaves_no_trace() -> None:
    engine, step = fake_engine(max_tokens=64)  # so that pages become findable before the fault is seen
    step.nan_tokens = {33}
    bad = request("bad", [33] * 130, max_tokens=5, n=2)
    good = request("good", [1] * 130, max_tokens=5)
    collector = run_all(engine, [bad, good])
    for index in range(2):
        assert collector.ends[("bad", index)].finish_reason is FinishReason.ERROR
        assert "not finite" in collector.ends[("bad", index)].error
    assert collector.tokens[("good", 0)] == expected_tokens(good)
    step.nan_tokens = set()
    again = request("again", [33] * 130, max_tokens=5)
    collector = run_all(engine, [again])
    assert collector.tokens[("again", 0)] == expected_tokens(again)
    assert collector.ends[("again", 0)].timing.num_cached_tokens == 0, "its pages were not to be trusted"
    assert engine.statistics().num_failed == 1


def test_a_step_that_raises_ends_its_requests_and_no_other() -> None:
    engine, step = fake_engine(max_sequences=2, max_tokens=20)
    requests = [request(f"r{i}", [i] * 10, max_tokens=4) for i in range(4)]
    step.fail_steps = {2}
    collector = run_all(engine, requests)
    failed = [key for key, end in collector.ends.items() if end.finish_reason is FinishReason.ERROR]
    assert sorted(failed) == [("r0", 0), ("r1", 0)]
    assert "injected" not in collector.ends[("r0", 0)].error, "internals are not told"
    for name in ("r2", "r3"):
        assert collector.tokens[(name, 0)] == expected_tokens(requests[int(name[1])])
    assert engine.statistics().num_free_pages == 64
    assert engine.statistics().num_failed == 2


@pytest.mark.parametrize("failing", range(1, 40))
def test_a_failure_at_any_step_leaks_nothing(failing) -> None:
    engine, step = fake_engine(num_pages=7, max_sequences=3, max_tokens=30)
    step.fail_steps = {failing}
    requests = [request(f"r{i}", [i] * (20 + 30 * i), max_tokens=9, n=1 + i % 2) for i in range(5)]
    collector = run_all(engine, requests)
    assert len(collector.ends) == 7
    for each in requests:
        for index in range(each.sampling.n):
            if collector.ends[(each.request_id, index)].finish_reason is not FinishReason.ERROR:
                assert collector.tokens[(each.request_id, index)] == expected_tokens(each, index)
    assert engine.statistics().num_free_pages == 7


def test_several_failed_steps_in_a_row_mean_that_the_chip_is_lost() -> None:
    engine, step = fake_engine(max_sequences=1, max_tokens=20)
    step.fail_steps = set(range(1, 100))
    for i in range(5):
        engine.add(request(f"r{i}", [i], max_tokens=4))
    engine.step()
    engine.step()
    with pytest.raises(EngineDeadError):
        engine.step()
    assert engine.statistics().state == "dead"
    with pytest.raises(EngineDeadError):
        engine.add(request("late", [1]))


@pytest.mark.parametrize("failing", range(1, 25))
def test_the_kth_page_cannot_be_had(failing, monkeypatch) -> None:
    engine, _ = fake_engine(num_pages=8, max_sequences=3, max_tokens=100)
    pool = engine._index._pool
    num_taken = 0
    plain_take = pool.take

    def take() -> int | None:
        nonlocal num_taken
        num_taken += 1
        return None if num_taken == failing else plain_take()

    monkeypatch.setattr(pool, "take", take, raising=False)
    requests = [request(f"r{i}", [i] * 100, max_tokens=60, temperature=1.0, seed=i) for i in range(4)]
    collector = run_all(engine, requests)
    for each in requests:
        assert collector.tokens[(each.request_id, 0)] == expected_tokens(each)
    assert engine.statistics().num_free_pages == 8


def test_a_fault_in_making_text_ends_that_request_alone(monkeypatch) -> None:
    engine, _ = fake_engine()
    plain_push = LetterStream.push

    def push(self, token_id: int) -> str:
        if self.sampling.max_tokens == 13:
            raise ValueError("secret detail 0x7f00")
        return plain_push(self, token_id)

    monkeypatch.setattr(LetterStream, "push", push)
    good = request("good", [1, 2], max_tokens=5)
    collector = run_all(engine, [request("bad", [1, 2], max_tokens=13), good])
    assert collector.ends[("bad", 0)].finish_reason is FinishReason.ERROR
    assert "secret" not in collector.ends[("bad", 0)].error
    assert collector.tokens[("good", 0)] == expected_tokens(good)


@pytest.mark.parametrize(
    ("prompt", "options", "field", "words"),
    [
        ([], {}, "prompt", "empty"),
        ([1] * 1024, {}, "prompt", "1024"),
        ([61], {}, "prompt", "0 to 60"),
        ([-1], {}, "prompt", "0 to 60"),
        ([1], {"stop_token_ids": (61,)}, "stop_token_ids", "61"),
        ([1], {"logit_bias": {100: 1.0}}, "logit_bias", "100"),
        ([1], {"allowed_token_ids": (1, 99)}, "allowed_token_ids", "99"),
        ([1], {"min_tokens": 2000, "max_tokens": 3000}, "min_tokens", "1023 fit"),
        ([1], {"logprobs": 62}, "logprobs", "61 tokens"),
        ([1], {"prompt_logprobs": 62}, "prompt_logprobs", "61 tokens"),
    ],
)
def test_impossible_requests_are_refused_with_the_fields_name(prompt, options, field, words) -> None:
    engine, _ = fake_engine()
    with pytest.raises(RequestError) as caught:
        engine.add(request("x", prompt, **options))
    assert caught.value.field == field
    assert words in str(caught.value)
    assert not engine.has_work()


def test_a_request_id_that_is_in_use_is_refused() -> None:
    engine, _ = fake_engine()
    engine.add(request("x", [1]))
    with pytest.raises(RequestError):
        engine.add(request("x", [2]))


def test_a_full_queue_refuses_and_nothing_is_left_behind() -> None:
    engine, _ = fake_engine(max_queued_requests=3)
    for i in range(3):
        engine.add(request(f"r{i}", [i], max_tokens=2))
    with pytest.raises(OverloadedError):
        engine.add(request("late", [1], max_tokens=2))
    collector = Collector()
    while engine.has_work():
        collector.take(engine.step())
    assert len(collector.ends) == 3
    engine.add(request("late", [1], max_tokens=2))


def test_output_ends_with_the_context() -> None:
    engine, _ = fake_engine(num_pages=2)
    collector = run_all(engine, [request("x", [1] * 100, max_tokens=None), request("y", [1] * 127, max_tokens=9)])
    assert len(collector.tokens[("x", 0)]) == 28
    assert collector.ends[("x", 0)].finish_reason is FinishReason.LENGTH
    assert len(collector.tokens[("y", 0)]) == 1


def test_end_of_sequence_stop_tokens_and_stop_strings() -> None:
    engine, _ = fake_engine()
    ends = {60: 40.0}
    eos = request("eos", [1], max_tokens=9, logit_bias=ends, ignore_eos=False, min_tokens=3)
    ignored = request("ignored", [1], max_tokens=4, logit_bias=ends)
    stop = request("stop", [1], max_tokens=9, logit_bias={5: 40.0}, stop_token_ids=(5,))
    string = request("string", [1], max_tokens=9, logit_bias={5: 40.0}, stop=("fff",))
    kept = request("kept", [1], max_tokens=9, logit_bias={5: 40.0}, stop=("fff",), include_stop_str_in_output=True)
    collector = run_all(engine, [eos, ignored, stop, string, kept])
    ends = {key[0]: end for key, end in collector.ends.items()}
    assert (ends["eos"].finish_reason, ends["eos"].stop_reason) == (FinishReason.STOP, None)
    assert collector.tokens[("eos", 0)][-1] == 60 and len(collector.tokens[("eos", 0)]) == 4
    assert len(collector.texts[("eos", 0)]) == 3
    assert ends["ignored"].finish_reason is FinishReason.LENGTH
    assert (ends["stop"].stop_reason, collector.tokens[("stop", 0)], collector.texts[("stop", 0)]) == (5, [5], "")
    assert (ends["string"].stop_reason, collector.tokens[("string", 0)]) == ("fff", [5, 5, 5])
    assert collector.texts[("string", 0)] == "" and collector.texts[("kept", 0)] == "fff"


def test_the_parts_of_the_time_sum_to_the_whole() -> None:
    clock = Ticks()
    engine, _ = fake_engine(num_pages=6, max_sequences=4, max_tokens=40, clock=clock)
    arrivals = {}
    collector = Collector()
    for i in range(6):
        engine.add(request(f"r{i}", [i] * 60, max_tokens=100))
        arrivals[f"r{i}"] = clock.now
    while engine.has_work():
        before = clock.now
        chunks = engine.step()
        collector.take(chunks)
        for chunk in chunks:
            if chunk.timing is None:
                continue
            timing = chunk.timing
            whole = timing.queue_seconds + timing.prefill_seconds + timing.decode_seconds + timing.stall_seconds
            assert before < arrivals[chunk.request_id] + whole <= clock.now
            assert timing.queue_seconds < timing.time_to_first_token_seconds < whole
    timings = [end.timing for end in collector.ends.values()]
    assert all(timing.prefill_seconds > 0 and timing.decode_seconds > 0 for timing in timings)
    assert any(timing.stall_seconds > 0 for timing in timings if timing.num_preemptions)
    assert timings[0].stall_seconds == 0


def test_time_of_a_request_that_never_ran_is_queue_time() -> None:
    clock = Ticks()
    engine, _ = fake_engine(max_sequences=1, clock=clock)
    engine.add(request("runs", [1], max_tokens=50))
    engine.step()
    engine.add(request("waits", [2], max_tokens=50))
    arrival = clock.now
    engine.step()
    (chunk,) = engine.cancel("waits")
    assert chunk.timing.queue_seconds == clock.now - arrival > 0
    assert chunk.timing.prefill_seconds == chunk.timing.decode_seconds == chunk.timing.stall_seconds == 0
    assert chunk.timing.time_to_first_token_seconds is None


def test_close_ends_everything_once() -> None:
    closed = []
    engine, _ = fake_engine(on_close=lambda: closed.append(True))
    engine.add(request("x", [1]))
    engine.close()
    engine.close()
    assert closed == [True] and not engine.has_work()
