"""The sampler: one token from each row of logits.

A row's token depends on that row, its own options and its own random number, never on other rows: each is worked on
alone, in float64, in the same buffer, with sums in one order.

V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ridgeline.errors import RidgelineError
from ridgeline.request.output import TokenLogprob
from ridgeline.sampling import processors
from ridgeline.sampling.counter_random import uniform
from ridgeline.sampling.logprobs import token_logprob
from ridgeline.sampling.state import SampleState

Logits = npt.NDArray[np.float32]


class SamplingError(RidgelineError):
    """No token can be drawn from a row; it concerns that row's request alone.

    `is_tainted` says that the logits themselves were not finite, so what led to them is not to be trusted.
    """

    def __init__(self, message: str, *, is_tainted: bool) -> None:
        super().__init__(message)
        self.is_tainted = is_tainted


class Sampler:
    """Draws tokens.

    Holds: one row of working memory.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._scores_V = np.empty(vocabulary_size, dtype=np.float64)

    def sample(self, logits_V: Logits, state: SampleState) -> int:
        """The next token of a sample; SamplingError if there is none."""
        argmax = int(logits_V.argmax())
        # The argmax of a row with a NaN in it is the NaN.
        _check_finite(float(logits_V[argmax]))
        if state.is_plain_greedy:
            return argmax
        scores_V = self._scores_V
        np.copyto(scores_V, logits_V)
        if state.changes_logits:
            self._apply_options(scores_V, state)
        best = int(scores_V.argmax())
        if scores_V[best] == processors.NEVER:
            raise SamplingError("the request's options leave no token that may come next", is_tainted=False)
        if state.sampling.is_greedy:
            return best
        return self._draw(scores_V, float(scores_V[best]), state)

    def logprob(self, logits_V: Logits, token_id: int, num_top: int) -> TokenLogprob:
        """See `token_logprob`; SamplingError if the logits are not finite."""
        _check_finite(float(logits_V.max()))
        return token_logprob(logits_V, token_id, num_top, self._scores_V)

    def _apply_options(self, scores_V: processors.Scores, state: SampleState) -> None:
        sampling = state.sampling
        if sampling.allowed_token_ids is not None:
            processors.allow_only(scores_V, sampling.allowed_token_ids)
        if state.bad_word_ids:
            output = state.token_ids[state.num_prompt_tokens :]
            processors.forbid_bad_words(scores_V, output, state.bad_word_ids)
        if state.num_output_tokens < sampling.min_tokens:
            processors.forbid(scores_V, state.end_ids)
        if sampling.logit_bias:
            processors.add_bias(scores_V, sampling.logit_bias)
        if sampling.repetition_penalty != 1.0:
            output_ids = np.fromiter(state.output_counts.keys(), np.int64, len(state.output_counts))
            seen = np.union1d(state.prompt_ids, output_ids)
            processors.penalise_repetition(scores_V, seen, sampling.repetition_penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            processors.penalise_counts(
                scores_V,
                state.output_counts,
                frequency=sampling.frequency_penalty,
                presence=sampling.presence_penalty,
            )

    def _draw(self, scores_V: processors.Scores, best_score: float, state: SampleState) -> int:
        """Cut what is to be cut, then invert the cumulative distribution, in order of token id."""
        sampling = state.sampling
        token_ids: npt.NDArray[np.intp] | None = None
        weights = scores_V
        if 0 < sampling.top_k < len(scores_V):
            token_ids = processors.largest(scores_V, sampling.top_k)
            weights = scores_V[token_ids]
        np.subtract(weights, best_score, out=weights)
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to minus infinity, as it should
            np.divide(weights, sampling.temperature, out=weights)
        np.exp(weights, out=weights)
        # The best token's weight is now 1, so a weight is its token's probability over the best one's.
        if sampling.min_p > 0.0:
            kept = np.flatnonzero(weights >= sampling.min_p)
            token_ids, weights = kept if token_ids is None else token_ids[kept], weights[kept]
        if sampling.top_p < 1.0:
            kept = processors.nucleus(weights, sampling.top_p)
            token_ids, weights = kept if token_ids is None else token_ids[kept], weights[kept]
        index = processors.pick(weights, uniform(state.seed, len(state.token_ids)))
        return index if token_ids is None else int(token_ids[index])


def _check_finite(highest: float) -> None:
    if not math.isfinite(highest):
        raise SamplingError("the model's logits are not finite", is_tainted=True)
