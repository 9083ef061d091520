"""PyTorch on the CPU as a chip: weights as float32 tensors, the decoder called as it is written.

Knows: torch, weight formats. Does not know: decoders, requests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

from ridgeline.chips.torch.ops import TorchOps, TorchPages
from ridgeline.errors import UserError
from ridgeline.ops.chip import ChipFacts, HostStep, KvFormat, PageLayout, StepFunction, TensorSource
from ridgeline.ops.step import PAGE_SLOTS, StepArrays, StepLimits
from ridgeline.quant.reference import dequantize

KV_TYPES: Mapping[KvFormat, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


class TorchChip:
    """A witness: correct, not fast. Holds: nothing but what it hands out."""

    name = "torch"

    def facts(self) -> ChipFacts:
        """Nominal figures."""
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
        """Dequantised to float32."""
        adopted = {}
        for name, source in sources.items():
            tensor = source.read()
            adopted[name] = torch.from_numpy(dequantize(tensor.data, tensor.format, tensor.shape))
        return adopted

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> TorchPages:
        """Zeros."""
        if layout.format not in KV_TYPES:
            raise UserError(f"the torch chip keeps keys and values as {', '.join(KV_TYPES)}, not {layout.format}")

        def empty() -> tuple[Tensor, ...]:
            slots = num_pages * PAGE_SLOTS
            return tuple(torch.zeros((slots, *shape), dtype=KV_TYPES[layout.format]) for shape in layout.layers)

        return TorchPages(keys=empty(), values=empty())

    def compile(
        self, step: StepFunction[Tensor, Tensor, TorchPages], pages: TorchPages, limits: StepLimits
    ) -> TorchStep:
        """Nothing is compiled."""
        return TorchStep(step, pages)

    def close(self) -> None:
        """Nothing is held."""


class TorchStep:
    """A decoder on its pages. Holds: the pages; changed by `run`."""

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
