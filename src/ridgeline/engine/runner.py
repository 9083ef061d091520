"""The runner: a batch as arrays, and the compiled step's answer.

Knows: how a step is laid out. Does not know: requests, sampling, the chip.

Shape letters: T tokens, N sequences, B logit rows, P pages of the longest sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ridgeline.ops.chip import ChoosingStep, CompiledStep, HostStep
from ridgeline.ops.choice import NO_TOKEN
from ridgeline.ops.step import PAGE_SLOTS, SpanShape, StepArrays, StepLimits, StepShape
from ridgeline.schedule.batch import Batch

Int32 = npt.NDArray[np.int32]


class Runner:
    """Runs batches.

    Holds: index buffers of the largest step, overwritten by each `run`, so that nothing is allocated per token.
    """

    def __init__(self, compiled: CompiledStep, limits: StepLimits) -> None:
        def buffer(size: int) -> Int32:
            return np.zeros(size, dtype=np.int32)

        self._compiled = compiled
        self._choosing = compiled if isinstance(compiled, ChoosingStep) else None
        self._limits = limits
        self._token_ids = buffer(limits.max_tokens)
        self._positions = buffer(limits.max_tokens)
        self._slots = buffer(limits.max_tokens)
        self._sequences = buffer(limits.max_tokens)
        self._query_starts = buffer(limits.max_sequences + 1)
        self._context_lengths = buffer(limits.max_sequences)
        self._page_table = buffer(limits.max_sequences * limits.max_pages_per_sequence)
        self._places = buffer(limits.max_sequences)
        self._logit_rows = buffer(limits.max_logit_rows)

    @property
    def can_choose(self) -> bool:
        """Whether the chip chooses tokens where `run` is given records."""
        return self._choosing is not None

    def run(
        self, batch: Batch, choices_B: bytes | None = None, adjustments: bytes = b""
    ) -> tuple[npt.NDArray[np.float32], Sequence[int]]:
        """(logits_BV, tokens_B): for each entry in turn, the rows that it asked for. Valid until the next `run`.

        Tokens are NO_TOKEN where the chip does not choose, or is given no records. Raises whatever the chip raises.
        """
        if self._choosing is not None and choices_B is not None:
            return self._choosing.run_and_choose(self.arrays(batch), choices_B, adjustments)
        logits_BV = self._compiled.run(self.arrays(batch))
        return logits_BV, (NO_TOKEN,) * len(logits_BV)

    def seconds(self) -> float:
        """How long the last run took on the chip's own clock."""
        return self._compiled.seconds()

    def arrays(self, batch: Batch) -> HostStep:
        """The batch as index arrays: views of the buffers, valid until the next call."""
        entries = batch.entries
        num_sequences = len(entries)
        num_pages = max(len(entry.page_ids) for entry in entries)
        page_table_NP = self._page_table[: num_sequences * num_pages].reshape(num_sequences, num_pages)
        token_ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        starts = [0]
        rows: list[int] = []
        for number, entry in enumerate(entries):
            token_ids += entry.token_ids
            positions += range(entry.start, entry.end)
            end = len(token_ids)
            sequences += [number] * (end - starts[-1])
            starts.append(end)
            rows += range(end - entry.num_logit_rows, end)
            page_table_NP[number, : len(entry.page_ids)] = entry.page_ids
            page_table_NP[number, len(entry.page_ids) :] = 0
        token, row = len(token_ids), len(rows)
        # Lists first: one conversion of a list costs less than an assignment of each entry's slice.
        self._token_ids[:token] = token_ids
        self._positions[:token] = positions
        self._sequences[:token] = sequences
        self._logit_rows[:row] = rows
        self._query_starts[: num_sequences + 1] = starts
        self._context_lengths[:num_sequences] = [entry.end for entry in entries]
        self._places[:num_sequences] = [entry.place for entry in entries]
        positions_T = self._positions[:token]
        sequences_T = self._sequences[:token]
        slots_T = self._slots[:token]
        slots_T[:] = page_table_NP[sequences_T, positions_T // PAGE_SLOTS] * PAGE_SLOTS + positions_T % PAGE_SLOTS
        return StepArrays(
            token_ids_T=self._token_ids[:token],
            positions_T=positions_T,
            slots_T=slots_T,
            sequences_T=sequences_T,
            query_starts_N1=self._query_starts[: num_sequences + 1],
            context_lengths_N=self._context_lengths[:num_sequences],
            page_table_NP=page_table_NP,
            places_N=self._places[:num_sequences],
            logit_rows_B=self._logit_rows[:row],
        )


def shape_of(batch: Batch) -> StepShape:
    """What the batch's cost depends on."""
    return StepShape(
        spans=tuple(SpanShape(num_tokens=entry.end - entry.start, context_tokens=entry.end) for entry in batch.entries),
        num_logit_rows=sum(entry.num_logit_rows for entry in batch.entries),
    )
