"""Ridgeline against llama.cpp on the same GGUF files, in turns, with the machine's own read loop in every round.

    python bench/against_llama_cpp.py --tools FOLDER MODEL.gguf ... [--rounds 5] [--json FILE]

FOLDER has `llama-bench` and `llama-batched-bench`, built natively (Release, GGML_NATIVE=ON) from the source package of
`llama-cpp-python`. Both sides run with the same number of threads, one after another, nothing else beside them. A round
of one side in which other processes took more than MAX_FOREIGN_SHARE of the CPUs is marked and left out of the medians.

The cases are llama.cpp's own: prefill of 512 tokens, 128 tokens after a context of 128, and 8 sequences with prompts
of 256 and 64 new tokens. Prompts are random tokens; Ridgeline runs through its engine, llama.cpp through its tools.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from machine import facts, foreign_share, read_bytes_per_second
from ridgeline.cli.bench import Case, measure
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings

MAX_FOREIGN_SHARE = 0.08
CASES = (
    Case(name="prefill 512", num_requests=1, prompt_tokens=512, output_tokens=1),
    Case(name="decode @128", num_requests=1, prompt_tokens=128, output_tokens=128),
    Case(name="batch 8", num_requests=8, prompt_tokens=256, output_tokens=64),
)
_BATCH_ROW = re.compile(r"^\|\s*256 \|\s*64 \|\s*8 \|")


def ridgeline_rates(engine: Engine, random: np.random.Generator) -> dict[str, float]:
    """Tokens per second of each case."""
    return {case.name: measure(engine, case, random).tokens_per_second for case in CASES}


def llama_cpp_rates(tools: Path, model: Path, num_threads: int) -> dict[str, float]:
    """Tokens per second of each case, by llama.cpp's own tools."""

    def bench(*arguments: str) -> float:
        command = [str(tools / "llama-bench"), "-m", str(model), "-t", str(num_threads), "-fa", "1", "-r", "2",
                   "-o", "json", *arguments]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)[0]["avg_ts"])

    batched = subprocess.run(
        [str(tools / "llama-batched-bench"), "-m", str(model), "-t", str(num_threads), "-fa", "1", "-c", "4096",
         "-b", "2048", "-ub", "512", "-npp", "256", "-ntg", "64", "-npl", "8"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (row,) = [line for line in batched.stdout.splitlines() if _BATCH_ROW.match(line)]
    return {
        "prefill 512": bench("-p", "512", "-n", "0"),
        "decode @128": bench("-p", "0", "-n", "128", "-d", "128"),
        "batch 8": float(row.split("|")[8]),
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    num_threads = len(os.sched_getaffinity(0))
    report: dict[str, Any] = {
        "machine": facts(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "models": [],
    }
    for model in options.models:
        rounds: list[dict[str, Any]] = []
        random = np.random.default_rng(7)
        for number in range(options.rounds):

            def ours() -> dict[str, float]:
                # Opened anew each time, so that nobody's threads or memory are there while the other side runs.
                engine = open_engine(EngineSettings(model=str(model), context_tokens=4096, speculation=False))  # noqa: B023
                try:
                    measure(engine, CASES[0], random)  # noqa: B023
                    return ridgeline_rates(engine, random)  # noqa: B023
                finally:
                    engine.close()

            sides: dict[str, Callable[[], dict[str, float]]] = {
                "ridgeline": ours,
                "llama.cpp": lambda: llama_cpp_rates(options.tools, model, num_threads),  # noqa: B023
            }
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            entry: dict[str, Any] = {"read_bytes_per_second": read_bytes_per_second(num_threads)}
            for side in order:
                with foreign_share() as foreign:
                    entry[side] = sides[side]()
                entry[f"{side} foreign share"] = foreign.share
            rounds.append(entry)
            print(json.dumps({"model": model.name, "round": number, **entry}), file=sys.stderr)
        report["models"].append({"model": model.name, "rounds": rounds, "ratios": shown(model.name, rounds)})
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def shown(name: str, rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Print the medians of the clean rounds and return Ridgeline over llama.cpp."""
    ratios = {}
    print(f"\n{name}\n{'case':<14}{'ridgeline':>22}{'llama.cpp':>22}{'ratio':>8}")
    for case in CASES:
        texts, medians = [], []
        for side in ("ridgeline", "llama.cpp"):
            clean = [r[side][case.name] for r in rounds if r[f"{side} foreign share"] <= MAX_FOREIGN_SHARE]
            rates = clean or [r[side][case.name] for r in rounds]
            medians.append(statistics.median(rates))
            mark = "" if clean else " contended"
            texts.append(f"{medians[-1]:.1f} [{min(rates):.0f}-{max(rates):.0f}]{mark}")
        ratios[case.name] = medians[0] / medians[1]
        print(f"{case.name:<14}{texts[0]:>22}{texts[1]:>22}{ratios[case.name]:>8.2f}")
    loop = statistics.median(r["read_bytes_per_second"] for r in rounds)
    print(f"read loop {loop / 1e9:.1f} GB/s")
    return ratios


if __name__ == "__main__":
    sys.exit(main())
