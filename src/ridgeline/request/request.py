"""What is asked."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.request.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, already tokens, with how to continue it.

    `request_id` is made by Ridgeline, never by a client: it indexes state that requests share.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    """The seed that is used: `sampling.seed`, or the one that was drawn for it."""
    priority: int = 0
    """Lower runs first; equal priorities run in the order of arrival."""
    cache_salt: str = ""
    """Requests share cached prefixes only with requests of the same salt."""
