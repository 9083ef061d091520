"""Where the time of a step goes: each kind of op of a real model's steps on the CPU chip.

    python bench/step_profile.py MODEL.gguf --decode 1@128 1@2048 8@256 32@256 --prefill 512 2048 --kv bf16

Prints, for the fastest of some steps, milliseconds at work and at the barrier before it, how far apart threads ended,
share and (for products) GB/s of weights per kind of op, and the whole decode step against the loop that only reads
memory, run before and after.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.chips.cpu import CpuChip, _native
from ridgeline.chips.cpu.compiled import CpuCompiledStep, RecordTime
from ridgeline.model.load import load_model, step_function
from ridgeline.ops.chip import HostStep
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from ridgeline.quant.formats import BY_GGUF_TYPE
from ridgeline.weights.open import open_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model on a chip, and pages for all cases."""

    chip: CpuChip
    compiled: CpuCompiledStep
    tokens: list[int]
    pages_each: int
    chunk_tokens: int

    def part(self, sequence: int, first: int, end: int) -> StepPart:
        """Tokens [first, end) of a sequence."""
        page_ids = list(range(sequence * self.pages_each, (sequence + 1) * self.pages_each))
        own = self.tokens[sequence * 1000 + first : sequence * 1000 + end]
        return StepPart(token_ids=own, start=first, page_ids=page_ids, place=sequence, num_logit_rows=1)

    def prompt(self, sequence: int, num_tokens: int) -> list[HostStep]:
        """The steps of a prompt, in chunks."""
        starts = range(0, num_tokens, self.chunk_tokens)
        return [host_step([self.part(sequence, first, min(first + self.chunk_tokens, num_tokens))]) for first in starts]

    def decode(self, batch: int, position: int) -> list[HostStep]:
        """One step of `batch` sequences."""
        return [host_step([self.part(n, position, position + 1) for n in range(batch)])]

    def seconds(self, steps: list[HostStep]) -> float:
        """What the steps take."""
        before = time.perf_counter()
        for step in steps:
            self.compiled.run(step)
        return time.perf_counter() - before


