"""How the CPU chip grows with threads, on a model of random weights in the shape of Qwen2.5-0.5B, in Q4_0.

    python bench/thread_scaling.py [--threads 1 2 4 8 16] [--json bench/results/threads-NAME.json]

For each number of threads: the roofline as measured with them, prefill of 512 tokens (the best of three), decode after
it and decode of 8 sequences at once (medians), in tokens per second, and whether the logits have the bits of the first
row. No file is needed, so it runs on any machine at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from machine import facts
from ridgeline.chips.cpu import CpuChip
from ridgeline.model.decoder import decoder_step
from ridgeline.model.spec import DecoderSpec, LayerSpec, RopeSpec
from ridgeline.model.tensors import decoder_weights, tensor_shapes
from ridgeline.ops.chip import PageLayout, TensorSource
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import StepLimits
from ridgeline.quant.formats import F32, Q4_0
from ridgeline.quant.tensor import HostTensor

LAYER = LayerSpec(
    num_query_heads=14,
    num_kv_heads=2,
    head_width=64,
    attention_scale=0.125,
    rope=0,
    mlp_width=4864,
    has_attention_bias=True,
)
SPEC = DecoderSpec(
    family="qwen2",
    vocabulary_size=151936,
    width=896,
    layers=(LAYER,) * 24,
    ropes=(RopeSpec(frequencies=tuple(1e6 ** -(index / 32) for index in range(32))),),
    norm_epsilon=1e-6,
    context_tokens=4096,
    is_output_tied=True,
)
PROMPT_TOKENS, BATCH, PAGES_EACH = 512, 8, 16
SCALE = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    sources = {name: random_source(random, name, shape) for name, shape in tensor_shapes(SPEC).items()}
    rows: list[dict[str, Any]] = []
    expected: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        for num_threads in options.threads:
            row, logits = measured(num_threads, sources, Path(folder))
            expected = expected or logits
            row["same_bits"] = all(bool((one == other).all()) for one, other in zip(logits, expected, strict=True))
            print(json.dumps(row), flush=True)
            rows.append(row)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1) + "\n")


def random_source(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> TensorSource:
    if len(shape) == 2:
        blocks = random.integers(0, 256, (shape[0] * shape[1] // 32, Q4_0.block_bytes), dtype=np.uint8)
        blocks[:, :2] = SCALE
        tensor = HostTensor(name=name, shape=shape, format=Q4_0, data=blocks.reshape(-1))
    else:
        values = random.standard_normal(shape) * 0.1 + (0.0 if name.endswith("bias") else 1.0)
        if name.startswith("ropes."):
            values = np.array(SPEC.ropes[0].frequencies)
        data = values.astype(np.float32).view(np.uint8).reshape(-1)
        tensor = HostTensor(name=name, shape=shape, format=F32, data=data)
    return TensorSource(name=name, shape=shape, format_name=tensor.format.name, read=lambda: tensor)


def measured(
    num_threads: int, sources: Mapping[str, TensorSource], folder: Path
) -> tuple[dict[str, Any], list[np.ndarray]]:
    chip = CpuChip(cache_folder=folder, num_threads=num_threads)
    roofline = chip.facts()
    limits = StepLimits(
        max_tokens=PROMPT_TOKENS, max_sequences=BATCH, max_logit_rows=BATCH, max_pages_per_sequence=PAGES_EACH
    )
    weights = decoder_weights(SPEC, chip.adopt(sources, "thread scaling"))
    layout = PageLayout(layers=((LAYER.num_kv_heads, LAYER.head_width),) * len(SPEC.layers), format="bf16")
    pages = chip.allocate_pages(layout, BATCH * PAGES_EACH, limits)
    compiled = chip.compile(partial(decoder_step, SPEC, weights), pages, limits)
    tokens = np.random.default_rng(1).integers(0, SPEC.vocabulary_size, PROMPT_TOKENS).tolist()

    def part(sequence: int, start: int, token_ids: list[int]) -> StepPart:
        page_ids = range(sequence * PAGES_EACH, (sequence + 1) * PAGES_EACH)
        return StepPart(token_ids=token_ids, start=start, page_ids=page_ids, place=sequence, num_logit_rows=1)

    prefill, decode, batch = [], [], []
    for _ in range(4):
        first = compiled.run(host_step([part(0, 0, tokens)])).copy()
        prefill.append(compiled.seconds())
    for number in range(40):
        last = compiled.run(host_step([part(0, PROMPT_TOKENS + number, tokens[number : number + 1])])).copy()
        decode.append(compiled.seconds())
    for sequence in range(BATCH):
        compiled.run(host_step([part(sequence, 0, tokens[:64])]))
    for number in range(20):
        compiled.run(host_step([part(sequence, 64 + number, tokens[number : number + 1]) for sequence in range(BATCH)]))
        batch.append(compiled.seconds())
    chip.close()
    row = {
        "threads": num_threads,
        "read_bytes_per_second": roofline.bandwidth_bytes_per_second,
        "int8_operations_per_second": roofline.operations_per_second["int8"],
        "prefill_tokens_per_second": PROMPT_TOKENS / min(prefill[1:]),
        "decode_tokens_per_second": 1 / statistics.median(decode[5:]),
        "batch_tokens_per_second": BATCH / statistics.median(batch[3:]),
    }
    return row, [first, last]


if __name__ == "__main__":
    main()
