"""The scheduler on its own: order, step size, sharing, preemption, bounds. No arrays, no chip."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.cache.prefix import PrefixIndex
from ridgeline.errors import OverloadedError
from ridgeline.ops.step import PAGE_SLOTS, StepLimits, StepShape
from ridgeline.schedule.batch import Batch
from ridgeline.schedule.scheduler import ADMISSIONS_PER_PROMOTION, Scheduler
from ridgeline.schedule.sequence import Sequence


def limits(max_tokens: int = 256, max_sequences: int = 8, max_logit_rows: int = 8) -> StepLimits:
    return StepLimits(
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        max_logit_rows=max_logit_rows,
        max_pages_per_sequence=100,
    )


def sequence(number: int, prompt: list[int] | int, *, priority: int = 0, salt: str = "", **more) -> Sequence:
    tokens = list(prompt) if isinstance(prompt, list) else [number * 1000 + i for i in range(prompt)]
    return Sequence(
        sequence_id=number,
        token_ids=tokens,
        num_prompt_tokens=len(tokens),
        arrival=number,
        priority=priority,
        salt=salt,
        **more,
    )


def scheduler(num_pages: int = 100, step_limits: StepLimits | None = None, **options) -> Scheduler:
    return Scheduler(PrefixIndex(num_pages), step_limits or limits(), **options)


def step(made: Scheduler, token: int = 7) -> Batch:
    """Run one step in which every finished prompt gets `token`."""
    batch = made.next_batch()
    assert batch is not None
    lengths = {each.sequence_id: len(each.token_ids) for each in made._sequences.values()}
    made.accept(batch, {e.sequence_id: [token] for e in batch.entries if e.end == lengths[e.sequence_id]}, 0.01)
    made.check_integrity()
    return batch


def parts(batch: Batch) -> list[tuple[int, int, int]]:
    return [(entry.sequence_id, entry.start, entry.end) for entry in batch.entries]


def test_a_long_prompt_is_cut_and_a_decoding_sequence_runs_beside_it() -> None:
    made = scheduler()
    made.add([sequence(0, 10)])
    assert parts(step(made)) == [(0, 0, 10)]
    made.add([sequence(1, 600)])
    assert parts(step(made)) == [(0, 10, 11), (1, 0, 255)]
    batch = step(made)
    assert parts(batch) == [(0, 11, 12), (1, 255, 510)]
    assert [entry.num_logit_rows for entry in batch.entries] == [1, 0]
    batch = step(made)
    assert parts(batch) == [(0, 12, 13), (1, 510, 600)]
    assert [entry.num_logit_rows for entry in batch.entries] == [1, 1]


def test_priority_first_then_arrival() -> None:
    made = scheduler(step_limits=limits(max_tokens=10, max_sequences=8))
    made.add([sequence(0, 20, priority=1)])
    made.add([sequence(1, 20, priority=0)])
    made.add([sequence(2, 20, priority=0)])
    order = []
    for _ in range(9):
        for number, start, end in parts(step(made)):
            if end - start > 1 and number not in order:
                order.append(number)
    assert order == [1, 2, 0]


def test_an_urgent_sequence_takes_the_place_of_a_less_urgent_one() -> None:
    made = scheduler(step_limits=limits(max_sequences=1))
    made.add([sequence(0, 10, priority=5)])
    step(made)
    made.add([sequence(1, 10, priority=0)])
    assert parts(step(made)) == [(1, 0, 10)]
    assert made.num_preemptions == 1
    made.remove(1)
    assert parts(step(made)) == [(0, 0, 11)], "all its tokens again, output too"


def test_a_low_priority_is_not_starved() -> None:
    made = scheduler(step_limits=limits(max_sequences=1))
    made.add([sequence(0, 10, priority=9)])
    made.add([sequence(1, 10)])
    for number in range(2, 3 * ADMISSIONS_PER_PROMOTION):
        made.add([sequence(number, 10)])
        entries = parts(step(made))
        if entries[0][0] == 0:
            return
        made.remove(entries[0][0])
    pytest.fail("the low priority never ran")


def test_the_youngest_of_the_lowest_priority_is_preempted_and_comes_back() -> None:
    made = scheduler(num_pages=4, step_limits=limits(max_sequences=4))
    made.add([sequence(0, 60)])
    step(made)
    made.add([sequence(1, 60)])
    step(made)
    preempted_at = None
    for number in range(200):
        batch = step(made)
        if made.num_preemptions and preempted_at is None:
            preempted_at = number
            assert [entry.sequence_id for entry in batch.entries] == [0]
        if made._sequences[0].num_computed > 3 * PAGE_SLOTS:
            break
    assert preempted_at is not None
    length = len(made._sequences[1].token_ids)
    assert length > 60, "its output is kept"
    made.remove(0)
    assert sum(entry.end - entry.start for entry in step(made).entries) <= length
    assert len(made._sequences[1].token_ids) == length + 1


def test_pages_that_running_sequences_will_soon_need_are_not_given_away() -> None:
    made = scheduler(num_pages=3)
    made.add([sequence(0, 120)])
    step(made)
    made.add([sequence(1, 10)])
    for _ in range(20):
        step(made)
    assert made._sequences[1].place is None and made.num_preemptions == 0
    made.remove(0)
    assert parts(step(made)) == [(1, 0, 10)]


def test_sequences_that_arrive_together_prefill_their_common_prefix_once() -> None:
    made = scheduler(step_limits=limits(max_tokens=100))
    common = list(range(4 * PAGE_SLOTS))
    for number in range(4):
        made.add([sequence(number, [*common, 1000 + number])])
    num_tokens = 0
    while any(each.num_computed < each.num_prompt_tokens for each in made._sequences.values()):
        num_tokens += step(made).num_tokens
    num_decoded = sum(len(each.token_ids) - each.num_prompt_tokens - 1 for each in made._sequences.values())
    assert num_tokens - num_decoded == len(common) + 4
    assert [each.num_cached_tokens for each in made._sequences.values()] == [0, 256, 256, 256]


def test_a_waiting_follower_does_not_hold_up_others() -> None:
    made = scheduler(step_limits=limits(max_tokens=100))
    common = list(range(3 * PAGE_SLOTS))
    made.add([sequence(0, [*common, 1])])
    made.add([sequence(1, [*common, 2])])
    made.add([sequence(2, 10)])
    assert parts(step(made)) == [(0, 0, 100)]
    assert parts(step(made)) == [(0, 100, 193), (2, 0, 7)]


def test_followers_go_on_alone_when_their_leader_is_cancelled() -> None:
    made = scheduler(step_limits=limits(max_tokens=64))
    common = list(range(3 * PAGE_SLOTS))
    made.add([sequence(0, [*common, 1])])
    made.add([sequence(1, [*common, 2])])
    step(made)
    made.remove(0)
    made.check_integrity()
    assert parts(step(made)) == [(1, 64, 128)]


def test_an_urgent_follower_does_not_wait_for_a_less_urgent_leader() -> None:
    made = scheduler(step_limits=limits(max_tokens=64))
    common = list(range(3 * PAGE_SLOTS))
    made.add([sequence(0, [*common, 1], priority=3)])
    step(made)
    made.add([sequence(1, [*common, 2], priority=0)])
    assert parts(step(made))[0] == (1, 64, 128)


def test_another_salt_shares_nothing() -> None:
    made = scheduler()
    tokens = list(range(130))
    for number, salt in enumerate(("", "", "b")):
        made.add([sequence(number, tokens, salt=salt)])
        step(made)
        step(made)
    assert [made._sequences[number].num_cached_tokens for number in range(3)] == [0, 128, 0]


def test_the_last_prompt_token_is_always_run() -> None:
    made = scheduler()
    for number in range(2):
        made.add([sequence(number, list(range(128)))])
        batch = step(made)
    assert parts(batch) == [(0, 128, 129), (1, 64, 128)]


def test_rows_of_a_prompt_are_cut_to_the_limit_and_not_taken_from_the_cache() -> None:
    made = scheduler(step_limits=limits(max_logit_rows=50))
    made.add([sequence(0, list(range(130)))])
    step(made)
    made.remove(0)
    made.add([sequence(1, list(range(130)), rows_from=0)])
    seen = []
    while made._sequences[1].num_computed < 130:
        seen += [(e.start, e.end, e.num_logit_rows) for e in step(made).entries]
    assert seen == [(0, 50, 50), (50, 100, 50), (100, 130, 30)]


def test_a_bounded_queue_refuses_with_a_time_to_come_back() -> None:
    made = scheduler(step_limits=limits(max_sequences=1), max_queued_sequences=2, max_queued_tokens=1000)
    made.add([sequence(0, 10)])
    step(made)
    made.add([sequence(1, 10)])
    made.add([sequence(2, 10)])
    with pytest.raises(OverloadedError) as caught:
        made.add([sequence(3, 10)])
    assert 1 <= caught.value.retry_after_seconds <= 60
    made.remove(2)
    with pytest.raises(OverloadedError, match="prompt tokens"):
        made.add([sequence(4, 995)])
    with pytest.raises(OverloadedError):
        made.add([sequence(5, 10), sequence(6, 10)])
    assert made.num_waiting == 1
    made.check_integrity()
    made.remove(1)
    made.add([sequence(7, 2000)])  # an empty queue takes any single request: it would never fit otherwise


def test_preempted_sequences_return_to_a_full_queue() -> None:
    made = scheduler(step_limits=limits(max_sequences=1), max_queued_sequences=1)
    made.add([sequence(0, 10, priority=1)])
    step(made)
    made.add([sequence(1, 10, priority=0)])
    step(made)
    assert made.num_waiting == 1 and made.num_running == 1


def linear_cost(shape: StepShape) -> float:
    return 0.010 + 0.001 * shape.num_tokens


def test_a_chunk_beside_decoding_sequences_stays_within_the_goal() -> None:
    made = scheduler(predict=linear_cost, goal_seconds=0.1)
    made.add([sequence(0, 300)])
    assert step(made).num_tokens == 256, "nobody waits for a token: as much as fits"
    step(made)
    made.add([sequence(1, 600)])
    batch = step(made)
    assert batch.num_tokens == 90, "0.01 + 0.001 * 90 = 0.1"


def test_a_goal_that_cannot_be_had_still_lets_prompts_through() -> None:
    made = scheduler(predict=linear_cost, goal_seconds=1e-9)
    made.add([sequence(0, 10)])
    step(made)
    made.add([sequence(1, 100)])
    assert parts(step(made)) == [(0, 10, 11), (1, 0, 16)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 200), st.integers(0, 2), st.integers(1, 90), st.booleans()), min_size=1, max_size=12
    ),
    st.integers(5, 12),
    st.integers(9, 100),
)
def test_every_sequence_comes_to_its_end(requests, num_pages, max_tokens) -> None:
    made = scheduler(num_pages=num_pages, step_limits=limits(max_tokens=max_tokens, max_sequences=4))
    prompts = {}
    for number, (length, priority, output, is_shared) in enumerate(requests):
        tokens = list(range(length)) if is_shared else None
        made.add([sequence(number, tokens or length, priority=priority)])
        prompts[number] = length + min(output, num_pages * PAGE_SLOTS - length)
    num_steps = 0
    while made._sequences:
        step(made)
        num_steps += 1
        assert num_steps < 20_000, "no progress"
        for each in list(made._sequences.values()):
            if len(each.token_ids) >= prompts[each.sequence_id]:
                made.remove(each.sequence_id)
        made.check_integrity()
    assert made.num_available_pages == num_pages