def main() -> None:
    """Measure each case that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--decode", nargs="*", default=["1@128"], help="batch@context")
    parser.add_argument("--prefill", nargs="*", type=int, default=[512])
    parser.add_argument("--chunk", type=int, default=512, help="most tokens of a prompt in a step")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv", default="bf16")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--brief", action="store_true", help="totals alone")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ridgeline")
    options = parser.parse_args()

    cases = [tuple(int(number) for number in case.split("@")) for case in options.decode]
    bench = loaded(options, cases)
    for num_tokens in options.prefill:
        steps = bench.prompt(0, num_tokens)
        bench.seconds(steps[:1])
        taken = [bench.seconds(steps) for _ in range(3)]
        print(f"\nprefill {num_tokens}: median {1e3 * statistics.median(taken):.1f} ms, ", end="")
        print(f"best {1e3 * min(taken):.1f} ms: {num_tokens / min(taken):.0f} tokens/s")
        table(bench.compiled, lambda index, steps=steps: bench.seconds(steps), 2, options.brief)
    for batch, context in cases:
        decode_case(bench, batch, context, options)


def loaded(options: argparse.Namespace, cases: list[Any]) -> Bench:
    """The model, with pages for the largest case."""
    chip = CpuChip(cache_folder=options.cache, num_threads=options.threads)
    model = load_model(open_checkpoint(options.model), chip)
    longest = max([*options.prefill, *(context + 2 * options.steps + 8 for _, context in cases)])
    batch = max([1, *(batch for batch, _ in cases)])
    pages_each = -(-longest // PAGE_SLOTS)
    limits = StepLimits(
        max_tokens=max(options.chunk, batch),
        max_sequences=batch,
        max_logit_rows=batch,
        max_pages_per_sequence=pages_each,
    )
    pages = chip.allocate_pages(model.page_layout(options.kv), pages_each * batch, limits)
    compiled = chip.compile(step_function(model), pages, limits)
    tokens = np.random.default_rng(1).integers(0, model.spec.vocabulary_size, 1 << 16).tolist()
    return Bench(chip=chip, compiled=compiled, tokens=tokens, pages_each=pages_each, chunk_tokens=options.chunk)


def decode_case(bench: Bench, batch: int, context: int, options: argparse.Namespace) -> None:
    """Steps of `batch` sequences from `context` on."""
    for n in range(batch):
        bench.seconds(bench.prompt(n, context))
    loop = read_rate(bench.chip)
    taken = [bench.seconds(bench.decode(batch, context + index)) for index in range(options.steps)]
    loop = max(loop, read_rate(bench.chip))
    median, best = statistics.median(taken), min(taken)
    print(f"\ndecode at {context}, batch {batch}: median {1e3 * median:.2f} ms, best {1e3 * best:.2f} ms")
    total = table(
        bench.compiled,
        lambda index: bench.seconds(bench.decode(batch, context + options.steps + index)),
        options.steps,
        options.brief,
    )
    print(f"read loop {loop / 1e9:.1f} GB/s; weights {total / 1e6:.1f} MB a step: ", end="")
    print(f"{total / best / 1e9:.1f} GB/s best = {100 * total / best / loop:.1f} %, ", end="")
    print(f"median {100 * total / median / loop:.1f} %; {batch / median:.1f} tokens/s median")


def read_rate(chip: CpuChip) -> float:
    """Bytes a second of the plain read loop."""
    return max(_native.measured_rate(chip._pool, "read", 0.15) for _ in range(3))


def table(compiled: CpuCompiledStep, measure: Callable[[int], object], count: int, is_brief: bool) -> int:
    """Prints each kind of op in the fastest of `count` runs; returns the bytes of weights of a run."""
    runs: list[list[RecordTime]] = []
    for index in range(count):
        compiled.set_timing(True)
        measure(index)
        runs.append(compiled.record_times())
    compiled.set_timing(False)
    times = min(runs, key=lambda run: sum(entry.seconds for entry in run))
    by_kind: dict[str, list[RecordTime]] = defaultdict(list)
    for entry in times:
        formats = "+".join(sorted({BY_GGUF_TYPE[number].name for number in entry.weight_formats}))
        by_kind[f"{entry.kind} {formats}"].append(entry)
    total = sum(entry.seconds for entry in times)
    if not is_brief:
        print(f"  {'':34} {'':4}         {'ms':>9} {'waiting':>9} {'apart':>9} {'share':>7}")
        for kind, entries in sorted(by_kind.items(), key=lambda item: -sum(entry.seconds for entry in item[1])):
            print_row(kind, entries, total)
        waited = sum(sum(entry.wait_seconds) / len(entry.wait_seconds) for entry in times)
        print(f"  {'sum':34} {len(times):4} records {1e3 * (total - waited):9.3f} {1e3 * waited:9.3f}")
    return sum(entry.weight_bytes for entry in times)


def print_row(kind: str, entries: list[RecordTime], total: float) -> None:
    """Milliseconds at work and waiting before (means over threads), and of the slowest thread beyond the mean."""
    busy = sum(sum(entry.busy_seconds) / len(entry.busy_seconds) for entry in entries)
    waited = sum(sum(entry.wait_seconds) / len(entry.wait_seconds) for entry in entries)
    apart = sum(max(entry.busy_seconds) for entry in entries) - busy
    weight_bytes = sum(entry.weight_bytes for entry in entries)
    rate = f"{weight_bytes / busy / 1e9:6.1f} GB/s" if weight_bytes else ""
    print(f"  {kind:34} {len(entries):4} records {1e3 * busy:9.3f} {1e3 * waited:9.3f} {1e3 * apart:9.3f} ", end="")
    print(f"{100 * (busy + waited) / total:5.1f} %  {rate}")


if __name__ == "__main__":
    main()
