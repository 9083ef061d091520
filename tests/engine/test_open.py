"""Opening an engine: sizes from roofline and memory, said before anything is loaded, and chips by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ridgeline.chips.published import published_chip
from ridgeline.chips.registry import CHIPS, open_chip
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.engine.sizes import bytes_in_words, choose_limits, choose_pages
from ridgeline.errors import CapacityError, UserError
from ridgeline.model.load import plan_model
from ridgeline.ops.chip import ChipFacts
from ridgeline.ops.cost import ANY_TOKENS, TOKENS, CostTerm, StepCost
from ridgeline.ops.step import StepLimits
from ridgeline.weights.open import open_checkpoint
from tests.tiny_models import write_tiny_gguf

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def settings(path, **more) -> EngineSettings:
    said = {"model": str(path), "chip": "reference", "kv_format": "f32", "cache_folder": str(path.parent)}
    return EngineSettings(**{**said, **more})


def pages(**more):
    said = {
        "model_name": "m",
        "weight_bytes": 100 * MEGABYTE,
        "step_bytes": 0,
        "page_bytes": MEGABYTE,
        "available_bytes": 1000 * MEGABYTE,
        "memory_bytes": None,
        "wanted_context_tokens": None,
        "model_context_tokens": 4096,
        "max_sequences": 16,
    }
    return choose_pages(**{**said, **more})


def test_pages_are_a_share_of_what_is_left_or_all_that_could_be_used() -> None:
    assert pages().num_pages == 425, "half of 95 % of 1,000 less 100"
    assert pages(max_sequences=2).num_pages == 128, "two times 4,096 tokens"
    assert pages(memory_bytes=400 * MEGABYTE).num_pages == 300, "what was allowed is used"


def test_the_context_is_cut_to_what_fits_unless_it_was_asked_for() -> None:
    assert pages(memory_bytes=110 * MEGABYTE).context_tokens == 640
    assert pages(memory_bytes=110 * MEGABYTE, wanted_context_tokens=640).num_pages == 10
    with pytest.raises(CapacityError) as caught:
        pages(memory_bytes=110 * MEGABYTE, wanted_context_tokens=4096)
    assert "a context of 640 tokens would fit" in caught.value.hint
    assert "64.0 MB for a context of 4096 tokens" in caught.value.message


def test_too_little_memory_is_said_with_what_is_needed() -> None:
    with pytest.raises(CapacityError) as caught:
        pages(available_bytes=50 * MEGABYTE)
    assert "100.0 MB for its weights, 0 B for logits" in caught.value.message
    assert "47.5 MB are available" in caught.value.message
    assert "smaller" in caught.value.hint
    with pytest.raises(CapacityError, match=r"2.0 GB of memory were allowed, but 1.0 GB are available"):
        pages(memory_bytes=2000 * MEGABYTE)


def test_a_wish_for_context_may_take_more_than_the_usual_share() -> None:
    assert pages(wanted_context_tokens=700 * 64, model_context_tokens=1 << 20).num_pages == 700


def test_bytes_in_words() -> None:
    sizes = (0, 999, 12_345, 98_362_432, 5 * 10**12)
    assert [bytes_in_words(size) for size in sizes] == ["0 B", "999 B", "12.3 kB", "98.4 MB", "5000.0 GB"]


def test_the_largest_step_follows_the_roofline() -> None:
    """A model of a billion weights, a byte each: moved once a step, two operations for each token."""
    weights = 1_000_000_000
    linear = CostTerm(
        kind="linear", format_name="BF16", operations=((TOKENS, 2 * weights),), bytes=((ANY_TOKENS, weights),)
    )
    cost = StepCost(windows=(), terms=(linear,))
    slow = ChipFacts(
        name="slow",
        description="",
        memory_bytes=1,
        bandwidth_bytes_per_second=2e10,
        operations_per_second={"fp32": 1e12},
        source="none",
    )
    fast = published_chip("h100").facts()
    assert choose_limits(cost, slow, 2048, 100_000).max_tokens == 512
    assert choose_limits(cost, fast, 2048, 100_000).max_tokens == 8192
    assert choose_limits(cost, fast, 2048, 100_000).max_sequences == 256
    far = replace(slow, bandwidth_bytes_per_second=1e10)
    assert choose_limits(cost, far, 2048, 100_000).max_sequences == 64, (
        "50 tokens of arithmetic take as long as the weights"
    )
    rows = {
        memory: choose_limits(cost, slow, 2048, 100_000, memory).max_logit_rows
        for memory in (1 << 20, 500_000_000, 1 << 40)
    }
    assert rows == {1 << 20: 32, 500_000_000: 62, 1 << 40: 128}, "one for each sequence, a share of memory, enough"
    assert choose_limits(cost, replace(slow, memory_bytes=500_000_000), 2048, 100_000).max_logit_rows == 62


def test_opened_with_nothing_said(tiny) -> None:
    notices: list[str] = []
    engine = open_engine(settings(tiny), on_notice=notices.append)
    model = engine.model
    assert (model.name, model.family, model.format_name) == ("tiny", "llama", "F32")
    assert model.context_tokens == 2048 and model.vocabulary_size == 304
    assert model.num_pages * model.page_slots >= 32 * 2048
    assert notices == []
    engine.close()


def test_a_context_that_does_not_fit_is_told(tiny) -> None:
    notices: list[str] = []
    weights = plan_model(open_checkpoint(tiny)).weight_bytes
    limits = StepLimits(max_tokens=512, max_sequences=8, max_logit_rows=8, max_pages_per_sequence=32)
    said = settings(tiny, memory_bytes=weights + MEGABYTE)
    engine = open_engine(said, on_notice=notices.append, limits=limits)
    assert engine.model.context_tokens == engine.model.num_pages * 64 < 2048
    assert len(notices) == 1 and "2048" in notices[0]
    engine.close()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"context_tokens": 4096}, "2 to 2048"),
        ({"context_tokens": 0}, "2 to 2048"),
        ({"memory_bytes": 1000}, "for its weights"),
        ({"chip": "cpuu"}, "did you mean cpu"),
        ({"chip": "reference:x"}, "there is no chip"),
        ({"chip": "simulated"}, "simulated:h100"),
        ({"chip": "simulated:z999"}, "z999"),
        ({"chip": "torch", "kv_format": "int8"}, "int8"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(tiny, said, words, monkeypatch) -> None:
    if said.get("chip") == "torch":
        pytest.importorskip("torch")
    monkeypatch.setattr("ridgeline.engine.open.load_plan", lambda *_: pytest.fail("weights were loaded"))
    if said.get("chip") in (None, "torch"):
        monkeypatch.setattr("ridgeline.engine.open.step_cost", lambda *_: None)
        monkeypatch.setattr("ridgeline.engine.open.choose_limits", lambda *_: pytest.fail("not reached"), raising=True)
        if "memory_bytes" in said:
            monkeypatch.undo()
    with pytest.raises(UserError) as caught:
        open_engine(settings(tiny, **said))
    assert words in str(caught.value)


def test_files_that_are_open_already_are_used_and_closed_with_the_engine(tiny, monkeypatch) -> None:
    checkpoint = open_checkpoint(tiny)
    monkeypatch.setattr("ridgeline.engine.open.open_checkpoint", lambda path: pytest.fail("it was opened again"))
    closed = []
    close = type(checkpoint).close
    monkeypatch.setattr(type(checkpoint), "close", lambda self: closed.append(close(self)))
    engine = open_engine(settings(tiny), checkpoint=checkpoint)
    assert not closed
    engine.close()
    assert len(closed) == 1


def test_what_was_opened_is_closed_when_something_fails_later(tiny, monkeypatch) -> None:
    chip = open_chip("reference")
    closed = []
    monkeypatch.setattr(chip, "close", lambda: closed.append("chip"))
    monkeypatch.setattr(chip, "compile", lambda *_: (_ for _ in ()).throw(MemoryError("no")))
    with pytest.raises(MemoryError):
        open_engine(settings(tiny), chip=chip)
    assert closed == ["chip"]


def test_every_chip_of_the_table_opens_or_says_what_to_install() -> None:
    for name in CHIPS:
        try:
            open_chip("simulated:h100" if name == "simulated" else name).close()
        except UserError as error:
            assert "pip install" in error.hint
