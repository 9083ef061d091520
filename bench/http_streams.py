"""Streams of completions from an OpenAI-compatible server, at once: tokens a second, and how long the first took."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

GIVE_UP_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """One measurement."""

    seconds: float
    """Until the last stream ended."""
    first_seconds: Sequence[float]
    """Of each stream, until its first token."""


class Server:
    """A server's process, ready to answer. A context: leaving it ends the process."""

    def __init__(self, command: Sequence[str], port: int, variables: Mapping[str, str], pin: Callable[[], None]):
        self._port = port
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=dict(variables), preexec_fn=pin,
        )  # fmt: skip

    def __enter__(self) -> Server:
        begin = time.perf_counter()
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() - begin > GIVE_UP_SECONDS:
                self.__exit__()
                raise ValueError(f"{self._process.args!r} did not answer")
            time.sleep(POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def streams(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> StreamTimes:
        """Ask for all prompts at once."""
        return asyncio.run(self._streams(prompts, new_tokens))

    async def _streams(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> StreamTimes:
        begin = time.perf_counter()
        ends = await asyncio.gather(*(self._stream(prompt, new_tokens) for prompt in prompts))
        return StreamTimes(seconds=time.perf_counter() - begin, first_seconds=[first - begin for first in ends])

    async def _stream(self, prompt: Sequence[int], new_tokens: int) -> float:
        """When the first token came. Raises ValueError unless all the tokens came.

        Drawn at temperature 1, since the greedy continuation of random tokens repeats itself and is easily guessed.
        """
        body = {"prompt": list(prompt), "max_tokens": new_tokens, "temperature": 1.0, "seed": 1, "stream": True,
                "ignore_eos": True, "stream_options": {"include_usage": True}}  # fmt: skip
        content = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}connection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
        first, written = None, 0
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            if first is None:
                first = time.perf_counter()
            usage = json.loads(line[6:]).get("usage")
            written = usage["completion_tokens"] if usage else written
        writer.close()
        if first is None or written != new_tokens:
            raise ValueError(f"{written} tokens came instead of {new_tokens}")
        return first

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                return b" 200 " in connection.recv(1 << 16).split(b"\r\n")[0]
        except OSError:
            return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
