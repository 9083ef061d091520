"""What is answered."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec


class FinishReason(str, enum.Enum):
    """Why a sample ended; the values are those of the OpenAI API where it has one."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token's log-probability among all tokens, with the likeliest others.

    `top` holds (token id, log-probability) pairs, likeliest first, as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTiming:
    """Where a request's time went, in seconds; queue + prefill + decode + stall is the wall time.

    stall: time after the first admission in which the request sat in no step (preempted, or left out of a step).
    """

    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    stall_seconds: float = 0.0
    time_to_first_token_seconds: float | None = None
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    num_drafted_tokens: int = 0
    """Guesses at next tokens that steps ran for it."""
    num_accepted_tokens: int = 0
    """Of these, the ones that stood: output tokens that cost no step of their own."""
    num_preemptions: int = 0


class TokenChunk(msgspec.Struct, frozen=True, kw_only=True):
    """What one step adds to one sample of a request; the engine's only kind of answer.

    Chunks of a sample come in order. `text` never splits a UTF-8 character, nor shows the beginning of what may yet
    become a stop string. The last chunk, and only the last, has a `finish_reason`.
    """

    request_id: str
    sample_index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """On the first chunk, if asked for: one per prompt token, the first None."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the sample."""
    error: str | None = None
    timing: RequestTiming | None = None
    """On the last chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """One sample of an answer, whole; named and shaped as vLLM's users know it."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of the chosen tokens' log-probabilities, if they were asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A whole answer: every sample of one request."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[SequenceOutput, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    timing: RequestTiming | None = None
    seed: int = 0
    finished: bool = True
