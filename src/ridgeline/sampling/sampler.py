"""The sampler: one token from each row of logits.

A row's token depends on that row, its own options and its own random number, never on other rows: each is worked on
alone. Options become adjustments of single logits (`adjustments`), and `draw` defines what chance does with the rest;
a chip that chooses tokens itself comes to the same ones.

V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ridgeline.errors import RidgelineError
from ridgeline.request.output import TokenLogprob
from ridgeline.sampling.adjustments import adjust
from ridgeline.sampling.counter_random import random_bits
from ridgeline.sampling.draw import draw
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

    Holds: working memory for one row.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._scores_V = np.empty(vocabulary_size, dtype=np.float32)
        self._work_V = np.empty(vocabulary_size, dtype=np.float64)

    def sample(self, logits_V: Logits, state: SampleState) -> int:
        """The next token of a sample; SamplingError if there is none."""
        best = int(logits_V.argmax())
        # The argmax of a row with a NaN in it is the NaN.
        _check_finite(float(logits_V[best]))
        if state.is_plain_greedy:
            return best
        scores_V = logits_V
        adjustments = state.adjustments()
        if adjustments is not None:
            scores_V = self._scores_V
            np.copyto(scores_V, logits_V)
            adjust(scores_V, adjustments, only_listed=state.sampling.allowed_token_ids is not None)
            best = int(scores_V.argmax())
            if not math.isfinite(scores_V[best]):
                raise SamplingError("the request's options leave no token that may come next", is_tainted=False)
        if state.sampling.is_greedy:
            return best
        return draw(scores_V, scores_V[best], state.choice, random_bits(state.seed, len(state.token_ids)))

    def logprob(self, logits_V: Logits, token_id: int, num_top: int) -> TokenLogprob:
        """See `token_logprob`; SamplingError if the logits are not finite."""
        _check_finite(float(logits_V.max()))
        return token_logprob(logits_V, token_id, num_top, self._work_V)


def _check_finite(highest: float) -> None:
    if not math.isfinite(highest):
        raise SamplingError("the model's logits are not finite", is_tainted=True)
