"""What the engine needs of a tokenizer, so that it can be had without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ridgeline.request.sampling_params import SamplingParams


class SampleText(Protocol):
    """The text of one sample, token by token."""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, if one did; nothing may be pushed from then on."""

    def push(self, token_id: int) -> str:
        """The text that is certain now: no half characters, nothing that may yet begin a stop string."""

    def finish(self) -> str:
        """What was still held back."""


class EngineText(Protocol):
    """The model's tokens as text, and which of them end an answer."""

    @property
    def end_of_sequence_ids(self) -> frozenset[int]:
        """Tokens after which the model has said all."""

    def encode(self, text: str) -> Sequence[int]:
        """Tokens of a text, without special ones before or after it."""

    def sample_text(self, sampling: SamplingParams) -> SampleText:
        """A new stream that obeys the request's stop strings and whether special tokens are shown."""
