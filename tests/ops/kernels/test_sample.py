"""Tokens that the kernels choose are those of the numpy definition, on every instruction set and by any threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ridgeline.chips.cpu import _native
from ridgeline.ops.choice import ADJUSTMENT, NO_TOKEN
from ridgeline.request import SamplingParams
from ridgeline.sampling.sampler import Sampler, SamplingError
from ridgeline.sampling.state import SampleState

NAMES = ("avx512", "avx2", "portable")


@pytest.fixture(params=NAMES)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.instruction_set().split("-")[0]
    if not _native.set_instruction_set(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    _native.set_instruction_set(before)


def rows(rng: np.random.Generator, width: int) -> np.ndarray:
    """A row of one of the kinds that models, and faults, make."""
    x = rng.normal(0, 3, width)
    match rng.integers(8):
        case 0:
            x *= 0.003
        case 1:
            x = np.round(x)
        case 2:
            x[:] = rng.normal()
        case 3:
            x[rng.random(width) < 0.5] = -np.inf
            x[rng.integers(width)] = 1.0
        case 4:
            x *= 10 ** rng.uniform(-6, 30)
        case 5:
            x[rng.integers(0, width, 5)] = 14.5
        case _:
            pass
    return x.astype(np.float32)


def options(rng: np.random.Generator, width: int) -> dict:
    made: dict = {"temperature": float(rng.choice([0, 1e-300, 1e-9, 0.1, 0.5, 0.7, 1, 1, 1.3, 2, 100]))}
    if rng.random() < 0.5:
        made["top_k"] = int(rng.choice([1, 2, 5, 20, 50, 1000, 40000]))
    if rng.random() < 0.5:
        made["top_p"] = float(rng.choice([1e-17, 1e-6, 0.1, 0.5, 0.9, 0.999, 1 - 2**-53, rng.uniform(0.001, 1)]))
    if rng.random() < 0.3:
        made["min_p"] = float(rng.choice([1e-12, 0.01, 0.1, 0.5, 1.0]))
    if rng.random() < 0.3:
        made["repetition_penalty"] = float(rng.choice([0.5, 1.05, 1.3, 100, 1e-300]))
    if rng.random() < 0.2:
        made["frequency_penalty"] = float(rng.choice([-2, 0.1, 0.5]))
    if rng.random() < 0.2:
        made["presence_penalty"] = float(rng.choice([-2, 0.1, 1.5]))
    if rng.random() < 0.1:
        ids = rng.integers(0, width, 5).tolist()
        made["logit_bias"] = dict(zip(ids, rng.uniform(-100, 100, 5).tolist(), strict=True))
    if rng.random() < 0.1:
        made["allowed_token_ids"] = tuple(rng.integers(0, width, rng.integers(1, 30)).tolist())
    if rng.random() < 0.1:
        made["min_tokens"], made["stop_token_ids"] = 4, tuple(rng.integers(0, width, 3).tolist())
    return made


def state(rng: np.random.Generator, width: int, **given) -> SampleState:
    prompt = rng.integers(0, width, rng.integers(1, 40)).tolist()
    output = rng.integers(0, width, rng.integers(0, 8)).tolist()
    made = SampleState.of(
        SamplingParams(**given),
        seed=int(rng.integers(0, 2**63)) * 2 + 1,
        token_ids=prompt + output,
        num_prompt_tokens=len(prompt),
        bad_word_ids=((int(rng.integers(width)),),) if rng.random() < 0.05 else (),
    )
    for token_id in output:
        made.note(token_id)
    return made


def chosen(pool: _native.ThreadPool, logits_BV: np.ndarray, states: list[SampleState]) -> list[int]:
    """What the kernels choose; the logits must be left as they were."""
    choices = np.concatenate([each.choice for each in states])
    adjustments = [np.zeros(0, ADJUSTMENT)]
    for number, each in enumerate(states):
        own = each.adjustments()
        if own is not None:
            choices["num_adjustments"][number] = len(own)
            adjustments.append(own.copy())
    positions = np.array([len(each.token_ids) - 1 for each in states], np.int32)
    tokens = np.zeros(len(states), np.int32)
    before = logits_BV.copy()
    chooser = _native.sampling.RowChooser(pool, *logits_BV.shape)
    chooser.choose(logits_BV, choices.view(np.uint8), np.concatenate(adjustments).view(np.uint8), positions, tokens)
    np.testing.assert_array_equal(logits_BV, before)
    return tokens.tolist()


def defined(logits_BV: np.ndarray, states: list[SampleState]) -> list[int]:
    sampler = Sampler(logits_BV.shape[1])
    tokens = []
    for logits_V, each in zip(logits_BV, states, strict=True):
        try:
            tokens.append(sampler.sample(logits_V, each))
        except SamplingError:
            tokens.append(NO_TOKEN)
    return tokens


@pytest.mark.parametrize("seed", range(3))
def test_random_rows(instruction_set: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pools = [_native.ThreadPool(num_threads) for num_threads in (1, 2, 3)]
    for _ in range(150):
        width = int(rng.choice([1, 2, 5, 40, 255, 256, 1000, 1024, 1025, 3000, 20_000]))
        states = [state(rng, width, **options(rng, width)) for _ in range(rng.integers(1, 9))]
        logits_BV = np.stack([rows(rng, width) for _ in states])
        if rng.random() < 0.1:
            logits_BV[rng.integers(len(states)), rng.integers(width)] = rng.choice([np.nan, np.inf])
        if rng.random() < 0.05:
            logits_BV[rng.integers(len(states))] = -np.inf
        pool = pools[int(rng.integers(3))]
        assert chosen(pool, logits_BV, states) == defined(logits_BV, states)


def test_a_large_vocabulary_all_equal_flat_and_peaked(instruction_set: str) -> None:
    """Each of the ways in which a cut is found: among the nearest, by a histogram, in one key that all share."""
    rng, width = np.random.default_rng(9), 152_064
    peaked = rng.normal(0, 2, width)
    peaked[rng.integers(0, width, 300)] += 12
    kinds = [np.zeros(width), rng.normal(0, 0.5, width), peaked]
    given = [{}, {"top_k": 50}, {"top_k": 3000}, {"top_p": 0.9}, {"top_p": 0.9, "top_k": 20, "min_p": 0.1}]
    logits_BV = np.stack([kind for kind in kinds for _ in given]).astype(np.float32)
    states = [state(rng, width, **each) for _ in kinds for each in given]
    for num_threads in (1, 2):
        assert chosen(_native.ThreadPool(num_threads), logits_BV, states) == defined(logits_BV, states)


def test_records_that_ask_for_what_is_not_there_get_no_token() -> None:
    logits_BV = np.zeros((1, 8), np.float32)
    for ids, only_listed in (((8,), 0), ((-1,), 0), ((3, 2), 1), ((2, 2), 1), ((), 1)):
        made = SampleState.of(SamplingParams(), seed=0, token_ids=[0], num_prompt_tokens=1)
        choices = made.choice.copy()
        choices["num_adjustments"], choices["only_listed"] = len(ids), only_listed
        adjustments = np.array([(each, 0.0, 1.0, 0.0) for each in ids], dtype=ADJUSTMENT)
        tokens = np.zeros(1, np.int32)
        chooser = _native.sampling.RowChooser(_native.ThreadPool(1), 1, 8)
        positions = np.zeros(1, np.int32)
        chooser.choose(logits_BV, choices.view(np.uint8), adjustments.view(np.uint8), positions, tokens)
        assert tokens.tolist() == [NO_TOKEN]
        choices["num_adjustments"] = len(ids) + 1
        with pytest.raises(ValueError, match="adjustments"):
            chooser.choose(logits_BV, choices.view(np.uint8), adjustments.view(np.uint8), positions, tokens)


def test_draws_have_the_frequencies_of_the_softmax() -> None:
    """Chi-squared over 40,000 draws with as many seeds: no token comes too often."""
    rng, num_draws, width = np.random.default_rng(4), 40_000, 300
    logits_V = rng.normal(0, 1.5, width).astype(np.float32)
    counts = np.zeros(width)
    chooser = _native.sampling.RowChooser(_native.ThreadPool(1), 1000, width)
    logits_BV = np.repeat(logits_V[None], 1000, axis=0)
    choices = np.repeat(
        SampleState.of(SamplingParams(temperature=0.8), seed=0, token_ids=[0], num_prompt_tokens=1).choice, 1000
    )
    tokens, none = np.zeros(1000, np.int32), np.zeros(0, np.uint8)
    for first in range(0, num_draws, 1000):
        choices["seed"] = np.arange(first, first + 1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        chooser.choose(logits_BV, choices.view(np.uint8), none, np.arange(1000, dtype=np.int32), tokens)
        counts += np.bincount(tokens, minlength=width)
    exact = np.exp(logits_V.astype(np.float64) / 0.8)
    expected = num_draws * exact / exact.sum()
    likely = expected > 5
    chi_squared = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    degrees = likely.sum() - 1
    assert abs(chi_squared - degrees) < 4 * np.sqrt(2 * degrees), (chi_squared, degrees)
