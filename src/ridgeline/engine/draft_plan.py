"""Opening a draft model beside the model that it guesses for: the same vocabulary, the same chip, pages of its own.

Knows: what must agree between the two. Does not know: how guesses are made or used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ridgeline.engine.cost import step_cost
from ridgeline.engine.draft_model import READ_TOKENS, DraftModel
from ridgeline.engine.predict import StepPredictor
from ridgeline.engine.sizes import logits_bytes
from ridgeline.errors import UserError
from ridgeline.model.load import ModelPlan, load_plan, page_layout, plan_model, step_function
from ridgeline.ops.chip import AnyChip, ChipFacts, KvFormat
from ridgeline.ops.step import StepLimits
from ridgeline.text.open import open_text
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.open import open_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftBytes:
    """What a draft model takes."""

    weights: int = 0
    step: int = 0
    page: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """A draft model that could be loaded."""

    checkpoint: Checkpoint
    plan: ModelPlan
    limits: StepLimits
    vocabulary_size: int
    """Tokens that both models know."""

    @classmethod
    def of(cls, path: Path, tokenizer: Tokenizer, cache_folder: Path, limits: StepLimits) -> DraftPlan:
        """The model at `path` as a draft model of one with this tokenizer and these limits.

        Raises UserError if its vocabulary is another, or what `open_checkpoint` and `plan_model` raise. Nothing stays
        open then.
        """
        checkpoint = open_checkpoint(path)
        try:
            own = open_text(checkpoint, cache_folder / "text")[0]
            check_same_vocabulary(tokenizer, own, path.name)
            plan = plan_model(checkpoint, context_tokens=None)
        except BaseException:
            checkpoint.close()
            raise
        return cls(
            checkpoint=checkpoint,
            plan=plan,
            limits=StepLimits(
                max_tokens=max(READ_TOKENS, limits.max_sequences),
                max_sequences=limits.max_sequences,
                max_logit_rows=limits.max_sequences,
                max_pages_per_sequence=limits.max_pages_per_sequence,
            ),
            vocabulary_size=min(len(tokenizer.token_bytes_table), plan.spec.vocabulary_size),
        )

    def bytes(self, chip: AnyChip, kv_format: KvFormat) -> DraftBytes:
        """What it will take on this chip."""
        return DraftBytes(
            weights=self.plan.weight_bytes,
            step=logits_bytes(self.limits.max_logit_rows, self.plan.spec.vocabulary_size),
            page=chip.page_bytes(page_layout(self.plan.spec, kv_format)),
        )

    def load(self, chip: AnyChip, facts: ChipFacts, kv_format: KvFormat, num_pages: int) -> DraftModel:
        """The model, ready to guess; it has as many pages as the model that it guesses for."""
        loaded = load_plan(self.plan, chip)
        pages = chip.allocate_pages(page_layout(self.plan.spec, kv_format), num_pages, self.limits)
        return DraftModel(
            chip.compile(step_function(loaded), pages, self.limits),
            self.limits,
            StepPredictor(step_cost(self.plan, kv_format), facts),
            vocabulary_size=self.vocabulary_size,
            context_tokens=self.plan.spec.context_tokens,
        )


def check_same_vocabulary(tokenizer: Tokenizer, draft: Tokenizer, draft_name: str) -> None:
    """Raise UserError unless every token id stands for the same bytes in both.

    One may have more ids than the other where these stand for nothing: heads are padded to round numbers.
    """
    large, small = tokenizer.token_bytes_table, draft.token_bytes_table
    count = min(len(large), len(small))
    differ = np.flatnonzero(np.diff(large.offsets[: count + 1]) != np.diff(small.offsets[: count + 1]))
    if not len(differ):
        end = int(large.offsets[count])
        bytes_differ = np.flatnonzero(large.blob[:end] != small.blob[:end])
        differ = np.searchsorted(large.offsets[: count + 1], bytes_differ[:1], side="right") - 1
    if len(differ):
        number = int(differ[0])
        raise UserError(
            f"the draft model {draft_name} has another vocabulary: token {number} is {large.bytes_of(number)!r} for "
            f"the model and {small.bytes_of(number)!r} for the draft model",
            hint="a draft model must have the vocabulary of the model that it guesses for; take a smaller model of the "
            "same family",
            field="draft_model",
        )
    for table, name in ((large, "the model"), (small, "the draft model")):
        if int(table.offsets[-1]) != int(table.offsets[count]):
            raise UserError(
                f"the draft model {draft_name} has another vocabulary: {name} has tokens beyond the {count} that both "
                "know",
                hint="take a smaller model of the same family",
                field="draft_model",
            )
