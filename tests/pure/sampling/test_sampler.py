"""The sampler: each option against its plainest definition, draws against the distribution, rows on their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.request import SamplingParams
from ridgeline.sampling.adjustments import adjust
from ridgeline.sampling.counter_random import random_bits
from ridgeline.sampling.draw import distances, nearest, weights
from ridgeline.sampling.sampler import Sampler, SamplingError
from ridgeline.sampling.state import SampleState

V = 40


def state(prompt=(1, 2, 3), output=(), *, seed=0, bad_words=(), eos=(), **options) -> SampleState:
    made = SampleState.of(
        SamplingParams(**options),
        seed=seed,
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        end_of_sequence_ids=eos,
        bad_word_ids=bad_words,
    )
    for token_id in output:
        made.note(token_id)
    return made


def adjusted(logits: np.ndarray, made: SampleState) -> np.ndarray:
    scores = logits.copy()
    adjust(scores, made.adjustments(), only_listed=made.sampling.allowed_token_ids is not None)
    return scores


def row(seed: int = 0, size: int = V) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def plain_distribution(logits: np.ndarray, sampling: SamplingParams) -> np.ndarray:
    """Temperature, top-k, min-p, top-p in the words of their definitions, over a full sort."""
    scores = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scores - scores.max())
    order = sorted(range(len(weights)), key=lambda i: (-logits[i], i))
    keep = set(order[: sampling.top_k] if sampling.top_k else order)
    keep = {i for i in keep if weights[i] >= sampling.min_p * weights.max()}
    if sampling.top_p < 1.0:
        total, reached, nucleus = sum(weights[i] for i in keep), 0.0, set()
        for i in order:
            if i in keep and reached < sampling.top_p * total * (1 - 1e-12):
                nucleus.add(i)
                reached += weights[i]
        keep = nucleus
    kept = np.array([weights[i] if i in keep else 0.0 for i in range(len(weights))])
    return kept / kept.sum()


def plain_draw(distribution: np.ndarray, number: float) -> int:
    reached = 0.0
    for token_id, probability in enumerate(distribution):
        reached += probability
        if number < reached:
            return token_id
    return int(np.flatnonzero(distribution)[-1])


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    logits_seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 5, 39, 40, 1000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    lengths=st.tuples(st.integers(1, 9), st.integers(0, 9)),
)
def test_draws_follow_the_plain_definition(seed, logits_seed, temperature, top_k, top_p, min_p, lengths) -> None:
    logits = row(logits_seed)
    prompt, output = (range(length) for length in lengths)
    made = state(prompt, output, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    distribution = plain_distribution(logits, made.sampling)
    assert Sampler(V).sample(logits, made) == plain_draw(distribution, random_bits(seed, sum(lengths)) * 2.0**-53)


def test_frequencies_are_the_probabilities() -> None:
    logits, sampler = row(5), Sampler(V)
    counts = np.zeros(V)
    for seed in range(4000):
        counts[sampler.sample(logits, state(seed=seed, temperature=1.3))] += 1
    expected = 4000 * plain_distribution(logits, SamplingParams(temperature=1.3))
    likely = expected > 5
    chi_squared = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_squared < 3 * likely.sum() + 20


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[[7, 3, 9]] = 1.0
    assert Sampler(V).sample(logits, state(temperature=0.0)) == 3
    assert Sampler(V).sample(logits, state(temperature=0.0, logit_bias={0: 0.0})) == 3, "the other path"
    assert Sampler(V).sample(logits, state(top_k=1)) == 3


@pytest.mark.parametrize("temperature", [1e-9, 1e-300])
def test_tiny_temperatures_are_greedy(temperature) -> None:
    assert Sampler(V).sample(row(), state(temperature=temperature)) == int(row().argmax())


def test_the_row_is_not_changed_and_neighbours_do_not_matter() -> None:
    logits = np.stack([row(seed) for seed in range(6)])
    before = logits.copy()
    sampler = Sampler(V)
    options = [
        {"temperature": 1.0},
        {"temperature": 0.0, "repetition_penalty": 1.5},
        {"allowed_token_ids": (4, 5)},
        {"top_p": 0.5, "logprobs": 3},
        {"logit_bias": {3: 50.0}},
        {"temperature": 0.0},
    ]
    states = [state(seed=number, output=(8, 9), **each) for number, each in enumerate(options)]
    together = [sampler.sample(logits[number], each) for number, each in enumerate(states)]
    assert (logits == before).all()
    alone = [Sampler(V).sample(before[number].copy(), states[number]) for number in reversed(range(6))]
    assert together == alone[::-1]


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores_of_prompt_and_output() -> None:
    logits = np.array([2.0, -2.0, 4.0, 1.0], dtype=np.float32)
    assert adjusted(logits, state(prompt=(0,), output=(1,), repetition_penalty=2.0)).tolist() == [1.0, -4.0, 4.0, 1.0]
    logits = np.array([3.0, 2.9, 2.8, 0.0], dtype=np.float32)
    made = state(prompt=(0,), output=(1,), temperature=0.0, repetition_penalty=1.2)
    assert Sampler(4).sample(logits, made) == 2


def test_presence_and_frequency_count_output_only() -> None:
    made = state(prompt=(2, 2), output=(1, 4, 1, 1), frequency_penalty=0.5, presence_penalty=1.0)
    assert adjusted(np.zeros(5, np.float32), made).tolist() == [0.0, -2.5, 0.0, 0.0, -1.5]
    logits = np.array([1.0, 0.9], dtype=np.float32)
    assert Sampler(2).sample(logits, state(prompt=(0,), temperature=0.0, presence_penalty=2.0)) == 0
    assert Sampler(2).sample(logits, state(prompt=(1,), output=(0,), temperature=0.0, presence_penalty=2.0)) == 1
    thrice = {"output": (0, 0, 0, 1), "temperature": 0.0, "frequency_penalty": 0.06}
    assert Sampler(2).sample(logits, state(**thrice)) == 1, "1 - 0.18 against 0.9 - 0.06"


def test_bias_allowed_bad_words_and_min_tokens() -> None:
    logits, sampler = row(), Sampler(V)
    best = int(logits.argmax())
    assert sampler.sample(logits, state(temperature=0.0, logit_bias={best: -100.0})) != best
    assert sampler.sample(logits, state(temperature=0.0, allowed_token_ids=(11, 12))) in (11, 12)
    assert sampler.sample(logits, state(temperature=0.0, bad_words=((best,),))) != best
    two = ((5, best),)
    assert sampler.sample(logits, state(temperature=0.0, output=(5,), bad_words=two)) != best
    assert sampler.sample(logits, state(temperature=0.0, output=(6,), bad_words=two)) == best
    assert sampler.sample(logits, state(prompt=(5,), temperature=0.0, bad_words=two)) == best, "output only"
    assert sampler.sample(logits, state(temperature=0.0, eos=(best,), min_tokens=1)) != best
    assert sampler.sample(logits, state(temperature=0.0, eos=(best,), min_tokens=1, output=(0,))) == best
    assert sampler.sample(logits, state(temperature=0.0, stop_token_ids=(best,), min_tokens=1)) != best


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_p": 0.5}, {"logit_bias": {1: 1.0}}])
def test_logits_that_are_not_finite_are_refused(bad, options) -> None:
    logits = row()
    logits[13] = bad
    with pytest.raises(SamplingError) as caught:
        Sampler(V).sample(logits, state(**options))
    assert caught.value.is_tainted
    with pytest.raises(SamplingError):
        Sampler(V).logprob(logits, 0, 2)


def test_minus_infinity_is_a_token_that_cannot_come_and_a_row_of_it_is_refused() -> None:
    logits = np.full(V, -np.inf, dtype=np.float32)
    with pytest.raises(SamplingError):
        Sampler(V).sample(logits, state())
    logits[21] = 0.0
    assert Sampler(V).sample(logits, state(temperature=2.0)) == 21
    assert Sampler(V).logprob(logits, 3, 0).logprob == -math.inf


def test_options_that_leave_no_token_are_the_requests_own_fault() -> None:
    with pytest.raises(SamplingError) as caught:
        Sampler(V).sample(row(), state(allowed_token_ids=(5,), stop_token_ids=(5,), min_tokens=3))
    assert not caught.value.is_tainted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 35))
def test_nearest_is_the_sorted_beginning(values, count) -> None:
    array = np.array(values, dtype=np.float32)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    assert nearest(array, count).tolist() == sorted(order[:count])


def test_logprobs_are_before_temperature_and_ties_go_by_id() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[[9, 4]] = 2.0
    log_sum = math.log(2 * math.exp(2.0) + (V - 2))
    entry = Sampler(V).logprob(logits, 7, 3)
    assert entry.token_id == 7
    assert entry.logprob == pytest.approx(-log_sum, abs=1e-12)
    assert [token_id for token_id, _ in entry.top] == [4, 9, 0]
    assert entry.top[0][1] == pytest.approx(2.0 - log_sum, abs=1e-12)
    assert Sampler(V).logprob(logits, 7, 0).top == ()


def test_a_large_vocabulary_is_sampled_in_time() -> None:
    """A guard against a full sort or a Python loop over the vocabulary, not a benchmark."""
    import time

    logits, sampler = row(1, 152_000), Sampler(152_000)
    for options in ({"temperature": 0.0}, {}, {"top_k": 50}, {"top_p": 0.9}, {"presence_penalty": 1.0}):
        made = state(output=range(500), **options)
        sampler.sample(logits, made)
        started = time.perf_counter()
        for _ in range(5):
            sampler.sample(logits, made)
        assert (time.perf_counter() - started) / 5 < 0.05, options


def test_weights_are_powers_of_two_to_the_precision_of_a_float() -> None:
    distance = np.concatenate(
        [np.linspace(0, 48, 100_001), np.random.default_rng(0).uniform(0, 3, 100_000), [0.0, 0.5, 1.5, 47.99999]]
    ).astype(np.float32)
    exact = 2.0 ** (40 - distance.astype(np.float64))
    found = weights(distance)
    assert found[0] == 2**40
    assert (np.abs(found - exact) <= 1.1e-7 * exact + 1).all(), "1 where the bits below the point are cut"
    assert (found[distance >= 42] == 0).all()
    # The errors have no side: a distribution is not bent by them.
    near = distance < 16
    assert abs((found[near] / exact[near] - 1).mean()) < 1e-8


def test_distances_end_at_the_farthest_and_no_temperature_makes_them_nan() -> None:
    scores = np.array([3.0, -np.inf, 3.0, 2.9999998, -1e30], dtype=np.float32)
    for scale in (0.01, 1.0, 1e38):
        found = distances(scores, scores[0], np.float32(scale))
        assert found[0] == found[2] == 0.0
        assert found[1] == found[4] == 48.0
        assert 0 < found[3] <= 48.0


def test_options_meet_on_one_token_in_their_order() -> None:
    logits = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    options = {"logit_bias": {1: 3.0}, "repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    made = state(prompt=(0,), output=(1, 1), **options)
    assert adjusted(logits, made).tolist() == [0.5, (2 + 3) / 2 - 0.5 * 2 - 0.25, 3.0, 4.0]
    never = -np.inf
    made = state(prompt=(0,), output=(1, 1), allowed_token_ids=(1, 2), **options)
    assert adjusted(logits, made).tolist() == [never, 1.25, 3.0, never]


def test_what_is_held_back_comes_back_with_its_bias() -> None:
    made = state(prompt=(0,), logit_bias={2: 1.5}, bad_words=((1, 2),), eos=(3,), min_tokens=2)
    logits, never = np.zeros(4, np.float32), -np.inf
    seen = []
    for token_id in (1, 0, 0):
        seen.append(adjusted(logits, made).tolist())
        made.token_ids.append(token_id)
        made.note(token_id)
    assert seen == [[0, 0, 1.5, never], [0, 0, never, never], [0, 0, 1.5, 0]]
