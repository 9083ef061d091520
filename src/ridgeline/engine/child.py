"""The engine process as its holder sees it: started, told what to open, killed.

Knows: how to start `ridgeline.engine.worker`. Does not know: what is said over the socket. Imports next to nothing, so
that whoever will hold the engine can start it before importing the rest of itself.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any


class EngineChild:
    """One engine process. Holds: the process, and `connection`, the holder's end of the socket.

    The process waits for `messages.Open` on that socket, and ends when the socket is closed.
    """

    def __init__(self) -> None:
        """Start the process."""
        self.connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ridgeline.engine.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal reaches a whole group; the holder alone decides when this process ends.
                process_group=0,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def process_id(self) -> int:
        """The system's number of the process."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self._process.kill()

    def __enter__(self) -> EngineChild:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.connection.close()
        self.kill()
        self._process.wait()
