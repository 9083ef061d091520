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
from ridgeline.schedule.batch import Batch, BatchEntry

Int32 = npt.NDArray[np.int32]


class Runner:
    """Runs batches.

    Holds: index buffers of the largest step, overwritten by each `run`, so that nothing is allocated per token; the
    arrays of the last step in which every sequence decoded, which the next such step changes where it differs.
    """

    def __init__(self, compiled: CompiledStep, limits: StepLimits) -> None:
        self._compiled = compiled
        self._choosing = compiled if isinstance(compiled, ChoosingStep) else None
        self._limits = limits
        self._token_ids = _buffer(limits.max_tokens)
        self._positions = _buffer(limits.max_tokens)
        self._slots = _buffer(limits.max_tokens)
        self._sequences = _buffer(limits.max_tokens)
        self._query_starts = _buffer(limits.max_sequences + 1)
        self._context_lengths = _buffer(limits.max_sequences)
        self._page_table = _buffer(limits.max_sequences * limits.max_pages_per_sequence)
        self._places = _buffer(limits.max_sequences)
        self._logit_rows = _buffer(limits.max_logit_rows)
        self._decoding = DecodingArrays(limits)

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
        return self._decoding.of(batch.entries) or self._ragged(batch)

    def _ragged(self, batch: Batch) -> HostStep:
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


class DecodingArrays:
    """The arrays of steps in which every sequence runs one token and wants its logits: most steps, and the shortest.

    Written number by number through memory views: after a step has gone through gigabytes of weights, what numpy would
    bring into the caches costs more than what it saves.

    Holds: buffers, and views of them for the last number of sequences and of pages.
    """

    def __init__(self, limits: StepLimits) -> None:
        size = min(limits.max_sequences, limits.max_tokens, limits.max_logit_rows)
        self._max_sequences = size
        self._numbers = np.arange(size + 1, dtype=np.int32)
        self._buffers = [_buffer(size) for _ in range(5)]
        self._views = [memoryview(each) for each in self._buffers]  # type: ignore[arg-type]
        self._page_table = _buffer(size * limits.max_pages_per_sequence)
        self._pages: list[tuple[int, ...]] = []
        """What the page table holds."""
        self._num_pages = 0
        self._step: HostStep | None = None

    def of(self, entries: Sequence[BatchEntry]) -> HostStep | None:
        """The step's arrays; None if it is not of this kind."""
        if len(entries) > self._max_sequences:
            return None
        token_ids, positions, slots, context_lengths, places = self._views
        for number, entry in enumerate(entries):
            position = entry.start
            if entry.end - position != 1 or entry.num_logit_rows != 1:
                return None
            token_ids[number] = entry.token_ids[0]
            positions[number] = position
            slots[number] = entry.page_ids[position // PAGE_SLOTS] * PAGE_SLOTS + position % PAGE_SLOTS
            context_lengths[number] = position + 1
            places[number] = entry.place
        pages = [entry.page_ids for entry in entries]
        if pages != self._pages:
            self._write_pages(pages)
        return self._step

    def _write_pages(self, pages: list[tuple[int, ...]]) -> None:
        count, num_pages = len(pages), max(map(len, pages))
        is_same_shape = self._step is not None and count == len(self._pages) and num_pages == self._num_pages
        table_NP = self._page_table[: count * num_pages].reshape(count, num_pages)
        for number, page_ids in enumerate(pages):
            if not is_same_shape or page_ids != self._pages[number]:
                table_NP[number, : len(page_ids)] = page_ids
                table_NP[number, len(page_ids) :] = 0
        self._pages, self._num_pages = pages, num_pages
        if is_same_shape:
            return
        token_ids, positions, slots, context_lengths, places = (each[:count] for each in self._buffers)
        self._step = StepArrays(
            token_ids_T=token_ids,
            positions_T=positions,
            slots_T=slots,
            sequences_T=self._numbers[:count],
            query_starts_N1=self._numbers[: count + 1],
            context_lengths_N=context_lengths,
            page_table_NP=table_NP,
            places_N=places,
            logit_rows_B=self._numbers[:count],
        )


def _buffer(size: int) -> Int32:
    return np.zeros(size, dtype=np.int32)


def shape_of(batch: Batch) -> StepShape:
    """What the batch's cost depends on."""
    return StepShape(
        spans=tuple(SpanShape(num_tokens=entry.end - entry.start, context_tokens=entry.end) for entry in batch.entries),
        num_logit_rows=sum(entry.num_logit_rows for entry in batch.entries),
    )
