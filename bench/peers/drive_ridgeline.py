"""Ridgeline, driven by `bench/peers.py` through its engine, as an offline caller would.

Without speculation: what follows random prompts repeats itself, so guesses would be right more often than in any text.
"""

from __future__ import annotations

import time
from itertools import count

import protocol

from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import SamplingParams


class RidgelineAdapter:
    """Holds the engine."""

    _engine: Engine

    def __init__(self) -> None:
        self._numbers = count()

    def load(self, *, model: str, num_threads: int, context_tokens: int, num_sequences: int) -> None:
        settings = EngineSettings(
            model=model,
            num_threads=num_threads,
            context_tokens=context_tokens,
            goal_seconds_per_token=float("inf"),
            speculation=False,
        )
        self._engine = open_engine(settings)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float | None]:
        self._engine.forget_prefixes()
        sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        first_seconds = None
        begin = time.perf_counter()
        for prompt in prompts:
            self._add(prompt, sampling)
        while self._engine.has_work():
            chunks = self._engine.step()
            if chunks and len(prompts) == 1 and first_seconds is None:
                first_seconds = time.perf_counter() - begin
        return time.perf_counter() - begin, first_seconds

    def loss(self, windows: list[list[int]]) -> tuple[float, int]:
        sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=0)
        nats, tokens = 0.0, 0
        for window in windows:
            self._engine.forget_prefixes()
            self._add(window, sampling)
            while self._engine.has_work():
                for chunk in self._engine.step():
                    entries = (chunk.prompt_logprobs or ())[len(window) // 2 :]
                    nats -= sum(entry.logprob for entry in entries if entry is not None)
                    tokens += len(entries)
        return nats, tokens

    def _add(self, prompt: list[int], sampling: SamplingParams) -> None:
        name = f"bench-{next(self._numbers)}"
        self._engine.add(Request(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling, seed=0))


if __name__ == "__main__":
    protocol.serve(RidgelineAdapter())
