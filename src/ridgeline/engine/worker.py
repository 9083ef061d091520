"""The engine process: `python -m ridgeline.engine.worker SOCKET`; the first message on the socket says what to open.

One thread reads messages and puts them into a queue; the main thread runs steps and sends what they make. A step runs
without the GIL, so messages are taken in, and questions answered, while it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

from ridgeline.engine import messages
from ridgeline.engine.client import EngineStatistics
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.errors import OverloadedError, UserError

_PR_SET_PDEATHSIG = 1


class EngineProcess:
    """The loop around an engine.

    Holds: the engine, the socket, the queue between the two threads. Changed by: `run` (main thread) alone; the reader
    thread only fills the queue and answers questions from the statistics that the main thread last put out.
    """

    def __init__(self, engine: Engine, connection: socket.socket, notices: tuple[str, ...]) -> None:
        self._engine = engine
        self._connection = connection
        self._inbox: queue.SimpleQueue[messages.ToEngine | None] = queue.SimpleQueue()
        self._send_lock = threading.Lock()
        self._is_busy_since: float | None = None
        self._statistics: EngineStatistics = engine.statistics()
        self._notices = notices

    def run(self) -> None:
        """Run until the holder says stop or goes away."""
        self._send(messages.Ready(self._engine.model, self._notices))
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            if not self._take_messages():
                return
            if self._engine.has_work():
                self._is_busy_since = time.monotonic()
                chunks = self._engine.step()
                self._is_busy_since = None
                self._statistics = self._engine.statistics()
                if chunks:
                    self._send(messages.Chunks(tuple(chunks)))

    def _take_messages(self) -> bool:
        """Take in what has come, waiting for it when there is nothing else to do; False to end."""
        while True:
            try:
                message = self._inbox.get(block=not self._engine.has_work())
            except queue.Empty:
                return True
            match message:
                case messages.Submit(request):
                    try:
                        self._engine.add(request)
                    except OverloadedError as error:
                        self._send(
                            messages.Refused(
                                request.request_id,
                                error.message,
                                error.hint,
                                retry_after_seconds=error.retry_after_seconds,
                            )
                        )
                    except UserError as error:
                        self._send(messages.Refused(request.request_id, error.message, error.hint, error.field))
                case messages.Cancel(request_id):
                    chunks = self._engine.cancel(request_id)
                    if chunks:
                        self._send(messages.Chunks(tuple(chunks)))
                case messages.Stop() | messages.Open() | None:
                    return False
            self._statistics = self._engine.statistics()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._connection.makefile("rb") as stream:
            while True:
                head = stream.read(messages.LENGTH_BYTES)
                if len(head) < messages.LENGTH_BYTES:
                    break
                size = int.from_bytes(head, "big")
                if size > messages.MAX_FRAME_BYTES:
                    break
                body = stream.read(size)
                if len(body) < size:
                    break
                message = messages.parse_to_engine(body)
                if isinstance(message, messages.Ask):
                    self._send(messages.Answer(message.number, self._statistics_now()))
                else:
                    self._inbox.put(message)
        self._inbox.put(None)

    def _statistics_now(self) -> EngineStatistics:
        since = self._is_busy_since
        waited = 0.0 if since is None else time.monotonic() - since
        return replace(self._statistics, seconds_since_last_step=waited)

    def _send(self, message: messages.FromEngine) -> None:
        with self._send_lock:
            self._connection.sendall(messages.frame(message))


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies (Linux; elsewhere the closed socket ends it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _settings(connection: socket.socket) -> EngineSettings | None:
    """What the holder says that this engine shall be; None if it went away instead."""
    # Not through a buffered file, which would swallow what follows.
    head = connection.recv(messages.LENGTH_BYTES, socket.MSG_WAITALL)
    body = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    message = messages.parse_to_engine(body) if body else None
    return message.settings if isinstance(message, messages.Open) else None


def main() -> int:
    """Open the engine that the holder wants and serve the socket."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _end_with_parent()
    # Ctrl-C in a terminal reaches the whole group; the holder decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = _settings(connection)
    if settings is None:
        return 0
    notices: list[str] = []
    try:
        engine = open_engine(settings, on_notice=notices.append)
    except UserError as error:
        connection.sendall(messages.frame(messages.CannotStart(error.message, error.hint)))
        return 2
    try:
        EngineProcess(engine, connection, tuple(notices)).run()
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        engine.close()
    # Worker threads of native libraries need no orderly end.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
