"""From a step's rows of logits to the tokens of one sample: the one place where drafts are verified.

A sequence that brings drafts has a row for its last token and one for each draft. The rows are read in order: at each
the sample's own token is drawn, with that position's random number and after all that was drawn before it, and the next
row counts only if the draft that led to it is that very token. So the tokens are those of a step each, to the bit,
whatever was drafted and however tokens are chosen; rows behind the first wrong draft are not looked at.

Knows: samples, the sampler. Does not know: pages, steps to come, who drafted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ridgeline.engine.sample import Sample
from ridgeline.ops.choice import NO_CHOICE, NO_TOKEN
from ridgeline.request.output import TokenChunk
from ridgeline.sampling.sampler import Sampler, SamplingError
from ridgeline.schedule.batch import Batch, BatchEntry

Logits = npt.NDArray[np.float32]


@dataclass(slots=True, kw_only=True)
class Chosen:
    """What a step brings one sample: tokens in order, with the chunk that each makes; the last may end the sample."""

    token_ids: list[int] = field(default_factory=list)
    chunks: list[TokenChunk] = field(default_factory=list)


class Chooser:
    """Reads rows of logits. Holds: the sampler."""

    def __init__(self, vocabulary_size: int) -> None:
        self._sampler = Sampler(vocabulary_size)

    def records(self, batch: Batch, samples: Mapping[int, Sample]) -> tuple[bytes, bytes]:
        """What a chip that chooses tokens itself is told: CHOICE records of all rows, and their ADJUSTMENT records.

        Rows that follow drafts of samples whose options look at the tokens before are left to the host, which knows
        these only one row after another.
        """
        choices: list[bytes] = []
        adjustments: list[bytes] = []
        for entry in batch.entries:
            num_rows = entry.num_logit_rows
            if num_rows == 0:
                continue
            sample = samples[entry.sequence_id]
            state = sample.state
            num_chosen = 1 + entry.num_drafted
            if entry.end - entry.num_drafted < len(sample.token_ids) or (state.changes_logits and num_chosen > 1):
                choices.append(NO_CHOICE * num_rows)
                continue
            if num_rows > num_chosen:
                choices.append(NO_CHOICE * (num_rows - num_chosen))
            if state.changes_logits:
                choice, own = state.records()
                choices.append(choice)
                adjustments.append(own)
            else:
                choices.append(state.choice_bytes * num_chosen)
        return b"".join(choices), b"".join(adjustments)

    def choose(
        self, sample: Sample, entry: BatchEntry, rows_BV: Logits, tokens_B: Sequence[int], chosen: Chosen
    ) -> None:
        """Read an entry's rows: log-probabilities of prompt tokens, then a token from each row that counts.

        `tokens_B` are those that the chip has chosen, or NO_TOKEN. What was drawn is noted in the sample and added to
        `chosen`, which keeps it where a later row raises. Raises SamplingError, and whatever the sample's text raises;
        both concern the sample's request alone.
        """
        num_known = len(sample.token_ids)
        for number in range(entry.num_logit_rows):
            end = entry.end - entry.num_logit_rows + number + 1
            if end < num_known:
                self._note_prompt_logprob(sample, end, rows_BV[number])
                continue
            try:
                self._draw(sample, rows_BV[number], tokens_B[number], chosen)
            except SamplingError as error:
                if entry.num_drafted and error.is_tainted:
                    # It may be a draft that did it. Without drafts, the next step shows whether it was.
                    sample.takes_drafts = False
                    return
                raise
            is_last = chosen.chunks[-1].finish_reason is not None or end == entry.end
            if is_last or entry.token_ids[end - entry.start] != chosen.token_ids[-1]:
                return

    def _draw(self, sample: Sample, row_V: Logits, token_id: int, chosen: Chosen) -> None:
        if token_id == NO_TOKEN:
            token_id = self._sampler.sample(row_V, sample.state)
        num_top = sample.request.sampling.logprobs
        logprob = None if num_top is None else self._sampler.logprob(row_V, token_id, num_top)
        chosen.chunks.append(sample.take(token_id, logprob))
        chosen.token_ids.append(token_id)

    def _note_prompt_logprob(self, sample: Sample, position: int, row_V: Logits) -> None:
        """Tell the token at `position`, whose logits these are, by its log-probability if the prompt's are wanted."""
        if sample.prompt_logprobs is None:
            return
        assert len(sample.prompt_logprobs) == position
        num_top = sample.request.sampling.prompt_logprobs or 0
        sample.prompt_logprobs.append(self._sampler.logprob(row_V, sample.token_ids[position], num_top))
