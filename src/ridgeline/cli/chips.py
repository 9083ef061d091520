"""`ridgeline chips`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from ridgeline.chips.cpu.chip import ARITHMETIC, CpuChip
from ridgeline.chips.cpu.roofline import forget
from ridgeline.chips.published import published_chips
from ridgeline.cli.words import bytes_in_words, table
from ridgeline.ops.chip import Arithmetic
from ridgeline.weights.cache_folder import default_cache_folder


def run(options: argparse.Namespace) -> int:
    """Print this machine's measured roofline, then the published ones."""
    folder = default_cache_folder()
    if options.measure:
        forget(folder)
    print("measuring this machine unless it is known already ...", file=sys.stderr)
    chip = CpuChip(cache_folder=folder)
    try:
        facts = chip.facts()
    finally:
        chip.close()
    for notice in chip.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(f"{facts.name}: {facts.description}\n")
    rows = [(facts.name, "measured", bytes_in_words(facts.memory_bytes),
             *_peaks(facts.bandwidth_bytes_per_second, facts.operations_per_second))]  # fmt: skip
    for published in published_chips():
        entry = published.facts()
        peaks = _peaks(entry.bandwidth_bytes_per_second, entry.operations_per_second)
        rows.append((published.name, "published", bytes_in_words(entry.memory_bytes), *peaks))
    print(table(("CHIP", "SOURCE", "MEMORY", "GB/s", "INT8 TOPS", "BF16 TFLOPS", "FP32 TFLOPS"), rows))
    return 0


def _peaks(bandwidth_bytes_per_second: float, operations_per_second: Mapping[Arithmetic, float]) -> tuple[str, ...]:
    peaks = [operations_per_second.get(kind) for kind in ARITHMETIC]
    shown = [f"{peak / 1e12:.2f}" if peak is not None else "-" for peak in peaks]
    return (f"{bandwidth_bytes_per_second / 1e9:.0f}", *shown)
