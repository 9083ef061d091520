"""The CPU chip: weights repacked and mapped, pages in plain memory, a whole step in one native call.

Knows: the kernels, the machine's CPUs and memory. Does not know: decoders, families, requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ridgeline.chips.cpu import _native, instruction_set, machine, packed_weights, pages, roofline
from ridgeline.chips.cpu.compiled import CpuCompiledStep
from ridgeline.chips.cpu.pages import CpuPages
from ridgeline.chips.cpu.recorder import Symbol
from ridgeline.chips.cpu.weights import CpuWeight
from ridgeline.errors import UserError
from ridgeline.ops.chip import Arithmetic, ChipFacts, HostStep, PageLayout, StepFunction, TensorSource
from ridgeline.ops.step import StepArrays, StepLimits
from ridgeline.quant.formats import BY_NAME, F32, FORMATS
from ridgeline.quant.tensor import HostTensor

ARITHMETIC: tuple[Arithmetic, ...] = ("int8", "bf16", "fp32")
"""By the number of `ActivationKind` in kernels/matmul.h."""
MAX_THREADS = 1024


class CpuChip:
    """The CPUs of this machine. Holds: a pool of threads, adopted weights, `notices` for the person at the terminal."""

    def __init__(self, *, cache_folder: Path | None = None, num_threads: int | None = None, fuse: bool = True) -> None:
        """Open the chip.

        Args:
            cache_folder: where packed weights and the measured roofline are kept between runs; None keeps nothing.
            num_threads: threads that compute; by default the CPUs that this process may use.
            fuse: whether nodes are made one where that is faster; off only to test that it changes no bit.

        Raises UserError for a number of threads or, in the environment, an instruction set that cannot be had.
        """
        self.notices: list[str] = []
        """What a person should know, one line each: weights that were packed anew and why, kernels that are slow."""
        if notice := instruction_set.use_wanted():
            self.notices.append(notice)
        self._cache_folder = cache_folder
        self._num_threads = machine.usable_cpus() if num_threads is None else num_threads
        if not 1 <= self._num_threads <= MAX_THREADS:
            raise UserError(
                f"{num_threads} threads were asked for; the CPU chip takes 1 to {MAX_THREADS}",
                hint=f"this process may use {machine.usable_cpus()} CPUs, and more threads than CPUs only wait",
                field="num_threads",
            )
        self._pool = _native.ThreadPool(self._num_threads)
        self._fuse = fuse
        self._facts: ChipFacts | None = None

    @property
    def name(self) -> str:
        """The word `cpu`."""
        return "cpu"

    @property
    def num_threads(self) -> int:
        """Threads that compute."""
        return self._num_threads

    def facts(self) -> ChipFacts:
        """The measured roofline; the first call on a machine takes about two seconds."""
        if self._facts is None:
            model = machine.cpu_model()
            line = roofline.kept_or_measured(self._pool, model, self._cache_folder, self._idle_step())
            self._facts = ChipFacts(
                name=self.name,
                description=f"{model}, {self._num_threads} threads, {_native.instruction_set()}",
                memory_bytes=machine.available_memory_bytes(),
                bandwidth_bytes_per_second=line.bandwidth_bytes_per_second,
                operations_per_second={name: line.operations_per_second[name] for name in ARITHMETIC},
                source="measured",
                kv_formats=("bf16", "int8", "f32"),
                arithmetic={entry.name: ARITHMETIC[_native.activation_kind(entry.gguf_type)] for entry in FORMATS},
                step_overhead_seconds=line.step_overhead_seconds,
            )
        return self._facts

    def _idle_step(self) -> Callable[[], float]:
        """A call that runs a step of one tiny op and returns the seconds that it took, Python included."""
        sources = {"frequencies": _ones("frequencies", 16)}
        frequencies = packed_weights.adopt(sources, "", None, self._pool, self.notices.append)["frequencies"]
        limits = StepLimits(max_tokens=1, max_sequences=1, max_logit_rows=1, max_pages_per_sequence=1)
        tiny_pages = self.allocate_pages(PageLayout(layers=((1, 16),)), 1, limits)
        compiled = self.compile(
            lambda ops, step, kept: (ops.angles(step.positions_T, frequencies, 1.0), kept), tiny_pages, limits
        )
        zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
        step: HostStep = StepArrays(
            token_ids_T=zero,
            positions_T=zero,
            slots_T=zero,
            sequences_T=zero,
            query_starts_N1=np.array([0, 1], np.int32),
            context_lengths_N=one,
            page_table_NP=np.zeros((1, 1), np.int32),
            places_N=zero,
            logit_rows_B=zero,
        )

        def seconds() -> float:
            start = time.perf_counter()
            compiled.run(step)
            return time.perf_counter() - start

        return seconds

    def page_bytes(self, layout: PageLayout) -> int:
        """Bytes of one page over all layers."""
        return pages.page_bytes(layout)

    def adopt(self, sources: Mapping[str, TensorSource], fingerprint: str) -> Mapping[str, CpuWeight]:
        """Weights in the kernels' layout, mapped from the cache folder where one was given."""
        folder = None if self._cache_folder is None else self._cache_folder / "packed"
        self._say_what_is_slow(sources)
        return packed_weights.adopt(sources, fingerprint, folder, self._pool, self.notices.append)

    def _say_what_is_slow(self, sources: Mapping[str, TensorSource]) -> None:
        if _native.instruction_set() == instruction_set.PORTABLE:
            return  # all of it is, and that was said
        for name in sorted({source.format_name for source in sources.values() if len(source.shape) == 2}):
            notice = instruction_set.slow_format_notice(name)
            if not _native.has_fast_products(BY_NAME[name].gguf_type) and notice not in self.notices:
                self.notices.append(notice)

    def allocate_pages(self, layout: PageLayout, num_pages: int, limits: StepLimits) -> CpuPages:
        """Room for `num_pages` pages; raises CapacityError."""
        return pages.allocate_pages(layout, num_pages, limits, machine.available_memory_bytes())

    def compile(
        self, step: StepFunction[Symbol, CpuWeight, CpuPages], pages: CpuPages, limits: StepLimits
    ) -> CpuCompiledStep:
        """The step as one plan. Runs `step` once, over symbols."""
        return CpuCompiledStep(self._pool, step, pages, limits, fuse=self._fuse)

    def close(self) -> None:
        """Forget the facts; threads and mappings go when the last step and weight that use them do."""
        self._facts = None


def _ones(name: str, width: int) -> TensorSource:
    tensor = HostTensor(name=name, shape=(width,), format=F32, data=np.ones(width, np.float32).view(np.uint8))
    return TensorSource(name=name, shape=(width,), format_name=F32.name, read=lambda: tensor)
