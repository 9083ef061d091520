"""What the host does around a step: microseconds of Python a step, beside so many sequences that decode.

    python bench/host_cost.py MODEL.gguf --sequences 1 8 32

In place: the wall time of `Engine.step` less the kernels' own, while steps really run, so that Python finds its caches
emptied by weights. Alone: the same steps with the kernels' call answered from memory.
"""

from __future__ import annotations

import argparse
import ast
import cProfile
import pstats
import statistics
import time
from pathlib import Path
from typing import Any

from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.request import Request, SamplingParams

PROMPT_TOKENS = 64
WARM_TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--sampling", type=ast.literal_eval, default={"temperature": 0.0})
    parser.add_argument("--speculation", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profile", action="store_true", help="of the steps alone")
    options = parser.parse_args()
    settings = EngineSettings(
        model=str(options.model),
        context_tokens=1024,
        speculation=options.speculation,
        num_threads=options.threads,
    )
    engine = open_engine(settings)
    for count in options.sequences:
        in_place = measured(engine, count, options)
        compiled = engine._runner._choosing
        answered = Answered(compiled)
        engine._runner._choosing = answered
        alone = measured(engine, count, options, profile=options.profile)
        engine._runner._choosing = compiled
        print(f"{count:3} sequences: in place median {told(in_place)}, alone median {told(alone)} us")
    engine.close()


def told(seconds: list[float]) -> str:
    """Median and best in microseconds."""
    return f"{1e6 * statistics.median(seconds):.0f} (best {1e6 * min(seconds):.0f})"


class Answered:
    """A compiled step that runs once for each number of rows, and then gives the same answer again."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._answers: dict[tuple[int, int], Any] = {}

    def run_and_choose(self, step: Any, choices_B: bytes, adjustments: bytes) -> Any:
        key = (len(step.token_ids_T), len(step.logit_rows_B))
        if key not in self._answers:
            self._answers[key] = self._compiled.run_and_choose(step, choices_B, adjustments)
        return self._answers[key]


def measured(engine: Engine, count: int, options: argparse.Namespace, *, profile: bool = False) -> list[float]:
    """Seconds of each step that are not the kernels'."""
    for number in range(count):
        sampling = SamplingParams(max_tokens=options.steps + 4 * WARM_TOKENS, ignore_eos=True, **options.sampling)
        prompt = tuple(range(100 + number, 100 + number + PROMPT_TOKENS))
        engine.add(Request(request_id=str(number), prompt_token_ids=prompt, sampling=sampling, seed=number))
    num_told = 0
    while num_told < WARM_TOKENS * count:
        num_told += sum(len(chunk.token_ids) for chunk in engine.step())
    is_alone = isinstance(engine._runner._choosing, Answered)
    host_seconds = []
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    for _ in range(options.steps):
        started = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - started
        host_seconds.append(seconds if is_alone else seconds - engine._runner.seconds())
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(24)
    for number in range(count):
        engine.cancel(str(number))
    return host_seconds


if __name__ == "__main__":
    main()
