"""`ridgeline bench`: prefill, decode and batches of one model, and the share of the roofline that each reached.

Every case runs through the engine as a request would; prompts are random tokens, and answers run to their full length.
A share is the time that the steps would take at the chip's measured peaks over the time that they took.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ridgeline.chips.cpu.roofline import forget
from ridgeline.cli.options import engine_settings
from ridgeline.cli.report import origin, write_report
from ridgeline.cli.roofline_plot import draw
from ridgeline.cli.words import bytes_in_words, table
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.errors import UserError
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.weights.cache_folder import default_cache_folder
from ridgeline.weights.pull import resolve_model

SEED = 20260101


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured: `num_requests` prompts at once; either their prefill or the tokens after it count."""

    name: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    """1 measures the prefill."""


CASES = (
    Case(name="prefill 512", num_requests=1, prompt_tokens=512, output_tokens=1),
    Case(name="prefill 2048", num_requests=1, prompt_tokens=2048, output_tokens=1),
    Case(name="decode @128", num_requests=1, prompt_tokens=128, output_tokens=128),
    Case(name="decode @2048", num_requests=1, prompt_tokens=2048, output_tokens=64),
    Case(name="batch 8, prompt 256", num_requests=8, prompt_tokens=256, output_tokens=64),
    Case(name="batch 32, prompt 256", num_requests=32, prompt_tokens=256, output_tokens=32),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One round of one case."""

    tokens_per_second: float
    roofline_share: float
    prediction_error: float
    """Predicted over measured seconds, less 1."""


def run(options: argparse.Namespace) -> int:
    """Measure every case that fits, print a table, write and draw what was asked for."""
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}; it must be at least 1", field="rounds")
    if options.draft_model is not None:
        raise UserError(
            "bench measures steps of one token a request; a draft model has no part in it", field="draft_model"
        )
    path = resolve_model(options.model)
    # What was measured at some first start may have met a busy machine; a share needs the roofline of now.
    forget(default_cache_folder())
    begin = time.perf_counter()
    # A model's answer to random tokens soon repeats itself, so guesses would flatter it.
    settings = replace(engine_settings(options, str(path)), speculation=False)
    engine = open_engine(settings, on_notice=lambda text: print(f"note: {text}", file=sys.stderr))
    try:
        open_seconds = time.perf_counter() - begin
        model = engine.model
        print(f"{model.name}: {model.family}, {model.format_name}, {bytes_in_words(model.weight_bytes)}; "
              f"opened and measured in {open_seconds:.2f} s\n{model.chip}", file=sys.stderr)  # fmt: skip
        results = measure_all(engine, _fitting(engine), options.rounds)
    finally:
        engine.close()
    print(_shown(results))
    report = {
        **origin(model.chip),
        "model": asdict(model),
        "open_seconds": open_seconds,
        "cases": [{**asdict(case), "rounds": [asdict(entry) for entry in rounds]} for case, rounds in results],
    }
    if options.json is not None:
        write_report(options.json, report)
    if options.plot is not None:
        draw(report, options.plot)
    return 0


def measure_all(engine: Engine, cases: Sequence[Case], num_rounds: int) -> list[tuple[Case, list[Measurement]]]:
    """Every case in every round, round by round, so that a slow minute of the machine spoils no single case."""
    random = np.random.default_rng(SEED)
    rounds: dict[str, list[Measurement]] = {case.name: [] for case in cases}
    for number in range(num_rounds + 1):
        for case in cases:
            if number == 0:
                print(f"\rwarming up: {case.name}\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr)
            measurement = measure(engine, case, random)
            if number > 0:  # the first round warms caches and the prediction
                rounds[case.name].append(measurement)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return [(case, rounds[case.name]) for case in cases]


def measure(engine: Engine, case: Case, random: np.random.Generator) -> Measurement:
    """One round of one case."""
    sampling = SamplingParams(temperature=0.0, max_tokens=case.output_tokens, ignore_eos=True)
    engine.forget_prefixes()
    for number in range(case.num_requests):
        prompt = random.integers(0, engine.model.vocabulary_size, case.prompt_tokens)
        engine.add(
            Request(request_id=f"bench-{number}", prompt_token_ids=tuple(prompt.tolist()), sampling=sampling, seed=0)
        )
    is_prefill = case.output_tokens == 1
    begin, before, num_tokens = time.perf_counter(), engine.statistics(), 0
    has_begun: set[str] = set()
    while engine.has_work():
        chunks = engine.step()
        if is_prefill:
            continue
        if len(has_begun) == case.num_requests:
            num_tokens += sum(len(chunk.token_ids) for chunk in chunks)
            continue
        has_begun.update(chunk.request_id for chunk in chunks)
        # Until every request has its first token, the steps read prompts; the clock of the decode starts after them.
        begin, before = time.perf_counter(), engine.statistics()
    seconds, after = time.perf_counter() - begin, engine.statistics()
    if is_prefill:
        num_tokens = case.num_requests * case.prompt_tokens
    measured_seconds = after.measured_step_seconds - before.measured_step_seconds
    return Measurement(
        tokens_per_second=num_tokens / seconds,
        roofline_share=(after.roofline_step_seconds - before.roofline_step_seconds) / seconds,
        prediction_error=(after.predicted_step_seconds - before.predicted_step_seconds) / measured_seconds - 1.0,
    )


def _fitting(engine: Engine) -> list[Case]:
    cases = []
    for case in CASES:
        tokens = case.prompt_tokens + case.output_tokens
        fits = tokens <= engine.model.context_tokens and tokens * case.num_requests <= (
            engine.model.num_pages * engine.model.page_slots // 2
        )
        if fits:
            cases.append(case)
        else:
            print(f"note: {case.name} does not fit into context and pages; left out", file=sys.stderr)
    return cases


def _shown(results: Sequence[tuple[Case, Sequence[Measurement]]]) -> str:
    rows = []
    for case, rounds in results:
        rates = [entry.tokens_per_second for entry in rounds]
        rows.append(
            (
                case.name,
                f"{statistics.median(rates):.1f}",
                f"{min(rates):.1f}",
                f"{max(rates):.1f}",
                f"{statistics.median(entry.roofline_share for entry in rounds):.0%}",
                f"{statistics.median(entry.prediction_error for entry in rounds):+.0%}",
            )
        )
    return table(("CASE", "TOKENS/S", "MIN", "MAX", "ROOFLINE", "PREDICTED"), rows)
