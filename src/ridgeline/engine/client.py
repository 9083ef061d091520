"""The engine as the server, the CLI and offline callers hold it: submit, follow, cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ridgeline.request.output import TokenChunk
from ridgeline.request.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """What the front needs to know of the model that the engine holds."""

    name: str
    family: str
    format_name: str
    """The format that most weight bytes are in."""
    vocabulary_size: int
    context_tokens: int
    """The longest prompt plus output that this engine accepts."""
    num_pages: int
    page_slots: int
    weight_bytes: int
    kv_format: str
    chip: str
    """`ChipFacts.description`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """How the engine is, now and so far; counters only grow. For /metrics, /health and the console."""

    state: Literal["starting", "ready", "draining", "dead"]
    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    """Pages that no running request holds (cached prefixes may be in them)."""
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0
    num_drafted_tokens: int = 0
    """Guesses that steps ran, and those of them that stood: generated tokens that cost no step of their own."""
    num_accepted_tokens: int = 0
    num_preemptions: int = 0
    num_finished: int = 0
    num_cancelled: int = 0
    num_failed: int = 0
    seconds_since_last_step: float = 0.0
    """0 when idle: there was nothing to do."""
    predicted_step_seconds: float = 0.0
    """Sums over all steps, so their ratio is the mean error."""
    measured_step_seconds: float = 0.0
    roofline_step_seconds: float = 0.0
    """Sum over all steps of their time at the chip's peaks; over `measured_step_seconds`, the share reached."""
    roofline_share: float = 0.0
    """Predicted time at the measured peaks over measured time, over the last steps (0 to about 1)."""


class EngineClient(Protocol):
    """An engine, in this process or another."""

    @property
    def model(self) -> EngineModel:
        """What it holds; known once it is ready."""

    def generate(self, request: Request) -> AsyncIterator[TokenChunk]:
        """The chunks of all samples of the request, as steps make them; ends after each sample's last.

        Closing the iterator cancels the request; its pages are free within one step. Raises RequestError,
        OverloadedError before the first chunk; EngineDeadError when the engine dies under it.
        """

    async def cancel(self, request_id: str) -> None:
        """End the request if it still runs; unknown ids are ignored."""

    async def statistics(self) -> EngineStatistics:
        """How the engine is."""

    async def close(self) -> None:
        """End everything."""
