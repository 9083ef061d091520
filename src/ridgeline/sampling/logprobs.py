"""Log-probabilities of tokens: of the model itself, before temperature and every other option.

V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ridgeline.request.output import TokenLogprob
from ridgeline.sampling.draw import nearest

Logits = npt.NDArray[np.float32]


def token_logprob(logits_V: Logits, token_id: int, num_top: int, work_V: npt.NDArray[np.float64]) -> TokenLogprob:
    """The log-probability of a token, and the `num_top` likeliest, of equal ones the lowest ids first.

    `work_V` is overwritten; always the same buffer, so that sums run in one order.
    """
    highest = float(logits_V.max())
    np.subtract(logits_V, highest, out=work_V, dtype=np.float64)
    np.exp(work_V, out=work_V)
    log_sum = math.log(float(work_V.sum()))
    top_ids = nearest(-logits_V, num_top) if num_top else np.empty(0, dtype=np.intp)
    top_ids = top_ids[np.argsort(-logits_V[top_ids], kind="stable")]
    return TokenLogprob(
        token_id=token_id,
        logprob=float(logits_V[token_id]) - highest - log_sum,
        top=tuple((int(top_id), float(logits_V[top_id]) - highest - log_sum) for top_id in top_ids),
    )
