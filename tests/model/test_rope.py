"""Ropes: published scalings by their own laws, and the two ways of saying Llama 3's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ridgeline.model.load import plan_model
from ridgeline.model.rope import (
    llama3_frequencies,
    longrope_magnitude,
    plain_frequencies,
    yarn_frequencies,
    yarn_magnitude,
)
from ridgeline.weights.open import open_checkpoint
from tests.model.goldens import golden, write_as_gguf
from tests.tiny_models import write_tiny_gguf

LLAMA31 = {"factor": 8.0, "low": 1.0, "high": 4.0, "original_tokens": 8192}


def test_plain_frequencies_fall_from_one_to_nearly_one_over_the_base():
    frequencies = plain_frequencies(10000.0, 64)
    assert len(frequencies) == 32 and frequencies[0] == 1
    assert frequencies[16] == pytest.approx(0.01) and frequencies[31] == pytest.approx(10000 ** (-62 / 64))


def test_llama3_keeps_short_waves_slows_long_ones_and_blends_between():
    plain = plain_frequencies(500000.0, 128)
    scaled = llama3_frequencies(plain, **LLAMA31)
    for before, after in zip(plain, scaled, strict=True):
        waves = 8192 * before / (2 * math.pi)
        share = after / before
        assert share == 1 if waves >= 4 else share == pytest.approx(1 / 8) if waves <= 1 else 1 / 8 < share < 1
    assert list(scaled) == sorted(scaled, reverse=True), "the blend is monotonous"


def test_yarn_keeps_fast_pairs_and_divides_slow_ones():
    plain = plain_frequencies(1e6, 128)
    scaled = yarn_frequencies(1e6, 128, factor=4.0, original_tokens=32768)
    shares = np.array(scaled) / np.array(plain)
    turns = 32768 * np.array(plain) / (2 * np.pi)
    assert (shares[turns > 40] == 1).all() and np.allclose(shares[turns < 0.8], 1 / 4)
    assert (np.diff(shares) <= 0).all()


def test_magnitudes():
    assert yarn_magnitude(1.0) == longrope_magnitude(0.5, 4096) == 1
    assert yarn_magnitude(4.0) == pytest.approx(1.13863, abs=1e-5)
    # Phi-3-mini-128k: 131072 over 4096 tokens.
    assert longrope_magnitude(32.0, 4096) == pytest.approx(math.sqrt(1 + 5 / 12))


def test_llama3_scaling_is_the_same_said_by_factors_of_a_gguf_file(tmp_path):
    case = golden("llama_llama3")
    by_config = plan_model(case.checkpoint()).spec.ropes[0]
    by_factors = plan_model(open_checkpoint(write_as_gguf(case.folder, tmp_path / "model.gguf"))).spec.ropes[0]
    assert by_config.frequencies == pytest.approx(by_factors.frequencies, rel=1e-6)
    assert by_config.frequencies != pytest.approx(plain_frequencies(5000.0, 8), rel=0.1)


def test_frequencies_are_adopted_as_a_vector(tmp_path):
    plan = plan_model(open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf")))
    tensor = plan.sources["ropes.0"].read()
    assert np.array_equal(tensor.data.view("<f4"), np.array(plain_frequencies(10000.0, 32), dtype=np.float32))
