"""From a row of scores to a token by chance: the definition, which chips that choose for themselves repeat bit for bit.

Each token has a *distance*, how many powers of two it is less likely than the best, and a *weight*, its probability
over the best one's as a whole number of 2^-40ths. Distances are float32 made by single operations, each rounded;
weights are integers, whose sums are exact in any order. So a row has one answer, on any chip, by any number of threads.

What that costs: a weight is off by 1e-7 of itself, as a logit in float32 is, and tokens less likely than 2^-40 of the
best one are never drawn.

V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ridgeline.ops.choice import CHOICE, ChoiceMode, Records
from ridgeline.request.sampling_params import SamplingParams

Scores = npt.NDArray[np.float32]
Distances = npt.NDArray[np.float32]
Weights = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

WEIGHT_BITS = 40
"""The best token's weight is 2 to this: enough for 2^22 tokens in 63 bits."""
FARTHEST = np.float32(48.0)
"""Distances beyond are all alike: such tokens have no weight."""
LARGEST_SCALE = 1e38
"""So that a tiny temperature gives no infinity, which times the best token's 0 would be no number."""
SHARE_BITS = 53
"""Of random numbers and of top_p."""
EXP2_COEFFICIENTS = tuple(
    np.float32(x) for x in (1.5353362e-4, 1.3398875e-3, 9.618437e-3, 5.5503324e-2, 2.4022648e-1, 6.931472e-1, 1.0)
)
"""2^r on |r| <= 1/2, from the highest power down: least largest relative error with exactly 1 at 0, 2e-9 before the
rounding to float32 and 1e-7 with it."""
FEW_CANDIDATES, CANDIDATES_GROWTH = 512, 8
"""How many of the nearest tokens the nucleus is looked for in at first, and by how much more each time."""
WEIGH_BLOCK = 16384
"""So that what comes between stays in a core's cache."""
PICK_BLOCK = 512
"""About the square root of a large vocabulary, so that both scans are short."""


def choice_of(sampling: SamplingParams, seed: int) -> Records:
    """One CHOICE record: how a sample's tokens are chosen."""
    choice = np.zeros(1, dtype=CHOICE)
    choice["seed"] = seed
    choice["top_share"] = 1 << SHARE_BITS
    choice["only_listed"] = sampling.allowed_token_ids is not None
    if sampling.is_greedy:
        choice["mode"] = ChoiceMode.BEST
        return choice
    choice["mode"] = ChoiceMode.DRAW
    choice["scale"] = min(math.log2(math.e) / sampling.temperature, LARGEST_SCALE)
    choice["top_k"] = sampling.top_k
    choice["min_weight"] = math.ceil(sampling.min_p * 2**WEIGHT_BITS)
    choice["top_share"] = int(sampling.top_p * 2**SHARE_BITS)
    return choice


def distances(scores_V: Scores, best: np.float32, scale: np.float32) -> Distances:
    """How many powers of two each token is below the best, at most FARTHEST."""
    with np.errstate(over="ignore"):  # what is infinitely far is as far as any
        distances_V: Distances = np.minimum((best - scores_V) * scale, FARTHEST)
    return distances_V


def weights(distances_V: Distances) -> Weights:
    """2^(40 - distance), its 24 bits cut where they pass below 1."""
    weights_V = np.empty(len(distances_V), dtype=np.int64)
    for start in range(0, len(distances_V), WEIGH_BLOCK):
        block = slice(start, start + WEIGH_BLOCK)
        weights_V[block] = _weights(distances_V[block])
    return weights_V


def _weights(distances_V: Distances) -> Weights:
    whole = np.rint(distances_V)
    rest = whole - distances_V
    power = np.full_like(rest, EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        power *= rest
        power += coefficient
    power *= np.float32(2**24)
    return power.astype(np.int64) << (WEIGHT_BITS - 24) >> whole.astype(np.int64)


def nearest(distances_V: Distances, count: int) -> Indices:
    """The indices of the `count` smallest distances, rising; of equal ones the first indices."""
    if count >= len(distances_V):
        return np.arange(len(distances_V))
    bound = np.partition(distances_V, count - 1)[count - 1]
    below = np.flatnonzero(distances_V < bound)
    equal = np.flatnonzero(distances_V == bound)[: count - len(below)]
    return np.sort(np.concatenate((below, equal)))


def nucleus(distances_V: Distances, weights_V: Weights, share: int) -> Indices:
    """The indices of the smallest set of nearest tokens whose weights reach the share, rising; at least one.

    Of equal distances the first indices come first. `share` is in units of 2^-53.

    Source: The curious case of neural text degeneration, arXiv 1904.09751, section 3.1.
    """
    bound = max(1, -((-share * int(weights_V.sum())) >> SHARE_BITS))
    num_candidates = FEW_CANDIDATES
    while True:
        candidates = nearest(distances_V, num_candidates)
        # The bits of a float that is not negative rise as it does; with the index below them no two are equal.
        keys = distances_V[candidates].view(np.int32).astype(np.int64) << 32 | candidates
        order = np.sort(keys) & 0xFFFFFFFF
        reached = np.cumsum(weights_V[order])
        if reached[-1] >= bound or num_candidates >= len(distances_V):
            # A token belongs to the set if those before it do not reach the share.
            return np.sort(order[: 1 + int(np.searchsorted(reached, bound))])
        num_candidates *= CANDIDATES_GROWTH


def pick(weights_V: Weights, number: int) -> int:
    """The first index at which the running sum of the weights passes `number` (of 2^53) of their sum.

    Sums over blocks first, then within one block: two short scans instead of a long one.
    """
    num_blocks = max(1, len(weights_V) // PICK_BLOCK)
    starts = np.arange(num_blocks) * PICK_BLOCK
    sums = np.cumsum(np.add.reduceat(weights_V, starts))
    target = number * int(sums[-1]) >> SHARE_BITS
    block = int(np.searchsorted(sums, target, side="right"))
    start = int(starts[block])
    end = len(weights_V) if block == num_blocks - 1 else start + PICK_BLOCK
    before = int(sums[block - 1]) if block else 0
    return start + int(np.searchsorted(np.cumsum(weights_V[start:end]), target - before, side="right"))


def draw(scores_V: Scores, best: np.float32, choice: Records, number: int) -> int:
    """The token that `number` (in [0, 2^53)) draws: cut what is to be cut, then go along the sum in order of token id.

    Scores are not NaN, `best` is the greatest and finite; `choice` is one CHOICE record of mode DRAW. The cuts come in
    the order top-k, min-p, nucleus, each of what the one before has left.
    """
    (each,) = choice
    token_ids: Indices | None = None
    distances_V = distances(scores_V, best, each["scale"])
    if 0 < each["top_k"] < len(scores_V):
        token_ids = nearest(distances_V, int(each["top_k"]))
        distances_V = distances_V[token_ids]
    weights_V = weights(distances_V)
    if each["min_weight"] > 0:
        weights_V[weights_V < each["min_weight"]] = 0
    if each["top_share"] < 1 << SHARE_BITS:
        kept = nucleus(distances_V, weights_V, int(each["top_share"]))
        token_ids, weights_V = kept if token_ids is None else token_ids[kept], weights_V[kept]
    index = pick(weights_V, number)
    return index if token_ids is None else int(token_ids[index])
