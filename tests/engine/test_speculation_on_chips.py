"""The same bits with and without drafts on chips that compute, wherever drafts end: in a page, at its end, beyond."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from ridgeline.chips.simulated import SimulatedChip
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.engine.speculation import Copying
from ridgeline.request import Request, SamplingParams
from ridgeline.speculate.drafter import Draft
from tests.engine.test_real_chips import BASE, CASES, WANTED, Case, answer, opened, wanted
from tests.engine.test_speculation import Drafts, truth_of
from tests.engine.test_virtual_time import VOCABULARY, expected
from tests.tiny_models import write_tiny_gguf

MAX_TOKENS = 100


class NoisyDrafter:
    """Guesses what it was told for a random while, then other tokens."""

    def __init__(self, truths: Sequence[Sequence[int]], token_ids: Sequence[int], rng: random.Random) -> None:
        self.truths = truths
        self.token_ids = token_ids
        self.rng = rng

    def propose(self, max_tokens: int) -> Draft:
        num_known = len(self.token_ids)
        truth = truth_of(self.truths, self.token_ids)
        right = list(truth[num_known : num_known + self.rng.choice((0, 1, 3, 9, 32))])
        guesses = (right + [self.rng.randrange(290) for _ in range(self.rng.choice((0, 1, 2, 31)))])[:max_tokens]
        # So hopeful that the cost of a step does not matter.
        return Draft(token_ids=tuple(guesses), chances=(1.0,) * len(guesses))


def noisy(truths: Sequence[Sequence[int]], seed: int) -> Drafts:
    rng = random.Random(seed)
    return Drafts(lambda request, token_ids: NoisyDrafter(truths, token_ids, rng))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(params=CASES, ids=str, scope="module")
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def plain(folder, case) -> list[tuple]:
    answers = []
    for number in range(len(WANTED)):
        engine = opened(folder, case)
        answers.append(answer(engine, wanted(number, max_tokens=MAX_TOKENS)))
        engine.close()
    return answers


def truths_of(plain: list[tuple]) -> list[tuple[int, ...]]:
    return [(*prompt, *tokens) for (prompt, _), (tokens, _, _) in zip(WANTED, plain, strict=True)]


@pytest.mark.parametrize("others", [0, 5])
def test_right_and_wrong_guesses(folder, case, plain, others) -> None:
    """Tokens and every bit of the log-probabilities; contexts of 64 to 270 cross the ends of pages."""
    engine = opened(folder, case, spare_rows=60, drafting=noisy(truths_of(plain), others))
    for _ in range(2):
        for number, expected_answer in enumerate(plain):
            engine.forget_prefixes()
            assert answer(engine, wanted(number, max_tokens=MAX_TOKENS), others=others) == expected_answer
    statistics = engine.statistics()
    assert 50 < statistics.num_accepted_tokens < statistics.num_drafted_tokens - 50, "both kinds were run"
    engine.close()


def test_while_preempted(folder, case, plain) -> None:
    engine = opened(folder, case, num_pages=8, max_tokens=90, spare_rows=60, drafting=noisy(truths_of(plain), 3))
    for number, expected_answer in enumerate(plain):
        assert answer(engine, wanted(number, max_tokens=MAX_TOKENS), others=6) == expected_answer
    assert engine.statistics().num_preemptions > 0 and engine.statistics().num_accepted_tokens > 20
    engine.close()


def test_pages_of_accepted_tokens_serve_others(folder, case, plain) -> None:
    """A page that was closed over a wrong guess and closed again must hold what was said."""
    engine = opened(folder, case, spare_rows=60, drafting=noisy(truths_of(plain), 4))
    tokens = plain[0][0]
    assert answer(engine, wanted(0, max_tokens=MAX_TOKENS)) == plain[0]
    sampling = SamplingParams(max_tokens=15, temperature=0.0, ignore_eos=True, logprobs=5)
    follower = Request(request_id="f", prompt_token_ids=(*BASE, *tokens[:85]), sampling=sampling, seed=0)
    followed = answer(engine, follower)
    assert followed[0] == tokens[85:]
    assert followed[1] == plain[0][1][85:]
    assert engine.statistics().num_cached_tokens >= 192
    engine.close()


def test_copied_guesses_of_a_text_that_repeats(folder, case) -> None:
    """The drafters that are always there, on a prompt that a model of random weights goes on repeating, or not."""
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True, logprobs=1)
    request = Request(request_id="r", prompt_token_ids=BASE[:20] * 5, sampling=sampling, seed=0)
    first = opened(folder, case)
    second = opened(folder, case, spare_rows=60, drafting=Copying())
    assert answer(first, request) == answer(second, request)
    first.close()
    second.close()


@pytest.mark.parametrize("others", [0, 3])
def test_on_a_simulated_chip(tmp_path, others) -> None:
    """Every slot of every page goes into a simulated chip's tokens; time passes as the cost model says."""
    from ridgeline.chips.published import published_chip

    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    sampling = SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)
    prompts = [tuple((number * 31 + i * i) % VOCABULARY for i in range(100)) for number in range(1 + others)]
    requests = [
        Request(request_id=f"r{number}", prompt_token_ids=prompt, sampling=sampling, seed=0)
        for number, prompt in enumerate(prompts)
    ]
    truths = [(*each.prompt_token_ids, *expected(each, 150)) for each in requests]

    def run(**options: object) -> tuple[Engine, float]:
        chip = SimulatedChip(published_chip("h100").facts())
        settings = EngineSettings(model=str(path), cache_folder=str(tmp_path), speculation=bool(options))
        engine = open_engine(settings, chip=chip, **options)
        tokens: dict[str, tuple[int, ...]] = {}
        for each in requests:
            engine.add(each)
        while engine.has_work():
            for chunk in engine.step():
                tokens[chunk.request_id] = tokens.get(chunk.request_id, ()) + chunk.token_ids
            engine.check_integrity()
        for each, truth in zip(requests, truths, strict=True):
            assert tokens[each.request_id] == truth[100:]
        return engine, chip.clock.now()

    _, plain_seconds = run()
    engine, seconds = run(drafting=noisy(truths, others))
    assert engine.statistics().num_accepted_tokens > 100
    assert seconds < 0.7 * plain_seconds
