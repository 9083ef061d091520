"""How large an engine is: the largest step from the roofline, the number of pages from memory. No knobs.

Knows: the cost of steps, what a page takes, what memory there is. Does not know: where any of it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.errors import CapacityError
from ridgeline.ops.chip import ChipFacts
from ridgeline.ops.cost import StepCost
from ridgeline.ops.step import PAGE_SLOTS, SpanShape, StepLimits, StepShape
from ridgeline.schedule.sequence import pages_for

MIN_SEQUENCES, MAX_SEQUENCES = 32, 256
"""The fewest, because waiting for one another costs users more than a slower step; the most, because beyond it no chip
gains and each place costs logits."""
TYPICAL_CONTEXT_TOKENS = 512
WORTHWHILE_GAIN = 1.1
"""Twice as many sequences are allowed for while they raise the tokens per second by this factor at least."""
MIN_STEP_TOKENS, MAX_STEP_TOKENS = 512, 8192
MAX_STEP_SECONDS = 1.0
"""Of a step that reads prompts while nobody waits for a next token: a cancelled request is rid of within this time."""
WORTHWHILE_LOGIT_ROWS = 128
"""Rows of logits in a step, beyond one for each sequence. Prompts whose log-probabilities are wanted are read in chunks
of so many tokens: enough for the head's weights to be read for many tokens at once, and larger ones gain little."""
LOGITS_SHARE = 0.05
"""Of the memory that may be taken: no more of it is spent on those rows."""
SHARE_FOR_PAGES = 0.5
"""Of the memory that is left after the weights, where no budget was stated: others use this machine too."""
USABLE_SHARE = 0.95
"""Of the memory that the system calls available: taking all of it would push others out."""


def choose_limits(
    cost: StepCost, facts: ChipFacts, context_tokens: int, vocabulary_size: int, memory_bytes: int | None = None
) -> StepLimits:
    """The largest step worth making on this chip; `memory_bytes` is what a person allows for weights and pages."""

    def decode_seconds(num_sequences: int) -> float:
        span = SpanShape(num_tokens=1, context_tokens=min(TYPICAL_CONTEXT_TOKENS, context_tokens))
        return cost.seconds(StepShape(spans=(span,) * num_sequences, num_logit_rows=num_sequences), facts)

    def prefill_seconds(num_tokens: int) -> float:
        span = SpanShape(num_tokens=num_tokens, context_tokens=num_tokens)
        return cost.seconds(StepShape(spans=(span,), num_logit_rows=1), facts)

    num_sequences = MIN_SEQUENCES
    while num_sequences < MAX_SEQUENCES and decode_seconds(2 * num_sequences) * WORTHWHILE_GAIN <= 2 * decode_seconds(
        num_sequences
    ):
        num_sequences *= 2
    num_tokens = MIN_STEP_TOKENS
    while num_tokens < MAX_STEP_TOKENS and prefill_seconds(2 * num_tokens) <= MAX_STEP_SECONDS:
        num_tokens *= 2
    for_logits_bytes = int(LOGITS_SHARE * (facts.memory_bytes if memory_bytes is None else memory_bytes))
    num_rows = min(num_tokens, WORTHWHILE_LOGIT_ROWS, for_logits_bytes // logits_bytes(1, vocabulary_size))
    return StepLimits(
        max_tokens=num_tokens,
        max_sequences=num_sequences,
        max_logit_rows=max(num_sequences, num_rows),
        max_pages_per_sequence=pages_for(context_tokens),
    )


def logits_bytes(num_rows: int, vocabulary_size: int) -> int:
    """What rows of logits take."""
    return 4 * num_rows * vocabulary_size


@dataclass(frozen=True, slots=True, kw_only=True)
class PageBudget:
    """What memory allows."""

    num_pages: int
    context_tokens: int
    """Never more than all pages hold, so that every request that is let in can be run alone."""


def choose_pages(
    *,
    model_name: str,
    weight_bytes: int,
    step_bytes: int,
    page_bytes: int,
    available_bytes: int,
    memory_bytes: int | None,
    wanted_context_tokens: int | None,
    model_context_tokens: int,
    max_sequences: int,
) -> PageBudget:
    """How many pages to make.

    Enough for every sequence at full length, or as many as memory allows. Before anything is loaded, so that too
    little memory is said at once.

    Args:
        model_name: for the message.
        weight_bytes: what the weights take.
        step_bytes: what a step takes besides.
        page_bytes: what a page takes.
        available_bytes: what the chip has.
        memory_bytes: what a person allows for weights and pages; None: a share of what is available.
        wanted_context_tokens: what a person wants a request to be able to hold; None: the model's, as far as it fits.
        model_context_tokens: what the model was made for.
        max_sequences: that may run at once.

    Raises CapacityError if the weights and one request do not fit; it says what would.
    """
    usable_bytes = int(available_bytes * USABLE_SHARE)
    allowed_bytes = usable_bytes if memory_bytes is None else memory_bytes
    context_tokens = model_context_tokens if wanted_context_tokens is None else wanted_context_tokens
    least_pages = pages_for(context_tokens) if wanted_context_tokens is not None else 1
    left_bytes = allowed_bytes - weight_bytes - step_bytes
    if memory_bytes is not None and memory_bytes > available_bytes:
        raise CapacityError(
            f"{bytes_in_words(memory_bytes)} of memory were allowed, "
            f"but {bytes_in_words(available_bytes)} are available",
            hint="allow less, or free memory",
        )
    if left_bytes < least_pages * page_bytes:
        raise CapacityError(
            f"{model_name} needs {bytes_in_words(weight_bytes)} for its weights, "
            f"{bytes_in_words(step_bytes)} for logits and "
            f"{bytes_in_words(least_pages * page_bytes)} for a context of {least_pages * PAGE_SLOTS} tokens; "
            f"{bytes_in_words(max(allowed_bytes, 0))} "
            f"{'are available' if memory_bytes is None else 'were allowed'}",
            hint=_what_would_fit(left_bytes, page_bytes),
        )
    if memory_bytes is None:
        left_bytes = max(int(left_bytes * SHARE_FOR_PAGES), least_pages * page_bytes)
    num_pages = min(left_bytes // page_bytes, pages_for(context_tokens) * max_sequences)
    return PageBudget(num_pages=num_pages, context_tokens=min(context_tokens, num_pages * PAGE_SLOTS))


def _what_would_fit(left_bytes: int, page_bytes: int) -> str:
    num_tokens = left_bytes // page_bytes * PAGE_SLOTS
    if num_tokens <= 0:
        return "choose a smaller model or a smaller quantisation of it, or free memory"
    return f"a context of {num_tokens} tokens would fit; int8 keys and values take half the memory of bf16"


def bytes_in_words(count: float) -> str:
    """1234567 -> '1.2 MB': bytes as a person reads them, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
