"""The chip contract: what the engine needs of a chip besides its ops.

A chip is an object that is handed in. It adopts weights (repacking them as it likes), allocates pages, and compiles a
step function, that is the decoder with its weights bound, into whatever it runs best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from ridgeline.ops.protocol import Ops
from ridgeline.ops.step import StepArrays, StepLimits
from ridgeline.quant.tensor import HostTensor

A = TypeVar("A")
W = TypeVar("W")
P = TypeVar("P")

KvFormat = Literal["f32", "bf16", "int8"]
Arithmetic = Literal["int8", "bf16", "fp32"]
HostStep = StepArrays[npt.NDArray[np.int32]]

StepFunction = Callable[[Ops[A, W, P], StepArrays[A], P], tuple[A, P]]
"""(ops, step, pages) -> (logits_BV, pages)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """A tensor that can be read when it is needed; shape and format are known before."""

    name: str
    """Ridgeline's own name for it, such as `layers.3.attention.query`."""
    shape: tuple[int, ...]
    format_name: str
    read: Callable[[], HostTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLayout:
    """What one page of keys and values must hold, over all layers.

    int8: keys are quantised per channel over each closed page (asymmetric), values per head and token; a query sees its
    own page unquantised (bf16) and every earlier page quantised, whatever the chunking.
    """

    layers: tuple[tuple[int, int], ...]
    """(num_kv_heads, head_width) of each layer."""
    format: KvFormat = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipFacts:
    """A chip's roofline and what it can hold."""

    name: str
    """Such as "cpu"."""
    description: str
    """Such as "AMD EPYC, 2 threads, AVX-512 VNNI BF16"."""
    memory_bytes: int
    """Memory that weights and pages may take."""
    bandwidth_bytes_per_second: float
    operations_per_second: Mapping[Arithmetic, float]
    """Peak; a multiply-add is two operations."""
    source: Literal["measured", "published", "none"]
    kv_formats: tuple[KvFormat, ...] = ("bf16",)
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=dict)
    """Weight format name -> which arithmetic its products run in; KV format name -> which attention over it runs in.
    Fp32 where nothing is said."""
    step_overhead_seconds: float = 0.0
    """What a step costs besides operations and bytes."""


class CompiledStep(Protocol):
    """A decoder that is ready to run."""

    def run(self, step: HostStep) -> npt.NDArray[np.float32]:
        """Run one step and return logits_BV.

        The array may be the chip's own memory: it is valid until the next `run`. Raises ChipError.
        """

    def seconds(self) -> float:
        """How long the last `run` took on the chip's own clock (a simulated chip's is virtual)."""


@runtime_checkable
class ChoosingStep(CompiledStep, Protocol):
    """A compiled step that chooses tokens itself, as `ridgeline.sampling` defines them, bit for bit."""

    def run_and_choose(
        self, step: HostStep, choices_B: bytes, adjustments: bytes
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Run one step; (logits_BV, tokens_B), both with what `run` says of logits.

        `choices_B` is a CHOICE record of `ops.choice` for each logit row, `adjustments` their ADJUSTMENT records, one
        row's after another's. A token is NO_TOKEN where the mode is HOST, or where the row yields none.
        """


class Chip(Protocol[A, W, P]):
    """A chip, opened. Holds: adopted weights, pages, threads or a device; given back by `close`."""

    @property
    def name(self) -> str:
        """Such as "cpu"."""

    def facts(self) -> ChipFacts:
        """Its roofline: measured once and kept, or published."""

    def page_bytes(self, layout: PageLayout) -> int:
        """Bytes that one page takes on this chip."""

    def adopt(self, sources: Mapping[str, TensorSource], fingerprint: str) -> Mapping[str, W]:
        """Weights by the same names, in the chip's own layout.

        `fingerprint` names this set of weights: a chip may keep its repacked form under it and then need not `read`.
        Matrices (rows, width) serve `linear` and `embed`; one-dimensional tensors are vectors.
        """

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> P:
        """Room for `num_pages` pages; contents are undefined until stored. Raises CapacityError."""

    def compile(self, step: StepFunction[A, W, P], pages: P, limits: StepLimits) -> CompiledStep:
        """Make `step` ready to run on these pages, for any step within `limits`."""

    def close(self) -> None:
        """Give everything back."""


AnyChip = Chip[Any, Any, Any]
"""For the engine, which never looks inside an array."""
