"""How `bench/peers.py` talks with the process that holds an engine: a line of JSON asks, a line of JSON answers.

    {"ask": "load", "model": PATH, "num_threads": 2, "context_tokens": 4096, "num_sequences": 32}
        -> {"seconds": ...}
    {"ask": "generate", "prompts": [[ids]...], "new_tokens": n}
        -> {"seconds": all new tokens of all prompts, from nothing, "first_seconds": until each prompt has its first}
    {"ask": "loss", "windows": [[ids]...]}
        -> {"nats": sum over the second half of each window, "tokens": how many}
    {"ask": "quit"}

Only the standard library: every peer's own interpreter imports this file. `first_seconds` is null where the engine
mixes the reading of prompts with the writing of answers; who asks then takes another run, of one new token.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Protocol

TokenIds = list[int]


class Adapter(Protocol):
    """An engine, as a benchmark sees it. Ends of sequences are ignored, prompts share nothing with earlier ones."""

    def load(self, *, model: str, num_threads: int, context_tokens: int, num_sequences: int) -> None:
        """Open the model for contexts of up to `context_tokens` tokens, up to `num_sequences` at once."""

    def generate(self, prompts: list[TokenIds], new_tokens: int) -> tuple[float, float | None]:
        """(seconds of all, seconds until every prompt has its first token or None)."""

    def loss(self, windows: list[TokenIds]) -> tuple[float, int]:
        """(nats, tokens) of the second half of each window, given all that comes before in it."""


def serve(adapter: Adapter) -> None:
    """Answer what is asked until the asker is gone."""
    # What an engine prints goes to stderr; the answers keep the pipe for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        kind = asked.pop("ask")
        if kind == "quit":
            return
        try:
            answer = _answer(adapter, kind, asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(adapter: Adapter, kind: str, asked: dict[str, Any]) -> dict[str, Any]:
    if kind == "load":
        begin = time.perf_counter()
        adapter.load(**asked)
        return {"seconds": time.perf_counter() - begin}
    if kind == "generate":
        seconds, first_seconds = adapter.generate(asked["prompts"], asked["new_tokens"])
        return {"seconds": seconds, "first_seconds": first_seconds}
    if kind == "loss":
        nats, tokens = adapter.loss(asked["windows"])
        return {"nats": nats, "tokens": tokens}
    raise ValueError(f"nobody knows what {kind!r} asks")
