"""Where the time of a step goes: each kind of op of a real model's decode and prefill steps on the CPU chip.

    python bench/step_profile.py MODEL.gguf --context 128 --prefill 512 --batch 1 --kv bf16

Prints, for the fastest of some steps, milliseconds, share and (for products) GB/s of weights per kind of op, and the
whole step against the loop that only reads memory, run before and after.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from ridgeline.chips.cpu import CpuChip, _native
from ridgeline.chips.cpu.compiled import CpuCompiledStep
from ridgeline.model.load import load_model, step_function
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from ridgeline.quant.formats import BY_GGUF_TYPE
from ridgeline.weights.open import open_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv", default="bf16")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ridgeline")
    options = parser.parse_args()

    chip = CpuChip(cache_folder=options.cache, num_threads=options.threads)
    start = time.perf_counter()
    checkpoint = open_checkpoint(options.model)
    opened = time.perf_counter()
    model = load_model(checkpoint, chip)
    adopted = time.perf_counter()
    context = max(options.context + options.steps + 8, options.prefill)
    pages_each = -(-context // PAGE_SLOTS)
    limits = StepLimits(
        max_tokens=max(options.prefill, options.batch),
        max_sequences=max(options.batch, 1),
        max_logit_rows=max(options.batch, 1),
        max_pages_per_sequence=pages_each,
    )
    pages = chip.allocate_pages(model.page_layout(options.kv), pages_each * options.batch, limits)
    compiled = chip.compile(step_function(model), pages, limits)
    done = time.perf_counter()
    print(f"open {1e3 * (opened - start):.0f} ms, adopt {1e3 * (adopted - opened):.0f} ms, ", end="")
    print(f"pages and compile {1e3 * (done - adopted):.0f} ms")
    run(options, chip, model, compiled, pages_each)


def run(options, chip, model, compiled, pages_each) -> None:
    tokens = np.random.default_rng(1).integers(0, model.spec.vocabulary_size, 1 << 16).tolist()

    def part(n: int, first: int, end: int):
        page_ids = list(range(n * pages_each, (n + 1) * pages_each))
        own = tokens[n * 1000 + first : n * 1000 + end]
        return StepPart(token_ids=own, start=first, page_ids=page_ids, place=n, num_logit_rows=1)

    def measured(make_parts, count: int) -> tuple[float, float]:
        walls, seconds = [], []
        for index in range(count):
            step = host_step(make_parts(index))
            before = time.perf_counter()
            compiled.run(step)
            walls.append(time.perf_counter() - before)
            seconds.append(compiled.seconds())
        return statistics.median(walls), min(walls)

    def prefill(index: int):
        return [part(0, 0, options.prefill)]

    def decode(index: int):
        return [part(n, options.context + index, options.context + index + 1) for n in range(options.batch)]

    if options.prefill:
        measured(prefill, 1)
        median, best = measured(prefill, 3)
        print(f"\nprefill {options.prefill}: median {1e3 * median:.1f} ms, best {1e3 * best:.1f} ms: ", end="")
        print(f"{options.prefill / best:.0f} tokens/s")
        table(compiled, lambda: measured(prefill, 1), 3)
    for n in range(options.batch):
        limit = max(options.prefill, options.batch)
        for first in range(0, options.context, limit):
            compiled.run(host_step([part(n, first, min(first + limit, options.context))]))
    measured(decode, 3)
    loop = read_rate(chip)
    median, best = measured(decode, options.steps)
    loop = max(loop, read_rate(chip))
    print(f"\ndecode at {options.context}, batch {options.batch}: ", end="")
    print(f"median {1e3 * median:.2f} ms, best {1e3 * best:.2f} ms")
    total = table(compiled, lambda: measured(decode, 1), options.steps)
    print(f"read loop {loop / 1e9:.1f} GB/s; weights {total / 1e6:.1f} MB a step: ", end="")
    print(f"{total / best / 1e9:.1f} GB/s best = {100 * total / best / loop:.1f} %, ", end="")
    print(f"median {100 * total / median / loop:.1f} %; {options.batch / median:.1f} tokens/s median")


def read_rate(chip: CpuChip) -> float:
    return max(_native.measured_rate(chip._pool, "read", 0.15) for _ in range(3))


def table(compiled: CpuCompiledStep, measure, count: int) -> int:
    """Prints each kind of op in the fastest of `count` steps; returns the bytes of weights of a step."""
    runs = []
    for _ in range(count):
        compiled.set_timing(True)
        measure()
        runs.append(compiled.record_times())
    compiled.set_timing(False)
    times = min(runs, key=lambda run: sum(entry.seconds for entry in run))
    by_kind: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0])
    for entry in times:
        formats = "+".join(sorted({BY_GGUF_TYPE[number].name for number in entry.weight_formats}))
        row = by_kind[f"{entry.kind} {formats}"]
        row[0] += entry.seconds
        row[1] += entry.weight_bytes
        row[2] += 1
    total = sum(row[0] for row in by_kind.values())
    for kind, (seconds, weight_bytes, records) in sorted(by_kind.items(), key=lambda item: -item[1][0]):
        rate = f"{weight_bytes / seconds / 1e9:6.1f} GB/s" if weight_bytes else ""
        print(f"  {kind:34} {records:4} records {1e3 * seconds:9.3f} ms {100 * seconds / total:5.1f} %  {rate}")
    print(f"  {'sum':34} {len(times):4} records {1e3 * total:9.3f} ms")
    return sum(row[1] for row in by_kind.values())


if __name__ == "__main__":
    main()
