"""Opening an engine: from a model's files and a person's goals to something that runs steps.

Knows: the order in which it is done, and what must be found out before anything large is loaded. Does not know: how any
chip, family or file format works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ridgeline.chips.registry import open_chip
from ridgeline.engine.client import EngineModel
from ridgeline.engine.cost import step_cost
from ridgeline.engine.draft_plan import DraftBytes, DraftPlan
from ridgeline.engine.engine import Engine
from ridgeline.engine.predict import StepPredictor
from ridgeline.engine.settings import EngineSettings
from ridgeline.engine.sizes import choose_limits, choose_pages, logits_bytes
from ridgeline.engine.speculation import Copying, Drafting
from ridgeline.errors import UserError
from ridgeline.model.load import ModelPlan, load_plan, page_layout, plan_model, step_function
from ridgeline.ops.chip import AnyChip, ChipFacts
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from ridgeline.text.open import open_text
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.weights.cache_folder import default_cache_folder
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.facts import main_format
from ridgeline.weights.open import open_checkpoint


def open_engine(
    settings: EngineSettings,
    *,
    on_notice: Callable[[str], None] = lambda text: None,
    checkpoint: Checkpoint | None = None,
    chip: AnyChip | None = None,
    tokenizer: Tokenizer | None = None,
    limits: StepLimits | None = None,
    drafting: Drafting | None = None,
) -> Engine:
    """An engine that holds the model.

    Args:
        settings: what a person says; what is None there is decided here.
        on_notice: is told what a person should know, one line each.
        checkpoint: the model's files, if someone has them open already; the engine closes them.
        chip: one that is open already, which the engine will close; None: the one that the settings name.
        tokenizer: the model's, if someone has it already.
        limits: the largest step; None: decided from the roofline. For tests and benchmarks.
        drafting: who guesses next tokens, if anyone shall; None: those that copy. For tests.

    Raises UserError for what is wrong with the files or the settings, CapacityError, before anything is loaded, if
    memory does not suffice; ChipError. What was opened until then is closed again.
    """
    cache_folder = default_cache_folder() if settings.cache_folder is None else Path(settings.cache_folder)
    with ExitStack() as stack:
        if checkpoint is None:
            checkpoint = open_checkpoint(Path(settings.model))
        stack.callback(checkpoint.close)
        if settings.draft_model is not None and not settings.speculation:
            raise UserError(
                "a draft model was given, and speculation=False, with which it is of no use",
                hint="leave out one of the two",
                field="draft_model",
            )
        plan = plan_model(checkpoint, context_tokens=settings.context_tokens)
        _check_context(settings, plan)
        if chip is None:
            chip = open_chip(settings.chip, cache_folder=cache_folder, num_threads=settings.num_threads)
        stack.callback(chip.close)
        facts = chip.facts()
        _check_kv_format(settings, facts)
        cost = step_cost(plan, settings.kv_format)
        if limits is None:
            context_tokens = settings.context_tokens or plan.spec.context_tokens
            limits = choose_limits(cost, facts, context_tokens, plan.spec.vocabulary_size, settings.memory_bytes)
        text = tokenizer if tokenizer is not None else open_text(checkpoint, cache_folder / "text")[0]
        draft = None
        if settings.draft_model is not None:
            draft = DraftPlan.of(Path(settings.draft_model), text, cache_folder, limits)
            stack.callback(draft.checkpoint.close)
        model = _sized_model(settings, plan, draft, chip, facts, limits, main_format(checkpoint))
        if model.context_tokens < plan.spec.context_tokens and settings.context_tokens is None:
            on_notice(
                f"memory holds {model.context_tokens} tokens, so that is the context; "
                f"the model was made for {plan.spec.context_tokens}"
            )
        loaded = load_plan(plan, chip)
        checkpoint.release()  # most chips have copies by now, and the others read what they need once more
        pages = chip.allocate_pages(page_layout(plan.spec, settings.kv_format), model.num_pages, limits)
        compiled = chip.compile(step_function(loaded), pages, limits)
        for notice in getattr(chip, "notices", ()):
            on_notice(notice)
        drafting = (drafting or Copying()) if settings.speculation else None
        draft_model = None if draft is None else draft.load(chip, facts, settings.kv_format, model.num_pages)
        return Engine(
            model=model,
            compiled=compiled,
            limits=limits,
            text=text,
            predictor=StepPredictor(cost, facts),
            goal_seconds_per_token=settings.goal_seconds_per_token,
            drafting=drafting,
            draft_model=draft_model,
            max_queued_requests=settings.max_queued_requests,
            max_queued_tokens=settings.max_queued_tokens,
            clock=clock_of(chip),
            # A chip may read weights when they are first used, so the files stay open with the engine.
            on_close=stack.pop_all().close,
        )


def _sized_model(
    settings: EngineSettings,
    plan: ModelPlan,
    draft: DraftPlan | None,
    chip: AnyChip,
    facts: ChipFacts,
    limits: StepLimits,
    format_name: str,
) -> EngineModel:
    """What the engine will hold, as far as memory allows. Raises CapacityError."""
    name = settings.name or Path(settings.model).stem
    draft_bytes = DraftBytes() if draft is None else draft.bytes(chip, settings.kv_format)
    budget = choose_pages(
        model_name=name,
        weight_bytes=plan.weight_bytes + draft_bytes.weights,
        step_bytes=logits_bytes(limits.max_logit_rows, plan.spec.vocabulary_size) + draft_bytes.step,
        page_bytes=chip.page_bytes(page_layout(plan.spec, settings.kv_format)) + draft_bytes.page,
        available_bytes=facts.memory_bytes,
        memory_bytes=settings.memory_bytes,
        wanted_context_tokens=settings.context_tokens,
        model_context_tokens=plan.spec.context_tokens,
        max_sequences=limits.max_sequences,
    )
    return EngineModel(
        name=name,
        family=plan.spec.family,
        format_name=format_name,
        vocabulary_size=plan.spec.vocabulary_size,
        context_tokens=budget.context_tokens,
        num_pages=budget.num_pages,
        page_slots=PAGE_SLOTS,
        weight_bytes=plan.weight_bytes,
        kv_format=settings.kv_format,
        chip=facts.description,
    )


def clock_of(chip: AnyChip) -> Callable[[], float]:
    """The chip's own time where it is virtual, else this machine's."""
    clock = getattr(chip, "clock", None)
    return time.perf_counter if clock is None else clock.now


def _check_context(settings: EngineSettings, plan: ModelPlan) -> None:
    wanted = settings.context_tokens
    if wanted is None:
        return
    most = plan.spec.context_tokens
    if not 1 < wanted <= most:
        raise UserError(
            f"a context of {wanted} tokens was asked for; this model was made for 2 to {most}", field="context_tokens"
        )


def _check_kv_format(settings: EngineSettings, facts: ChipFacts) -> None:
    if settings.kv_format not in facts.kv_formats:
        raise UserError(
            f"the {facts.name} chip keeps keys and values as {' or '.join(facts.kv_formats)}, not {settings.kv_format}",
            field="kv_format",
        )
