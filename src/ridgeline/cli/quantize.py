"""`ridgeline quantize`: a model file made smaller, with a report of what that cost and what it brings."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ridgeline.cli.report import origin, write_report
from ridgeline.cli.words import bytes_in_words, table
from ridgeline.shrink.job import Report, Settings, run_job
from ridgeline.weights.cache_folder import default_cache_folder
from ridgeline.weights.pull import resolve_model


def run(options: argparse.Namespace) -> int:
    """Write the smaller file, measure both, print the report, and keep it as JSON if asked to."""
    settings = Settings(
        source=resolve_model(options.source),
        output=Path(options.output),
        format_name=options.format,
        text=None if options.text is None else Path(options.text),
        calibration=options.calibration if options.calibration in ("own", "none") else Path(options.calibration),
        may_replace=options.force,
        num_threads=options.threads,
        cache_folder=default_cache_folder(),
    )
    begin = time.perf_counter()
    report = run_job(settings, _stage)
    seconds = time.perf_counter() - begin
    print(shown(report))
    print(f"\n{report.output} in {seconds:.0f} s", file=sys.stderr)
    if options.json is not None:
        write_report(options.json, as_json(report, seconds))
    return 0


@contextlib.contextmanager
def _stage(name: str, num_pieces: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    with tqdm(total=num_pieces, desc=name, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as bar:

        def advance() -> None:
            bar.update(1)

        yield advance


def shown(report: Report) -> str:
    """The report as a person reads it."""
    source, output, quality = report.source_facts, report.output_facts, report.quality
    rows = [
        ("file", bytes_in_words(report.source_file_bytes), bytes_in_words(report.output_file_bytes),
         _ratio(report.output_file_bytes, report.source_file_bytes)),
        ("weights read per token", bytes_in_words(source.touched_bytes), bytes_in_words(output.touched_bytes),
         _ratio(output.touched_bytes, source.touched_bytes)),
        ("perplexity", f"{quality.source_perplexity:.3f}", f"{quality.perplexity:.3f}",
         f"{quality.perplexity_ratio:.4f} ± {quality.perplexity_ratio_error:.4f}"),
        ("decode, predicted", *_rates(source.predicted.decode, output.predicted.decode)),
        ("decode, measured", *_rates(source.measured.decode, output.measured.decode)),
        ("prefill, predicted", *_rates(source.predicted.prefill, output.predicted.prefill)),
        ("prefill, measured", *_rates(source.measured.prefill, output.measured.prefill)),
    ]  # fmt: skip
    lines = [table(("", "SOURCE", report.mix.upper(), "RATIO"), rows), ""]
    lines.append(
        f"answers against the source's: KL {quality.mean_kl:.5f} nats a token (99th percentile {quality.p99_kl:.4f}), "
        f"same likeliest token {quality.same_top_share:.1%} ± {quality.same_top_share_error:.1%}"
    )
    lines.append(f"over {quality.num_positions} tokens of {report.text}; tokens a second on {report.chip}")
    parts = ", ".join(f"{name} {bytes_in_words(count)}" for name, count in report.bytes_by_format.items())
    lines.append(f"weights: {parts}")
    lines += [f"note: {sentence}" for sentence in report.stand_ins]
    return "\n".join(lines)


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.3f}"


def _rates(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.1f} tok/s", f"{after:.1f} tok/s", _ratio(after, before)


def as_json(report: Report, seconds: float) -> dict[str, Any]:
    """Every figure, with the machine's facts."""
    return {
        **origin(report.chip),
        "source": Path(report.source).name,
        "output": Path(report.output).name,
        "mix": report.mix,
        "text": report.text,
        "seconds": seconds,
        "file_bytes": {"source": report.source_file_bytes, "output": report.output_file_bytes},
        "quality": asdict(report.quality),
        "source_facts": asdict(report.source_facts),
        "output_facts": asdict(report.output_facts),
        "bytes_by_format": dict(report.bytes_by_format),
        "stand_ins": list(report.stand_ins),
        "tensors": {choice.name: [choice.source.name, choice.chosen.name] for choice in report.choices},
    }
