"""The reference chip as a chip: it asserts every law of a step, so that an engine that breaks one is caught on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgeline.chips.reference import ReferenceChip
from ridgeline.model.load import load_model
from ridgeline.model.trial import Trial
from ridgeline.ops.chip import PageLayout
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import StepLimits
from ridgeline.weights.open import open_checkpoint
from tests.tiny_models import write_tiny_gguf

LIMITS = StepLimits(max_tokens=80, max_sequences=2, max_logit_rows=3, max_pages_per_sequence=2)


@pytest.fixture
def compiled():
    chip = ReferenceChip()
    pages = chip.allocate_pages(PageLayout(layers=((1, 2),), format="f32"), 4, LIMITS)
    return chip.compile(lambda ops, step, pages: (np.zeros((len(step.logit_rows_B), 5)), pages), pages, LIMITS)


def good_step():
    first = StepPart(token_ids=[1] * 70, start=0, page_ids=[2, 0], place=1, num_logit_rows=2)
    second = StepPart(token_ids=[7], start=64, page_ids=[1, 3], place=0, num_logit_rows=1)
    return host_step([first, second])


def test_a_lawful_step_runs(compiled):
    logits = compiled.run(good_step())
    assert logits.shape == (3, 5) and logits.dtype == np.float32
    assert compiled.seconds() > 0


def changed(name, index, value):
    def change(step):
        array = getattr(step, name).copy()
        array[index] = value
        return replace(step, **{name: array})

    return change


UNLAWFUL = {
    "positions that jump": changed("positions_T", 3, 9),
    "a slot of another page": changed("slots_T", 70, 0),
    "a page that is not there": changed("page_table_NP", (0, 1), 7),
    "rows out of order": changed("logit_rows_B", 0, 70),
    "a row beyond the tokens": changed("logit_rows_B", 2, 71),
    "starts that end early": changed("query_starts_N1", 2, 70),
    "an empty sequence": changed("query_starts_N1", 1, 0),
    "a sequence that is not its own": changed("sequences_T", 0, 1),
    "a shared place": changed("places_N", 0, 0),
    "a place beyond the limit": changed("places_N", 0, 2),
    "a context that does not fit its pages": changed("context_lengths_N", 0, 129),
    "wide integers": lambda step: replace(step, token_ids_T=step.token_ids_T.astype(np.int64)),
    "more tokens than the limit": lambda step: host_step(
        [StepPart(token_ids=[1] * 81, start=0, page_ids=[2, 0], place=1, num_logit_rows=1)]
    ),
    "more rows than the limit": lambda step: host_step(
        [StepPart(token_ids=[1] * 5, start=0, page_ids=[2], place=1, num_logit_rows=4)]
    ),
    "one page in two sequences' writes": lambda step: host_step(
        [StepPart(token_ids=[1], start=0, page_ids=[2], place=place, num_logit_rows=1) for place in (0, 1)]
    ),
}


@pytest.mark.parametrize("change", UNLAWFUL.values(), ids=UNLAWFUL.keys())
def test_an_unlawful_step_is_refused(change, compiled):
    with pytest.raises(AssertionError):
        compiled.run(change(good_step()))


def test_reading_what_was_never_stored_shows(tmp_path):
    chip = ReferenceChip()
    trial = Trial(chip, load_model(open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf")), chip))
    trial._lengths[0] = 5
    assert np.isnan(trial.feed({0: [3]})[0]).all()


def test_closing_gives_the_weights_back(tmp_path):
    chip = ReferenceChip()
    model = load_model(open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf")), chip)
    before = Trial(chip, model).feed({0: [3, 4]})[0]
    assert "values" in model.weights.embedding.__dict__
    chip.close()
    assert "values" not in model.weights.embedding.__dict__
    assert np.array_equal(Trial(chip, model).feed({0: [3, 4]})[0], before)


def test_facts_and_page_bytes():
    chip = ReferenceChip()
    assert chip.facts().source == "none" and chip.facts().memory_bytes > 1 << 28
    assert chip.page_bytes(PageLayout(layers=((2, 8), (1, 4)), format="int8")) == 2 * 64 * 4 * (16 + 4)
