"""What a sample's options do to logits, as one adjustment for each token that they touch.

The order in which options act is that of vLLM's users: allowed tokens, bad words, min tokens, logit bias, penalties;
then temperature and the cuts. An adjustment says it all in three numbers, so that a chip need not know the options.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ridgeline.ops.choice import ADJUSTMENT, Records
from ridgeline.request.sampling_params import SamplingParams

Scores = npt.NDArray[np.float32]
NEVER = -np.inf
LEAST_PENALTY = 2.0**-40
"""A smaller one would make infinities of float32 logits."""


def adjust(scores_V: Scores, adjustments: Records, *, only_listed: bool) -> None:
    """Change a row as the adjustments say; with `only_listed` no other token may come."""
    token_ids = adjustments["token_id"]
    scores = scores_V[token_ids] + adjustments["bias"]
    penalty = adjustments["penalty"]
    with np.errstate(over="ignore"):  # whoever draws refuses what is infinite
        scores = np.where(scores > 0, scores / penalty, scores * penalty) - adjustments["reduction"]
    if only_listed:
        scores_V.fill(NEVER)
    scores_V[token_ids] = scores


class Adjustments:
    """The adjustments of one sample's next token.

    Repetition penalty: logits of tokens in prompt or output are divided by it where positive, multiplied by it
    elsewhere. Source: CTRL, arXiv 1909.05858, section 4.1, which divides; negative ones are multiplied so that they
    fall too. Frequency and presence penalty: logits of output tokens fall by frequency * count + presence. Source: the
    OpenAI API's definition of the two.

    Holds: an entry for each token that was ever touched, and how often each was put out. Changed by: `note`, `current`.

    Args:
        sampling: the options.
        prompt_ids: the prompt's tokens.
        end_ids: tokens that may not come before `min_tokens`.
        bad_word_ids: tokens of which the last may not come after the others.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        prompt_ids: Iterable[int],
        end_ids: Iterable[int],
        bad_word_ids: Sequence[tuple[int, ...]],
    ) -> None:
        self._sampling = sampling
        self._end_ids = tuple(end_ids) if sampling.min_tokens else ()
        self._bad_word_ids = bad_word_ids
        self._penalty = max(sampling.repetition_penalty, LEAST_PENALTY)
        self._counts_output = bool(
            sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
        )
        self._output_counts: dict[int, int] = {}
        self._allowed = None if sampling.allowed_token_ids is None else frozenset(sampling.allowed_token_ids)
        self._held_back: list[int] = []
        """Places of tokens that may not come now but perhaps later."""
        self._places: dict[int, int] = {}
        self._entries = np.zeros(0, dtype=ADJUSTMENT)
        for token_id in sorted(self._allowed or ()):
            self._place(token_id)
        for token_id in sorted(sampling.logit_bias):
            self._place(token_id)
        for token_id in prompt_ids if sampling.repetition_penalty != 1.0 else ():
            place = self._place(token_id)
            if place is not None:
                self._entries["penalty"][place] = self._penalty

    def note(self, token_id: int) -> None:
        """Count a token of the output."""
        if not self._counts_output:
            return
        place = self._place(token_id)
        count = self._output_counts.get(token_id, 0) + 1
        self._output_counts[token_id] = count
        if place is not None:
            sampling = self._sampling
            self._entries["penalty"][place] = self._penalty
            self._entries["reduction"][place] = sampling.frequency_penalty * count + sampling.presence_penalty

    def current(self, token_ids: Sequence[int], num_prompt_tokens: int) -> Records:
        """ADJUSTMENT records for the token after `token_ids`; valid until the next call of any method."""
        bias = self._entries["bias"]
        for place in self._held_back:
            bias[place] = self._sampling.logit_bias.get(int(self._entries["token_id"][place]), 0.0)
        self._held_back.clear()
        num_output_tokens = len(token_ids) - num_prompt_tokens
        if num_output_tokens < self._sampling.min_tokens:
            for token_id in self._end_ids:
                self._hold_back(token_id)
        for *beginning, last in self._bad_word_ids:
            length = len(beginning)
            if length <= num_output_tokens and (not length or list(token_ids[-length:]) == beginning):
                self._hold_back(last)
        return self._entries[: len(self._places)]

    def _hold_back(self, token_id: int) -> None:
        place = self._place(token_id)
        if place is not None:
            self._entries["bias"][place] = NEVER
            self._held_back.append(place)

    def _place(self, token_id: int) -> int | None:
        """Where the token's entry lies; a new one changes nothing but by its bias. None if it may not come anyway."""
        place = self._places.get(token_id)
        if place is not None:
            return place
        if self._allowed is not None and token_id not in self._allowed:
            return None
        place = len(self._places)
        if place == len(self._entries):
            grown = np.zeros(max(64, 2 * place), dtype=ADJUSTMENT)
            grown[:place] = self._entries
            self._entries = grown
        self._places[token_id] = place
        self._entries[place] = (token_id, self._sampling.logit_bias.get(token_id, 0.0), 1.0, 0.0)
        return place
