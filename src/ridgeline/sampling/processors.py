"""What each sampling option does to a row of scores, one function per option.

A row is float64 and belongs to the caller; each function changes that row and nothing else, and touches only the tokens
it is about. The order in which they are applied is that of vLLM's users: allowed tokens, bad words, min tokens, logit
bias, penalties; then temperature and the cuts.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.int64]
NEVER = -np.inf


def allow_only(scores_V: Scores, token_ids: Sequence[int]) -> None:
    """No token but these."""
    allowed = np.array(token_ids, dtype=np.int64)
    kept = scores_V[allowed]
    scores_V.fill(NEVER)
    scores_V[allowed] = kept


def forbid_bad_words(scores_V: Scores, token_ids: Sequence[int], bad_words: Sequence[tuple[int, ...]]) -> None:
    """Not the last token of a bad word after the tokens before it; `token_ids` is what has been chosen so far."""
    for *beginning, last in bad_words:
        if not beginning or list(token_ids[-len(beginning) :]) == beginning:
            scores_V[last] = NEVER


def forbid(scores_V: Scores, token_ids: TokenIds) -> None:
    """None of these tokens."""
    scores_V[token_ids] = NEVER


def add_bias(scores_V: Scores, bias: Mapping[int, float]) -> None:
    """The bias of each token is added to its score."""
    for token_id, value in bias.items():
        scores_V[token_id] += value


def penalise_repetition(scores_V: Scores, token_ids: TokenIds, penalty: float) -> None:
    """Scores of tokens that were seen are divided by the penalty where positive, multiplied by it elsewhere.

    Source: CTRL, arXiv 1909.05858, section 4.1, which divides; negative scores are multiplied so that they fall too.
    """
    seen = scores_V[token_ids]
    scores_V[token_ids] = np.where(seen > 0, seen / penalty, seen * penalty)


def penalise_counts(scores_V: Scores, counts: Mapping[int, int], *, frequency: float, presence: float) -> None:
    """Scores of output tokens fall by frequency * count + presence.

    Source: the OpenAI API's definition of its two penalties.
    """
    token_ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float64, len(counts))
    scores_V[token_ids] -= frequency * times + presence


def largest(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """The indices of the `count` largest values, rising; of equal values the first indices."""
    if count >= len(values):
        return np.arange(len(values))
    bound = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > bound)
    equal = np.flatnonzero(values == bound)[: count - len(above)]
    return np.sort(np.concatenate((above, equal)))


def nucleus(weights: Scores, top_p: float) -> npt.NDArray[np.intp]:
    """The indices of the smallest set of largest weights that reaches the share `top_p`, rising; at least one.

    Source: The curious case of neural text degeneration, arXiv 1904.09751, section 3.1.
    """
    total = float(np.cumsum(weights)[-1])
    # Weights that together cannot reach the share outside of the nucleus are never in it, and need not be sorted.
    candidates = np.flatnonzero(weights >= (1.0 - top_p) * total / len(weights))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    num_kept = max(1, int(np.searchsorted(before, top_p * total)))
    return np.sort(order[:num_kept])
