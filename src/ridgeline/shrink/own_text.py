"""What a model writes itself, given openings of many kinds: the inputs that it meets in use, without anyone's data.

Knows: the chip contract. Does not know: what the text is for.

Source of the idea, calibration by what the model itself generates: LLM-QAT, arXiv 2305.17888, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from ridgeline.model.load import LoadedModel, step_function
from ridgeline.ops.chip import AnyChip
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from ridgeline.text.chat_prompt import chat_tokens
from ridgeline.text.chat_template import ChatTemplate
from ridgeline.text.tokenizer import Tokenizer

SEPARATOR = "\n====\n"
QUESTION = "User: "
"""What an opening begins with that is asked in the model's chat template, where it has one."""
LEAST_SHARE = 0.02
"""Tokens with less than this share of the likeliest one's probability are not drawn: the text stays plausible."""
SEED = 20260101


def openings(tokenizer: Tokenizer, template: ChatTemplate) -> list[list[int]]:
    """The tokens of each opening that comes with the package."""
    text = (files(__package__) / "texts" / "openings.txt").read_text(encoding="utf-8")
    made = []
    for opening in text.rstrip("\n").split(SEPARATOR):
        if opening.startswith(QUESTION) and template.is_present:
            question = {"role": "user", "content": opening.removeprefix(QUESTION)}
            made.append(chat_tokens(tokenizer, template, [question]))
        else:
            made.append(tokenizer.encode(opening, add_special_tokens=True))
    return made


def continued(
    chip: AnyChip,
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    forbidden: Sequence[int],
    on_progress: Callable[[], None],
) -> list[list[int]]:
    """Each prompt with what the model goes on with, up to `num_tokens` together; longer prompts are cut.

    A token is drawn by a random number of its sequence and position alone, so the same model on the same chip always
    writes the same. `forbidden` are tokens that are never drawn, such as those that end an answer; `on_progress` is
    told after each step, of which there are `num_tokens` less the shortest prompt's, and one.
    """
    sequences = [list(prompt[:num_tokens]) for prompt in prompts]
    num_pages = -(-num_tokens // PAGE_SLOTS)
    limits = StepLimits(
        max_tokens=sum(map(len, sequences)),
        max_sequences=len(sequences),
        max_logit_rows=len(sequences),
        max_pages_per_sequence=num_pages,
    )
    pages = chip.allocate_pages(model.page_layout("bf16"), len(sequences) * num_pages, limits)
    compiled = chip.compile(step_function(model), pages, limits)
    numbers_NT = np.random.default_rng(SEED).random((len(sequences), num_tokens))
    fed = [0] * len(sequences)
    while waiting := [n for n, tokens in enumerate(sequences) if len(tokens) < num_tokens or fed[n] == 0]:
        parts = [
            StepPart(
                token_ids=sequences[n][fed[n] :],
                start=fed[n],
                page_ids=range(n * num_pages, (n + 1) * num_pages),
                place=n,
                num_logit_rows=1,
            )
            for n in waiting
        ]
        logits_BV = compiled.run(host_step(parts))
        for n, logits_V in zip(waiting, logits_BV, strict=True):
            fed[n] = len(sequences[n])
            if fed[n] < num_tokens:
                sequences[n].append(_drawn(logits_V, forbidden, numbers_NT[n, fed[n]]))
        on_progress()
    return sequences


def _drawn(logits_V: npt.NDArray[np.float32], forbidden: Sequence[int], number: float) -> int:
    """The token at which the running sum of probabilities passes `number`, in [0, 1)."""
    allowed_V = logits_V.astype(np.float64)
    allowed_V[list(forbidden)] = -np.inf
    allowed_V -= allowed_V.max()
    likely = np.flatnonzero(allowed_V >= math.log(LEAST_SHARE))
    sums = np.cumsum(np.exp(allowed_V[likely]))
    return int(likely[min(int(np.searchsorted(sums, number * sums[-1], side="right")), len(likely) - 1)])
