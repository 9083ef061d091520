"""Distances between two models' answers, held against their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.shrink.distance import ROWS_AT_ONCE, distances, joined

NUM_TOKENS, VOCABULARY = 2 * ROWS_AT_ONCE + 3, 50


def log_shares(logits_TV: np.ndarray) -> np.ndarray:
    return np.log(np.exp(logits_TV.astype(np.float64)) / np.exp(logits_TV.astype(np.float64)).sum(-1, keepdims=True))


def test_figures_are_those_of_the_definitions() -> None:
    random = np.random.default_rng(0)
    source_TV = (3 * random.standard_normal((NUM_TOKENS, VOCABULARY))).astype(np.float32)
    result_TV = (source_TV + random.standard_normal(source_TV.shape)).astype(np.float32)
    token_ids = random.integers(VOCABULARY, size=NUM_TOKENS).tolist()
    found = distances(source_TV, result_TV, token_ids)
    source, result = log_shares(source_TV), log_shares(result_TV)
    np.testing.assert_allclose(found.divergence, (np.exp(source) * (source - result)).sum(-1), rtol=1e-4, atol=1e-6)
    followed = (np.arange(NUM_TOKENS - 1), token_ids[1:])
    np.testing.assert_allclose(found.source_loss, -source[followed], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.result_loss, -result[followed], rtol=1e-5, atol=1e-6)
    summary = joined([found, found]).summary()
    assert summary.num_positions == 2 * NUM_TOKENS
    assert summary.same_top_share == (source_TV.argmax(-1) == result_TV.argmax(-1)).mean() < 1
    assert summary.perplexity_ratio == pytest.approx(summary.perplexity / summary.source_perplexity)


def test_a_model_is_no_way_from_itself() -> None:
    logits_TV = np.random.default_rng(1).standard_normal((40, VOCABULARY)).astype(np.float32)
    summary = distances(logits_TV, logits_TV, list(range(40))).summary()
    assert (summary.mean_kl, summary.same_top_share, summary.perplexity_ratio) == (0, 1, 1)
    assert (summary.perplexity_ratio_error, summary.same_top_share_error) == (0, 0)
