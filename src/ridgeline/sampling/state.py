"""What the sampler knows of one sample: how its tokens are to be chosen, and which have been."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ridgeline.ops.choice import CHOICE, Records
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.sampling.adjustments import Adjustments
from ridgeline.sampling.draw import choice_of

COUNT_BYTES = CHOICE.itemsize - CHOICE.fields["num_adjustments"][1]  # type: ignore[index]
"""The number of adjustments is what a record ends with."""


@dataclass(slots=True, kw_only=True, eq=False)
class SampleState:
    """One sample of a request, as the sampler sees it.

    Holds: what its options do to logits, which `note` changes. `token_ids` is the engine's list of the sample, which
    grows.
    """

    sampling: SamplingParams
    seed: int
    """Of this sample, 64 bits."""
    token_ids: Sequence[int]
    """Prompt and output so far; the next token's position is its length."""
    num_prompt_tokens: int
    choice: Records
    """One CHOICE record, the same for all tokens but for the number of adjustments, which is left 0."""
    changes_logits: bool
    """Whether any option but temperature and the cuts touches the logits."""
    is_plain_greedy: bool
    """Whether every token is the argmax of the raw logits."""
    choice_bytes: bytes = field(repr=False)
    """The record `choice` as bytes."""
    _adjustments: Adjustments | None = field(repr=False)

    @classmethod
    def of(
        cls,
        sampling: SamplingParams,
        *,
        seed: int,
        token_ids: Sequence[int],
        num_prompt_tokens: int,
        end_of_sequence_ids: Iterable[int] = (),
        bad_word_ids: tuple[tuple[int, ...], ...] = (),
    ) -> SampleState:
        """The state at the start of a sample."""
        changes_logits = bool(
            sampling.logit_bias
            or sampling.allowed_token_ids is not None
            or bad_word_ids
            or sampling.min_tokens
            or sampling.repetition_penalty != 1.0
            or sampling.presence_penalty
            or sampling.frequency_penalty
        )
        choice = choice_of(sampling, seed)
        adjustments = None
        if changes_logits:
            adjustments = Adjustments(
                sampling,
                prompt_ids=token_ids[:num_prompt_tokens],
                end_ids={*end_of_sequence_ids, *sampling.stop_token_ids},
                bad_word_ids=bad_word_ids,
            )
        return cls(
            sampling=sampling,
            seed=seed,
            token_ids=token_ids,
            num_prompt_tokens=num_prompt_tokens,
            choice=choice,
            choice_bytes=choice.tobytes(),
            changes_logits=changes_logits,
            is_plain_greedy=sampling.is_greedy and not changes_logits,
            _adjustments=adjustments,
        )

    def note(self, token_id: int) -> None:
        """Count a token that was chosen."""
        if self._adjustments is not None:
            self._adjustments.note(token_id)

    def adjustments(self) -> Records | None:
        """ADJUSTMENT records for the next token, valid until the next call; None if no option touches logits."""
        if self._adjustments is None:
            return None
        return self._adjustments.current(self.token_ids, self.num_prompt_tokens)

    def records(self) -> tuple[bytes, bytes]:
        """What a chip is told of the next token's row: a CHOICE record, and its ADJUSTMENT records."""
        adjustments = self.adjustments()
        if adjustments is None:
            return self.choice_bytes, b""
        count = len(adjustments).to_bytes(COUNT_BYTES, sys.byteorder)
        return self.choice_bytes[:-COUNT_BYTES] + count, adjustments.tobytes()
