"""JAX on the CPU as a chip: the decoder is traced once for each bucket of shapes, its pages threaded through.

Knows: JAX, weight formats. Does not know: decoders, requests.

A compiled program has fixed shapes, so a step is padded: tokens, sequences, pages and logit rows each to the next
power of four. Padding tokens store nothing and are asked for nothing, so what they compute is never seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import jax  # type: ignore[import-not-found, unused-ignore]
import jax.numpy as jnp  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import numpy.typing as npt
from jax import Array  # type: ignore[import-not-found, unused-ignore]

from ridgeline.chips.jax.ops import JaxOps, JaxPages, JaxWeight
from ridgeline.errors import UserError
from ridgeline.ops.chip import ChipFacts, HostStep, KvFormat, PageLayout, StepFunction, TensorSource
from ridgeline.ops.step import PAGE_SLOTS, StepArrays, StepLimits
from ridgeline.quant.reference import dequantize

KV_TYPES: Mapping[KvFormat, Any] = {"f32": jnp.float32, "bf16": jnp.bfloat16}


class JaxChip:
    """A witness: correct, not fast. Holds: the weights that it adopted."""

    name = "jax"

    def __init__(self) -> None:
        self._weights: dict[str, Array] = {}

    def facts(self) -> ChipFacts:
        """Nominal figures."""
        return ChipFacts(
            name=self.name,
            description=f"JAX {jax.__version__} on {jax.devices()[0].platform}",
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            bandwidth_bytes_per_second=10e9,
            operations_per_second={"fp32": 100e9},
            source="none",
            kv_formats=tuple(KV_TYPES),
        )

    def page_bytes(self, layout: PageLayout) -> int:
        """Keys and values."""
        values = sum(num_heads * width for num_heads, width in layout.layers)
        return 2 * PAGE_SLOTS * values * int(jnp.dtype(KV_TYPES[layout.format]).itemsize)

    def adopt(self, sources: Mapping[str, TensorSource], fingerprint: str) -> dict[str, JaxWeight]:
        """Dequantised to float32."""
        adopted = {}
        for name, source in sources.items():
            tensor = source.read()
            weight = JaxWeight(f"{fingerprint} {name}")
            self._weights[weight.key] = jnp.asarray(dequantize(tensor.data, tensor.format, tensor.shape))
            adopted[name] = weight
        return adopted

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> JaxPages:
        """Zeros."""
        if layout.format not in KV_TYPES:
            raise UserError(f"the JAX chip keeps keys and values as {', '.join(KV_TYPES)}, not {layout.format}")
        empty = partial(jnp.zeros, dtype=KV_TYPES[layout.format])
        slots = num_pages * PAGE_SLOTS
        return tuple((empty((slots, *shape)), empty((slots, *shape))) for shape in layout.layers)

    def compile(self, step: StepFunction[Array, JaxWeight, JaxPages], pages: JaxPages, limits: StepLimits) -> JaxStep:
        """Traced when a bucket is first met."""
        return JaxStep(step, self._weights, pages, limits)

    def close(self) -> None:
        """Drop the weights."""
        self._weights.clear()


class JaxStep:
    """A decoder under `jit`. Holds: the pages, given to each run and replaced by what it returns."""

    def __init__(
        self,
        step: StepFunction[Array, JaxWeight, JaxPages],
        weights: Mapping[str, Array],
        pages: JaxPages,
        limits: StepLimits,
    ) -> None:
        def traced(weights: Mapping[str, Array], arrays: dict[str, Array], pages: JaxPages) -> tuple[Array, JaxPages]:
            return step(JaxOps(weights), StepArrays(**arrays), pages)

        self._compiled = jax.jit(traced, donate_argnums=2)
        self._weights = weights
        self._pages = pages
        self._num_slots = len(pages[0][0])
        self._limits = limits
        self._seconds = 0.0

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """Pad, run, cut the padding off."""
        start = time.perf_counter()
        arrays = padded(step, self._limits, self._num_slots)
        logits_BV, self._pages = self._compiled(self._weights, arrays, self._pages)
        logits: npt.NDArray[np.float32] = np.asarray(logits_BV)[: len(step.logit_rows_B)]
        self._seconds = time.perf_counter() - start
        return logits

    def seconds(self) -> float:
        """Of the wall clock; a bucket's first run includes its compilation."""
        return self._seconds


def padded(step: HostStep, limits: StepLimits, num_slots: int) -> dict[str, npt.NDArray[np.int32]]:
    """The step's arrays, lengthened to their buckets; padding tokens belong to no sequence and store at no slot."""
    extents = {
        "T": _bucket(len(step.token_ids_T), limits.max_tokens),
        "N": _bucket(len(step.context_lengths_N), limits.max_sequences),
        "P": _bucket(step.page_table_NP.shape[1], limits.max_pages_per_sequence),
        "B": _bucket(len(step.logit_rows_B), limits.max_logit_rows),
    }
    extents["N1"] = extents["N"] + 1
    fills = {"slots_T": num_slots, "sequences_T": extents["N"], "query_starts_N1": len(step.token_ids_T)}
    arrays = {}
    for entry in fields(step):
        values = getattr(step, entry.name)
        letters = entry.name.rpartition("_")[2]
        shape = (extents["N"], extents["P"]) if letters == "NP" else (extents[letters],)
        larger = np.full(shape, fills.get(entry.name, 0), dtype=np.int32)
        larger[tuple(slice(extent) for extent in values.shape)] = values
        arrays[entry.name] = larger
    return arrays


def _bucket(count: int, limit: int) -> int:
    """The next of 4, 16, 64, ..., but not more than there can be."""
    size = 4
    while size < count:
        size *= 4
    return max(1, min(size, limit))
