"""The roofline of a GPU, measured when it is first asked for.

Knows: torch. Does not know: models, steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

from ridgeline.ops.chip import Arithmetic, ChipFacts, KvFormat
from ridgeline.quant.formats import FORMATS

READ_BYTES = 1 << 30
"""Far more than any cache holds."""
PRODUCT_SIZE = 4096
ROUNDS = 5
"""The best of a few: other programs on the GPU only ever make a round slower."""


def measured_facts(device: torch.device, kv_formats: tuple[KvFormat, ...]) -> ChipFacts:
    """What this GPU is and does: memory that is free now, bytes that a search of 1 GiB reads, dense products."""
    properties = torch.cuda.get_device_properties(device)
    arithmetic: dict[str, Arithmetic] = {entry.name: "bf16" for entry in FORMATS}
    arithmetic |= {"F32": "fp32", "f32": "fp32", "bf16": "bf16"}
    with torch.inference_mode(), torch.cuda.device(device):
        bandwidth = read_bytes_per_second(device)
        peaks: dict[Arithmetic, float] = {
            "bf16": product_operations_per_second(device, torch.bfloat16),
            "fp32": product_operations_per_second(device, torch.float32),
        }
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info(device)
    return ChipFacts(
        name="torch",
        description=f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}",
        memory_bytes=free_bytes,
        bandwidth_bytes_per_second=bandwidth,
        operations_per_second=peaks,
        source="measured",
        kv_formats=kv_formats,
        arithmetic=arithmetic,
    )


def read_bytes_per_second(device: torch.device) -> float:
    """Of the largest value of 1 GiB, which reads everything and writes next to nothing."""
    values = torch.ones(READ_BYTES // 4, dtype=torch.int32, device=device)
    return READ_BYTES / best_seconds(lambda: values.max())


def product_operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Of a square product of random numbers; float32 without TF32, as PyTorch's default has it."""
    x = torch.randn((PRODUCT_SIZE, PRODUCT_SIZE), dtype=dtype, device=device)
    return 2.0 * PRODUCT_SIZE**3 / best_seconds(lambda: torch.matmul(x, x))


def best_seconds(run: Callable[[], Tensor]) -> float:
    """The least of a few rounds on the GPU's own clock."""
    run()
    seconds: list[float] = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return min(seconds)
