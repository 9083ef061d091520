"""PyTorch as a chip: a CUDA device where there is one, else the CPU, which is a witness.

On the CPU weights are float32 and every op is PyTorch's own. On a GPU quantised and 16-bit matrices are kept as
bfloat16, float32 ones as they are, and `cuda_step` runs the decoder.

Knows: torch, weight formats. Does not know: decoders, requests.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

from ridgeline.chips.torch.ops import TorchOps, TorchPages
from ridgeline.chips.torch.roofline import measured_facts
from ridgeline.errors import CapacityError, UserError
from ridgeline.ops.chip import ChipFacts, CompiledStep, HostStep, KvFormat, PageLayout, StepFunction, TensorSource
from ridgeline.ops.step import PAGE_SLOTS, StepArrays, StepLimits
from ridgeline.quant.reference import dequantize
from ridgeline.quant.tensor import HostTensor

KV_TYPES: Mapping[KvFormat, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}
ALIGNED_VALUES = 64
"""Weights begin at multiples of this, so that a row of any usual width is read in whole vectors."""


class TorchChip:
    """A device of PyTorch's. Holds: on a GPU, what was measured of it; nothing but what it hands out besides.

    Args:
        kind: `cuda`, `cuda:1`, `cpu`, or nothing for the first GPU where there is one, and else the CPU.

    Raises UserError if there is no such device, or Triton is missing on a GPU.
    """

    name = "torch"

    def __init__(self, kind: str = "") -> None:
        self.device = device_of(kind)
        self._facts: ChipFacts | None = None

    def facts(self) -> ChipFacts:
        """Measured when first asked on a GPU; nominal figures on the CPU, where nothing should be decided by them."""
        if self._facts is None:
            self._facts = self._nominal() if self.device.type == "cpu" else measured_facts(self.device, tuple(KV_TYPES))
        return self._facts

    def _nominal(self) -> ChipFacts:
        return ChipFacts(
            name=self.name,
            description=f"PyTorch {torch.__version__}, eager, {torch.get_num_threads()} threads",
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            bandwidth_bytes_per_second=10e9,
            operations_per_second={"fp32": 100e9},
            source="none",
            kv_formats=tuple(KV_TYPES),
        )

    def page_bytes(self, layout: PageLayout) -> int:
        """Keys and values."""
        values = sum(num_heads * width for num_heads, width in layout.layers)
        return 2 * PAGE_SLOTS * values * int(KV_TYPES[layout.format].itemsize)

    def adopt(self, sources: Mapping[str, TensorSource], fingerprint: str) -> dict[str, Tensor]:
        """One after another in one piece of memory for each type, so that neighbours can be multiplied at once.

        Raises CapacityError.
        """
        types = {name: self._type_of(source) for name, source in sources.items()}
        sizes = {name: _aligned(math.prod(source.shape)) for name, source in sources.items()}
        memory: dict[torch.dtype, Tensor] = {}
        try:
            for dtype in set(types.values()):
                count = sum(sizes[name] for name in sources if types[name] == dtype)
                memory[dtype] = torch.empty(count, dtype=dtype, device=self.device)
        except torch.OutOfMemoryError as error:
            wanted = sum(size * types[name].itemsize for name, size in sizes.items())
            raise CapacityError(
                f"the weights take {wanted / 1e9:.1f} GB on {self.device}, where quantised ones are kept as bfloat16",
                hint="choose a smaller model, or free memory of the GPU",
            ) from error
        ends = dict.fromkeys(memory, 0)
        adopted = {}
        for name, source in sources.items():
            dtype, start = types[name], ends[types[name]]
            ends[dtype] = start + sizes[name]
            adopted[name] = memory[dtype][start : start + math.prod(source.shape)].view(source.shape)
            adopted[name].copy_(_values(source.read()))
        return adopted

    def _type_of(self, source: TensorSource) -> torch.dtype:
        is_exact = self.device.type == "cpu" or len(source.shape) == 1 or source.format_name == "F32"
        return torch.float32 if is_exact else torch.bfloat16

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> TorchPages:
        """Zeros. Raises CapacityError."""
        if layout.format not in KV_TYPES:
            raise UserError(f"the torch chip keeps keys and values as {', '.join(KV_TYPES)}, not {layout.format}")
        dtype = KV_TYPES[layout.format]

        def empty() -> tuple[Tensor, ...]:
            slots = num_pages * PAGE_SLOTS
            return tuple(torch.zeros((slots, *shape), dtype=dtype, device=self.device) for shape in layout.layers)

        try:
            return TorchPages(keys=empty(), values=empty())
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"{num_pages} pages take {num_pages * self.page_bytes(layout) / 1e9:.1f} GB, "
                f"which {self.device} has not left",
                hint="allow less memory or a shorter context",
            ) from error

    def compile(
        self, step: StepFunction[Tensor, Tensor, TorchPages], pages: TorchPages, limits: StepLimits
    ) -> CompiledStep:
        """Eager on the CPU; on a GPU small steps are recorded when they are first met."""
        if self.device.type == "cpu":
            return TorchStep(step, pages)
        compiled: CompiledStep = _gpu_module().CudaStep(step, pages, limits, self.device)
        return compiled

    def close(self) -> None:
        """Nothing is held."""


class TorchStep:
    """A decoder on its pages, on the CPU. Holds: the pages; changed by `run`."""

    def __init__(self, step: StepFunction[Tensor, Tensor, TorchPages], pages: TorchPages) -> None:
        self._step = step
        self._pages = pages
        self._seconds = 0.0

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """Every op in its turn."""
        start = time.perf_counter()
        arrays = StepArrays(
            **{entry.name: torch.as_tensor(getattr(step, entry.name).astype(np.int64)) for entry in fields(step)}
        )
        with torch.inference_mode():
            logits_BV, self._pages = self._step(TorchOps(), arrays, self._pages)
        self._seconds = time.perf_counter() - start
        logits: npt.NDArray[np.float32] = logits_BV.numpy()
        return logits

    def seconds(self) -> float:
        """Of the wall clock."""
        return self._seconds


def device_of(kind: str) -> torch.device:
    """The device that is meant. Raises UserError."""
    if kind == "cpu" or (not kind and not torch.cuda.is_available()):
        return torch.device("cpu")
    number = 0 if kind in ("", "cuda") else kind.removeprefix("cuda:")
    if (kind and not kind.startswith("cuda")) or not str(number).isdigit():
        raise UserError(f"the torch chip runs on cpu, cuda or cuda:NUMBER, not on {kind!r}", field="chip")
    if int(number) >= torch.cuda.device_count():
        raise UserError(
            f"torch:{kind} was asked for; PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs",
            hint="look at nvidia-smi, and at whether this PyTorch is built for GPUs; torch:cpu runs without",
            field="chip",
        )
    try:
        _gpu_module()
    except ModuleNotFoundError as error:
        raise UserError(
            f"the torch chip needs {error.name} on a GPU, which is not installed", hint="pip install triton"
        ) from error
    return torch.device("cuda", int(number))


# Any: what it imports is there only beside a GPU.
def _gpu_module() -> Any:
    return import_module("ridgeline.chips.torch.cuda_step")


def _aligned(count: int) -> int:
    return -(-count // ALIGNED_VALUES) * ALIGNED_VALUES


def _values(tensor: HostTensor) -> Tensor:
    """The tensor's values on the host; 16-bit ones as they are in the file."""
    if tensor.format.name in ("BF16", "F16"):
        dtype = torch.bfloat16 if tensor.format.name == "BF16" else torch.float16
        return torch.from_numpy(np.array(tensor.data)).view(dtype).view(tensor.shape)
    return torch.from_numpy(dequantize(tensor.data, tensor.format, tensor.shape))
