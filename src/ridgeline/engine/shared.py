"""One engine for several callers of a process: whoever waits for an answer drives it, and each gets its own chunks.

Knows: the engine. Does not know: what callers want of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from ridgeline.engine.engine import Engine
from ridgeline.request.output import TokenChunk
from ridgeline.request.request import Request

Inbox = deque[TokenChunk]


class SharedEngine:
    """An engine behind a lock, without a thread of its own.

    Callers may be threads, or generators of one thread that take turns: a step that one of them makes puts everybody's
    chunks into their inboxes.

    Holds: the engine; the inbox of each request that still owes a chunk. Changed by: its methods, under its lock.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._inboxes: dict[str, Inbox] = {}

    def add(self, request: Request, inbox: Inbox) -> None:
        """Take in a request whose chunks go to `inbox`, which requests may share. Raises what `Engine.add` raises."""
        with self._lock:
            self._engine.add(request)
            self._inboxes[request.request_id] = inbox

    def chunks(self, inbox: Inbox) -> list[TokenChunk]:
        """What has come into the inbox, emptying it; if nothing has, a step is made first.

        An empty list means that the step brought nothing for this inbox. Raises what `Engine.step` raises.
        """
        with self._lock:
            if not inbox:
                self._hand_out(self._engine.step())
            taken = list(inbox)
            inbox.clear()
            return taken

    def cancel(self, request_ids: Iterable[str]) -> None:
        """End requests, if they still run; nothing more comes of them."""
        with self._lock:
            for request_id in request_ids:
                self._inboxes.pop(request_id, None)
                self._engine.cancel(request_id)

    def close(self) -> None:
        """Close the engine when no step is under way."""
        with self._lock:
            self._engine.close()

    def _hand_out(self, chunks: list[TokenChunk]) -> None:
        for chunk in chunks:
            inbox = self._inboxes.get(chunk.request_id)
            if inbox is not None:
                inbox.append(chunk)
        for chunk in chunks:
            if chunk.finish_reason is not None and not self._engine.is_running(chunk.request_id):
                self._inboxes.pop(chunk.request_id, None)
