"""Running a decoder on a GPU: a step's indices in one copy, small steps as one recorded graph, logits in one copy back.

Knows: CUDA graphs, the arrays of a step. Does not know: decoders, requests.

A graph has fixed shapes, so a small step is padded: tokens to the next of a few sizes, pages of a sequence to the next
power of four. Padding stores nothing and belongs to no sequence; what it computes is never seen, and no sum depends on
it. Larger steps are launched op by op, while the GPU is busy with those before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

from ridgeline.chips.torch.ops import TorchPages
from ridgeline.chips.torch.triton_arrays import tensor_of
from ridgeline.chips.torch.triton_ops import TritonOps
from ridgeline.errors import ChipError
from ridgeline.ops.chip import HostStep, StepFunction
from ridgeline.ops.step import StepArrays, StepLimits

GRAPH_TOKENS, GRAPH_ROWS = 2048, 256
"""Steps up to here are graphs: they take the GPU less time than launching their ops one by one takes the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """The shape of a step's arrays."""

    tokens: int
    sequences: int
    pages: int
    rows: int

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of each array by name, in the order in which they lie in the buffer."""
        return {
            "token_ids_T": (self.tokens,),
            "positions_T": (self.tokens,),
            "slots_T": (self.tokens,),
            "sequences_T": (self.tokens,),
            "query_starts_N1": (self.sequences + 1,),
            "context_lengths_N": (self.sequences,),
            "places_N": (self.sequences,),
            "logit_rows_B": (self.rows,),
            "page_table_NP": (self.sequences, self.pages),
        }

    def size(self) -> int:
        """Numbers in all arrays."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values())


def extents_of(step: HostStep) -> Extents:
    """As the step is."""
    num_sequences, num_pages = step.page_table_NP.shape
    return Extents(tokens=len(step.token_ids_T), sequences=num_sequences, pages=num_pages, rows=len(step.logit_rows_B))


def padded_extents(extents: Extents, limits: StepLimits) -> Extents:
    """The graph that runs it.

    Up to 64 tokens the next power of two, then the next of eight steps an octave. Sequences and rows follow from the
    tokens where they are few, so that there are not too many graphs.
    """
    size = 1 << (extents.tokens - 1).bit_length()
    grain = max(1, size // 16) if size > 64 else size
    tokens = -(-extents.tokens // grain) * grain
    is_few = tokens <= GRAPH_ROWS
    pages = max(extents.pages, min(_power_of_four(extents.pages), limits.max_pages_per_sequence))
    return Extents(
        tokens=tokens,
        sequences=tokens if is_few else _power_of_four(extents.sequences),
        pages=pages,
        rows=tokens if is_few else _power_of_four(extents.rows),
    )


def _power_of_four(count: int) -> int:
    size = 4
    while size < count:
        size *= 4
    return size


def place_arrays(step: HostStep, extents: Extents, buffer: npt.NDArray[np.int32]) -> None:
    """Write the step's arrays one after another, padded: padding stores at no slot and belongs to no sequence."""
    fills = {"slots_T": -1, "query_starts_N1": len(step.token_ids_T)}
    place = 0
    for name, shape in extents.shapes().items():
        end = place + int(np.prod(shape))
        values = getattr(step, name)
        target = buffer[place:end].reshape(shape)
        if values.shape != shape:
            target.fill(fills.get(name, 0))
        target[tuple(slice(extent) for extent in values.shape)] = values
        place = end


def arrays_in(buffer: Tensor, extents: Extents) -> StepArrays[Tensor]:
    """Views of the buffer."""
    arrays = {}
    place = 0
    for name, shape in extents.shapes().items():
        end = place + int(np.prod(shape))
        arrays[name] = buffer[place:end].view(shape)
        place = end
    return StepArrays(**arrays)


class CudaStep:
    """A decoder on its pages. Holds: the pages, buffers on both sides, and the graphs that were recorded so far."""

    def __init__(
        self,
        step: StepFunction[Tensor, Tensor, TorchPages],
        pages: TorchPages,
        limits: StepLimits,
        device: torch.device,
    ) -> None:
        self._step = step
        self._pages = pages
        self._limits = limits
        self._device = device
        self._ops = TritonOps()
        largest = Extents(
            tokens=max(limits.max_tokens, GRAPH_TOKENS),
            sequences=max(_power_of_four(limits.max_sequences), GRAPH_ROWS),
            pages=limits.max_pages_per_sequence,
            rows=max(limits.max_logit_rows, GRAPH_ROWS),
        )
        self._host_arrays = torch.zeros(largest.size(), dtype=torch.int32, pin_memory=True)
        self._arrays = torch.zeros(largest.size(), dtype=torch.int32, device=device)
        self._host_logits = torch.empty(0, dtype=torch.float32, pin_memory=True)
        self._graph_logits: Tensor | None = None
        self._graphs: dict[Extents, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._seconds = 0.0

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """logits_BV, in memory that the next `run` writes again."""
        start = time.perf_counter()
        extents = extents_of(step)
        num_rows = extents.rows
        is_graph = extents.tokens <= GRAPH_TOKENS and extents.rows <= GRAPH_ROWS
        if is_graph:
            extents = padded_extents(extents, self._limits)
        size = extents.size()
        place_arrays(step, extents, self._host_arrays.numpy())
        recording_seconds = 0.0
        try:
            with torch.inference_mode(), torch.cuda.device(self._device):
                self._arrays[:size].copy_(self._host_arrays[:size], non_blocking=True)
                if is_graph and extents not in self._graphs:
                    recording_seconds = -time.perf_counter()
                    self._graphs[extents] = self._recorded(extents)
                    recording_seconds += time.perf_counter()
                logits_BV = self._replayed(extents) if is_graph else self._launched(extents)
                logits = self._brought_back(logits_BV[:num_rows])
        except torch.cuda.OutOfMemoryError as error:
            raise ChipError(f"the GPU has no memory for a step of {len(step.token_ids_T)} tokens: {error}") from error
        self._seconds = time.perf_counter() - start - recording_seconds
        return logits

    def seconds(self) -> float:
        """Of the wall clock, without the recording of a graph, which says nothing of the next step."""
        return self._seconds

    def _launched(self, extents: Extents) -> Tensor:
        logits_BV, self._pages = self._step(self._ops, arrays_in(self._arrays, extents), self._pages)
        return tensor_of(logits_BV)

    def _replayed(self, extents: Extents) -> Tensor:
        self._graphs[extents].replay()
        assert self._graph_logits is not None
        return self._graph_logits

    def _recorded(self, extents: Extents) -> torch.cuda.CUDAGraph:
        """Run once, so that every kernel is compiled, then again for the record; the pages get the same twice."""
        logits_BV = self._launched(extents)
        if self._graph_logits is None:
            self._graph_logits = torch.empty((GRAPH_ROWS, logits_BV.shape[1]), device=self._device)
        del logits_BV
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._graph_logits[: extents.rows].copy_(self._launched(extents))
        torch.cuda.synchronize(self._device)
        return graph

    def _brought_back(self, logits_BV: Tensor) -> npt.NDArray[np.float32]:
        count = logits_BV.numel()
        if count > self._host_logits.numel():
            self._host_logits = torch.empty(count, dtype=torch.float32, pin_memory=True)
        host = self._host_logits[:count].view(logits_BV.shape)
        host.copy_(logits_BV, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        logits: npt.NDArray[np.float32] = host.numpy()
        return logits
