"""How far the answers of one model are from those of another over a text, position by position.

Knows: logits, token ids. Does not know: which models, how they were run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ROWS_AT_ONCE = 32
"""Rows of logits that are compared in float64 at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """What was found at each position of one or more windows."""

    is_same_top: npt.NDArray[np.bool_]
    divergence: Doubles
    """KL(source || result), nats."""
    source_loss: Doubles
    """Of the token that follows in the text, nats; a position fewer in each window."""
    result_loss: Doubles

    def summary(self) -> Summary:
        """The figures over all positions."""
        share = float(self.is_same_top.mean())
        return Summary(
            num_positions=len(self.divergence),
            source_perplexity=float(np.exp(self.source_loss.mean())),
            perplexity=float(np.exp(self.result_loss.mean())),
            perplexity_ratio=float(np.exp((self.result_loss - self.source_loss).mean())),
            perplexity_ratio_error=_ratio_error(self.result_loss - self.source_loss),
            mean_kl=float(self.divergence.mean()),
            p99_kl=float(np.quantile(self.divergence, 0.99)),
            same_top_share=share,
            same_top_share_error=math.sqrt(share * (1 - share) / len(self.divergence)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a report says of the quality. Errors are standard errors of the sample."""

    num_positions: int
    source_perplexity: float
    perplexity: float
    perplexity_ratio: float
    perplexity_ratio_error: float
    mean_kl: float
    p99_kl: float
    same_top_share: float
    same_top_share_error: float


def _ratio_error(differences: Doubles) -> float:
    spread = float(differences.std()) / math.sqrt(max(1, len(differences)))
    return float(np.exp(differences.mean())) * spread


def joined(parts: Sequence[Distances]) -> Distances:
    """All windows together."""
    return Distances(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Distances)}
    )


def distances(source_TV: Logits, result_TV: Logits, token_ids: Sequence[int]) -> Distances:
    """Compare two models' answers to one window.

    Args:
        source_TV: logits of every token of the window.
        result_TV: those of the other model.
        token_ids: the window.
    """
    assert source_TV.shape == result_TV.shape, (source_TV.shape, result_TV.shape)
    parts = []
    for start in range(0, len(token_ids), ROWS_AT_ONCE):
        source, result = source_TV[start : start + ROWS_AT_ONCE], result_TV[start : start + ROWS_AT_ONCE]
        weights, source_norm = _exponentials(source)
        _, result_norm = _exponentials(result)
        mean_difference = (weights * (source - result)).sum(-1, dtype=np.float64) / weights.sum(-1, dtype=np.float64)
        following = np.array(token_ids[start + 1 : start + 1 + len(source)], dtype=np.intp)
        rows = np.arange(len(following))
        parts.append(
            Distances(
                is_same_top=source.argmax(-1) == result.argmax(-1),
                divergence=mean_difference - (source_norm - result_norm),
                source_loss=source_norm[rows] - source[rows, following],
                result_loss=result_norm[rows] - result[rows, following],
            )
        )
    return joined(parts)


def _exponentials(logits_TV: Logits) -> tuple[Logits, Doubles]:
    """(exp(logit - largest), log of the sum of all exp(logit))."""
    largest_T1 = logits_TV.max(-1, keepdims=True)
    weights_TV = np.exp(logits_TV - largest_T1)
    norm_T: Doubles = np.log(weights_TV.sum(-1, dtype=np.float64)) + largest_T1[:, 0]
    return weights_TV, norm_T
