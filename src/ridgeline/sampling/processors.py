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
FEW_CANDIDATES, CANDIDATES_GROWTH = 512, 8
"""How many of the largest weights the nucleus is looked for in at first, and by how much more each time."""
PICK_BLOCK = 512
"""About the square root of a large vocabulary, so that both scans are short."""


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

    Only as many of the largest weights are sorted as are needed, which is few unless the distribution is flat.

    Source: The curious case of neural text degeneration, arXiv 1904.09751, section 3.1.
    """
    bound = top_p * float(weights.sum())
    num_candidates = FEW_CANDIDATES
    while True:
        candidates = largest(weights, num_candidates)
        order = candidates[np.argsort(-weights[candidates], kind="stable")]
        reached = np.cumsum(weights[order])
        if reached[-1] >= bound or num_candidates >= len(weights):
            # A weight belongs to the set if those before it do not reach the share.
            return np.sort(order[: 1 + int(np.searchsorted(reached[:-1], bound))])
        num_candidates *= CANDIDATES_GROWTH


def pick(weights: Scores, number: float) -> int:
    """The index at which the running sum of the weights passes `number` (in [0, 1)) of their sum.

    Sums over blocks first, then within one block: two short scans in one order instead of a long one.
    """
    num_blocks = max(1, len(weights) // PICK_BLOCK)
    starts = np.arange(num_blocks) * PICK_BLOCK
    sums = np.cumsum(np.add.reduceat(weights, starts))
    target = number * float(sums[-1])
    # The product may round up to the sum itself: then the last block, and token, that adds to it is meant.
    block = min(int(np.searchsorted(sums, target, side="right")), int(np.searchsorted(sums, sums[-1])))
    start = int(starts[block])
    end = len(weights) if block == num_blocks - 1 else start + PICK_BLOCK
    before = float(sums[block - 1]) if block else 0.0
    inside = np.cumsum(weights[start:end])
    index = int(np.searchsorted(inside, target - before, side="right"))
    return start + min(index, int(np.searchsorted(inside, inside[-1])))
