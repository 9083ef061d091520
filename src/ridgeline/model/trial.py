"""Running a model on a chip without an engine: tokens in, logits out, for conformance suites, tests and benchmarks.

Knows: the chip contract, the simplest page allocation there is (each sequence has its pages from the
start). Does not know: requests, sampling, schedules.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ridgeline.model.load import LoadedModel, step_function
from ridgeline.ops.chip import AnyChip, KvFormat
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import PAGE_SLOTS, StepLimits

Logits = npt.NDArray[np.float32]


class Trial:
    """A model on a chip, with room for a few sequences that are fed by hand.

    Holds: pages, and how many tokens each sequence has been fed; `feed` and `forget` change them.

    Args:
        chip: where the model was loaded.
        model: what `load_model` gave.
        num_sequences: sequences that can be fed, numbered from 0.
        max_tokens: the longest that a sequence may get, and the most new tokens of a step.
        kv_format: how keys and values are kept.
        page_seed: None gives each sequence consecutive pages; a number scatters them, the same way each time.
    """

    def __init__(
        self,
        chip: AnyChip,
        model: LoadedModel,
        *,
        num_sequences: int = 1,
        max_tokens: int = 1024,
        kv_format: KvFormat = "f32",
        page_seed: int | None = None,
    ) -> None:
        num_pages = -(-max_tokens // PAGE_SLOTS)
        limits = StepLimits(
            max_tokens=num_sequences * max_tokens,
            max_sequences=num_sequences,
            max_logit_rows=num_sequences * max_tokens,
            max_pages_per_sequence=num_pages,
        )
        page_ids = np.arange(num_sequences * num_pages)
        if page_seed is not None:
            page_ids = np.random.default_rng(page_seed).permutation(page_ids)
        self._page_ids = page_ids.reshape(num_sequences, num_pages)
        self._lengths = [0] * num_sequences
        pages = chip.allocate_pages(model.page_layout(kv_format), num_sequences * num_pages, limits)
        self._compiled = chip.compile(step_function(model), pages, limits)

    def feed(self, tokens: dict[int, Sequence[int]], *, last_only: bool = False) -> dict[int, Logits]:
        """Run one step that appends these tokens to these sequences; return each one's logits, a row per new token.

        With `last_only`, a single row each: that of the last token.
        """
        parts = [
            StepPart(
                token_ids=token_ids,
                start=self._lengths[sequence],
                page_ids=self._page_ids[sequence],
                place=sequence,
                num_logit_rows=1 if last_only else len(token_ids),
            )
            for sequence, token_ids in tokens.items()
        ]
        logits_BV = self._compiled.run(host_step(parts)).copy()
        answers: dict[int, Logits] = {}
        row = 0
        for (sequence, token_ids), part in zip(tokens.items(), parts, strict=True):
            self._lengths[sequence] += len(token_ids)
            answers[sequence] = logits_BV[row : row + part.num_logit_rows]
            row += part.num_logit_rows
        return answers

    def forget(self, sequence: int, length: int = 0) -> None:
        """Let the sequence hold only its first `length` tokens, so that others can be fed after them."""
        assert length <= self._lengths[sequence]
        self._lengths[sequence] = length

    def seconds(self) -> float:
        """How long the last step took on the chip's own clock."""
        return self._compiled.seconds()


def prompt_logits(
    chip: AnyChip,
    model: LoadedModel,
    token_ids: Sequence[int],
    *,
    chunk_tokens: int | None = None,
    kv_format: KvFormat = "f32",
    page_seed: int | None = None,
) -> Logits:
    """logits_TV of every token of a prompt that is fed in chunks (None: at once)."""
    trial = Trial(chip, model, max_tokens=len(token_ids), kv_format=kv_format, page_seed=page_seed)
    size = chunk_tokens or len(token_ids)
    chunks = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
    return np.concatenate([trial.feed({0: chunk})[0] for chunk in chunks])


def greedy(
    chip: AnyChip, model: LoadedModel, token_ids: Sequence[int], num_tokens: int, *, kv_format: KvFormat = "f32"
) -> list[int]:
    """The `num_tokens` tokens that follow the prompt when the likeliest is taken each time (of equals, the lowest)."""
    trial = Trial(chip, model, max_tokens=len(token_ids) + num_tokens, kv_format=kv_format)
    chosen = [int(trial.feed({0: token_ids}, last_only=True)[0][0].argmax())]
    while len(chosen) < num_tokens:
        chosen.append(int(trial.feed({0: chosen[-1:]}, last_only=True)[0][0].argmax()))
    return chosen
