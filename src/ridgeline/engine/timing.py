"""Where a sample's time goes: a stopwatch whose parts sum to the wall time, whatever happens."""

from __future__ import annotations

from ridgeline.request.output import RequestTiming


class SampleStopwatch:
    """Attributes every second from arrival to the end to queue, prefill, decode or stall.

    Time between two steps belongs to the sample's phase if it was in both, else it stalled.

    Holds: the sums so far, the time up to which all is attributed. Changed by: its methods.
    """

    def __init__(self, now: float) -> None:
        self._arrival = now
        self._attributed_until = now
        self._last_step: int | None = None
        self._is_prefill = True
        self._queue_seconds = 0.0
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0
        self._stall_seconds = 0.0
        self._first_token: float | None = None

    def note_step(self, number: int, started: float, ended: float, *, is_prefill: bool, has_token: bool) -> None:
        """The sample was in step `number`; `has_token` if it got one from it."""
        gap_seconds = started - self._attributed_until
        if self._last_step is None:
            self._queue_seconds += gap_seconds
        elif self._last_step == number - 1:
            self._add_to_phase(gap_seconds)
        else:
            self._stall_seconds += gap_seconds
        self._is_prefill = is_prefill
        self._add_to_phase(ended - started)
        self._attributed_until = ended
        self._last_step = number
        if has_token and self._first_token is None:
            self._first_token = ended

    def timing(self, now: float, number: int, **counts: int) -> RequestTiming:
        """The whole account at the end; `number` is the last step that was run, `counts` are RequestTiming's own."""
        rest_seconds = now - self._attributed_until
        if self._last_step is None:
            self._queue_seconds += rest_seconds
        elif self._last_step == number:
            self._add_to_phase(rest_seconds)
        else:
            self._stall_seconds += rest_seconds
        self._attributed_until = now
        return RequestTiming(
            queue_seconds=self._queue_seconds,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            stall_seconds=self._stall_seconds,
            time_to_first_token_seconds=None if self._first_token is None else self._first_token - self._arrival,
            **counts,
        )

    def _add_to_phase(self, seconds: float) -> None:
        if self._is_prefill:
            self._prefill_seconds += seconds
        else:
            self._decode_seconds += seconds
