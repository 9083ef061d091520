"""Drafts change how fast tokens come, never which: right, wrong and hostile guesses, in any history."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.request import FinishReason, Request
from ridgeline.speculate.drafter import Draft
from tests.engine.fake_chip import VOCABULARY, expected_tokens, fake_engine, request, run_all
from tests.engine.test_laws import made, one_request, run_history

CONTEXT_TOKENS = 1024


def truth_of(truths: Sequence[Sequence[int]], token_ids: Sequence[int]) -> Sequence[int]:
    """The whole text that begins with these tokens, if one does."""
    return next((each for each in truths if list(each[: len(token_ids)]) == list(token_ids)), ())


class KnowingDrafter:
    """Knows how the sample goes on, and guesses that for a random while, then wrongly."""

    def __init__(self, truths: Sequence[Sequence[int]], token_ids: Sequence[int], rng: random.Random) -> None:
        self.truths = truths
        self.token_ids = token_ids
        self.rng = rng

    def propose(self, max_tokens: int) -> Draft:
        num_known = len(self.token_ids)
        truth = truth_of(self.truths, self.token_ids)
        num_right = self.rng.choice((0, 0, 1, 2, 5, 40, 40))
        num_wrong = self.rng.choice((0, 0, 1, 3, 40))
        guesses = list(truth[num_known : num_known + num_right])
        for _ in range(num_wrong):
            ahead = num_known + len(guesses)
            right = truth[ahead] if ahead < len(truth) else 0
            guesses.append((right + self.rng.randrange(1, VOCABULARY)) % VOCABULARY)
        guesses = guesses[:max_tokens]
        return Draft(token_ids=tuple(guesses), chances=(0.9,) * len(guesses))


class Drafts:
    """Gives each sample the drafter that `make` makes of its request and tokens."""

    def __init__(self, make) -> None:
        self.make = make
        self.ended: list[tuple[str, list[int]]] = []

    def drafters(self, request: Request, token_ids: Sequence[int]) -> Sequence[object]:
        return (self.make(request, token_ids),)

    def note_end(self, request: Request, token_ids: Sequence[int]) -> None:
        self.ended.append((request.request_id, list(token_ids)))

    def forget(self) -> None:
        self.ended.clear()


def knowing(seed: int, context_tokens: int = CONTEXT_TOKENS) -> Drafts:
    rng = random.Random(seed)

    def make(asked: Request, token_ids: Sequence[int]) -> KnowingDrafter:
        prompt = list(asked.prompt_token_ids)
        truths = [[*prompt, *expected_tokens(asked, index, context_tokens)] for index in range(asked.sampling.n)]
        return KnowingDrafter(truths, token_ids, rng)

    return Drafts(make)


@settings(max_examples=120, deadline=None)
@given(
    specs=st.lists(one_request, min_size=1, max_size=8),
    num_pages=st.integers(5, 20),
    max_tokens=st.integers(5, 200),
    max_sequences=st.integers(1, 4),
    spare_rows=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_any_history_with_any_guesses(specs, num_pages, max_tokens, max_sequences, spare_rows, seed) -> None:
    context_tokens = min(CONTEXT_TOKENS, num_pages * 64)
    engine, _ = fake_engine(
        num_pages=num_pages,
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        max_logit_rows=max_sequences + spare_rows,
        drafting=knowing(seed, context_tokens),
    )
    requests = [made(number, spec) for number, spec in enumerate(specs)]
    collector = run_history(engine, requests, specs)
    for each, spec in zip(requests, specs, strict=True):
        for index in range(each.sampling.n):
            key = (each.request_id, index)
            reference = expected_tokens(each, index, context_tokens)
            if collector.ends[key].finish_reason is FinishReason.CANCELLED:
                assert spec["cancelled"] is not None
                assert collector.tokens[key] == reference[: len(collector.tokens[key])]
            else:
                assert collector.tokens[key] == reference
                timing = collector.ends[key].timing
                assert timing.num_accepted_tokens <= min(timing.num_drafted_tokens, max(0, len(reference) - 1))
    statistics = engine.statistics()
    assert (statistics.num_running, statistics.num_waiting) == (0, 0)
    assert statistics.num_free_pages == num_pages, "a page leaked"


def chunks_of(engine, asked: Request) -> list:
    engine.add(asked)
    taken = []
    while engine.has_work():
        taken += engine.step()
        engine.check_integrity()
    return taken


OPTIONS = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.9, "top_k": 7, "top_p": 0.95, "seed": 8},
    {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    {"temperature": 1.0, "seed": 1, "bad_words": ("d", "ef"), "logit_bias": {3: 4.0}, "min_tokens": 30},
    {"temperature": 1.0, "seed": 2, "ignore_eos": False, "stop": ("abc", "q", "xy"), "min_tokens": 5},
    {"temperature": 1.0, "seed": 2, "stop": ("q",), "include_stop_str_in_output": True},
    {"temperature": 1.0, "seed": 4, "stop_token_ids": (9, 4), "min_tokens": 9},
    {"temperature": 1.0, "seed": 5, "allowed_token_ids": tuple(range(0, 60, 3))},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[str(number) for number in range(len(OPTIONS))])
def test_every_chunk_is_the_same_but_for_its_timing(options) -> None:
    """Text, tokens, log-probabilities, reasons: with drafts, several chunks of a step are those of several steps."""
    asked = request("x", [token % 59 for token in range(120)], max_tokens=90, logprobs=3, prompt_logprobs=1, **options)

    def told(engine) -> list[tuple]:
        return [
            (c.text, c.token_ids, c.logprobs, c.prompt_logprobs, c.finish_reason, c.stop_reason)
            for c in chunks_of(engine, asked)
        ]

    plain = told(fake_engine()[0])
    for seed in range(5):
        assert told(fake_engine(max_logit_rows=50, drafting=knowing(seed))[0]) == plain


def test_right_guesses_save_steps_and_are_counted() -> None:
    class All(KnowingDrafter):
        def propose(self, max_tokens: int) -> Draft:
            num_known = len(self.token_ids)
            guesses = tuple(self.truths[0][num_known : num_known + max_tokens])
            return Draft(token_ids=guesses, chances=(0.99,) * len(guesses))

    asked = request("x", [1, 2, 3], max_tokens=100)
    truth = [1, 2, 3, *expected_tokens(asked)]
    engine, step = fake_engine(
        max_logit_rows=10, drafting=Drafts(lambda request, token_ids: All([truth], token_ids, random.Random(0)))
    )
    collector = run_all(engine, [asked])
    assert collector.tokens["x", 0] == truth[3:]
    assert step.num_steps == 1 + 10, "9 guesses and a token of its own in each step after the prompt's"
    timing = collector.ends["x", 0].timing
    assert timing.num_drafted_tokens == timing.num_accepted_tokens == 99 - 10
    statistics = engine.statistics()
    assert (statistics.num_drafted_tokens, statistics.num_accepted_tokens) == (89, 89)
    assert statistics.num_generated_tokens == 100


def test_only_accepted_tokens_are_shared() -> None:
    """What a wrong guess left in a page is found by nobody: a second request reads what was said, and goes on alike."""
    for seed in range(8):
        engine, _ = fake_engine(max_logit_rows=64, drafting=knowing(seed))
        first = request("a", list(range(30)), max_tokens=200)
        said = run_all(engine, [first]).tokens["a", 0]
        second = request("b", [*range(30), *said[:150]], max_tokens=50)
        collector = run_all(engine, [second])
        assert collector.tokens["b", 0] == said[150:]
        assert collector.ends["b", 0].timing.num_cached_tokens == 128


def test_guesses_take_no_page_that_others_need() -> None:
    """Two samples fill all pages; guesses stay within the pages that their samples have."""
    engine, _ = fake_engine(num_pages=4, max_logit_rows=100, drafting=knowing(3, 256))
    requests = [request(f"r{number}", [number] * 40, max_tokens=88, seed=number) for number in range(2)]
    collector = run_all(engine, requests)
    for each in requests:
        assert collector.tokens[each.request_id, 0] == expected_tokens(each)
    assert engine.statistics().num_preemptions == 0


def test_logits_that_a_guess_spoilt_are_made_again_without() -> None:
    """A chip may let a stored value that is not finite show in the row before it. The guess is at fault."""
    asked = request("x", [1, 2, 3], max_tokens=20)
    truth = expected_tokens(asked)
    unsaid = next(token for token in range(VOCABULARY) if token not in (1, 2, 3, *truth))

    class Poison:
        def propose(self, max_tokens: int) -> Draft:
            return Draft(token_ids=(unsaid,), chances=(0.9,))

    engine, step = fake_engine(drafting=Drafts(lambda request, token_ids: Poison()))
    run = step.run

    def spoilt(arrays):
        logits = run(arrays)
        if unsaid in arrays.token_ids_T:
            logits[:] = float("nan")
        return logits

    step.run = spoilt
    collector = run_all(engine, [asked])
    assert collector.tokens["x", 0] == truth
    assert engine.statistics().num_failed == 0
    assert engine.statistics().num_drafted_tokens == 1, "this sample takes no guesses any more"


def test_a_model_whose_logits_are_not_finite_still_fails_the_request() -> None:
    asked = request("x", [1, 2, 3], max_tokens=20)
    truth = expected_tokens(asked)
    for seed in range(6):
        engine, step = fake_engine(max_logit_rows=40, drafting=knowing(seed))
        step.nan_tokens = {truth[7]}
        collector = run_all(engine, [asked])
        assert collector.ends["x", 0].finish_reason is FinishReason.ERROR
        told = collector.tokens["x", 0]
        assert told == truth[: len(told)] and len(told) == 1 + truth.index(truth[7])
