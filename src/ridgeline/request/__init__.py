"""What is asked and what is answered: frozen values, no arrays, no clock, no I/O."""

from ridgeline.request.output import (
    FinishReason,
    RequestOutput,
    RequestTiming,
    SequenceOutput,
    TokenChunk,
    TokenLogprob,
)
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import SamplingParams

__all__ = [
    "FinishReason",
    "Request",
    "RequestOutput",
    "RequestTiming",
    "SamplingParams",
    "SequenceOutput",
    "TokenChunk",
    "TokenLogprob",
]
