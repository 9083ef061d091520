"""A small model that guesses: the same bits, whatever it guesses; refused where its vocabulary is another."""

from __future__ import annotations

import pytest

from ridgeline.chips.registry import open_chip
from ridgeline.engine.draft_plan import check_same_vocabulary
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.errors import UserError
from ridgeline.ops.step import StepLimits
from ridgeline.request import FinishReason, Request, SamplingParams
from ridgeline.text.open import open_text
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf
from tests.engine.test_real_chips import BASE, NEEDS_CPU, WANTED, answer, wanted
from tests.tiny_models import TinySizes, write_tiny_gguf

SMALL = TinySizes(width=64, num_layers=1, num_query_heads=2, num_kv_heads=1, mlp_width=128)


class NoCopies:
    """Leaves all guessing to the draft model."""

    def drafters(self, request: Request, token_ids: object) -> tuple[()]:
        return ()

    def note_end(self, request: Request, token_ids: object) -> None: ...

    def forget(self) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft")
    write_tiny_gguf(folder / "model.gguf")
    write_tiny_gguf(folder / "other.gguf", seed=9, sizes=SMALL)
    return folder


def opened(folder, chip: str, kv_format: str, draft: str | None, *, num_pages: int = 40, **limits: int) -> Engine:
    settings = EngineSettings(
        model=str(folder / "model.gguf"),
        context_tokens=512,
        kv_format=kv_format,
        cache_folder=str(folder),
        draft_model=None if draft is None else str(folder / draft),
        speculation=draft is not None,
        memory_bytes=60_000_000,
    )
    sizes = {"max_tokens": 300, "max_sequences": 6, "max_logit_rows": 60, "max_pages_per_sequence": 8, **limits}
    opened_chip = open_chip(chip, cache_folder=folder, num_threads=1)
    return open_engine(settings, chip=opened_chip, limits=StepLimits(**sizes), drafting=NoCopies())


CHIPS = pytest.mark.parametrize(
    ("chip", "kv_format"),
    [
        ("reference", "f32"),
        ("reference", "int8"),
        *(pytest.param("cpu", kv, marks=NEEDS_CPU) for kv in ("bf16", "int8")),
    ],
)


@CHIPS
def test_the_same_bits_whoever_guesses(folder, chip, kv_format) -> None:
    plain = opened(folder, chip, kv_format, None)
    numbers = range(len(WANTED))
    expected = [answer(plain, wanted(number, max_tokens=70)) for number in numbers]
    plain.close()
    for draft in ("model.gguf", "other.gguf"):
        engine = opened(folder, chip, kv_format, draft)
        for others in (0, 3):
            assert [answer(engine, wanted(number, max_tokens=70), others=others) for number in numbers] == expected
        engine.close()


@CHIPS
def test_a_model_that_guesses_for_itself_is_always_right(folder, chip, kv_format) -> None:
    """Its pages, positions and prefixes must then be the very ones of the model: any mistake there is a wrong guess."""
    engine = opened(folder, chip, kv_format, "model.gguf")
    model = engine._speculation._draft_model
    # As if its steps took no time and those of the model one time, so that it is asked whatever this machine is doing.
    engine._speculation._predict = None
    model.seconds = lambda group, count: 0.0
    model.reading_seconds = lambda group: 0.0
    sampling = SamplingParams(max_tokens=120, temperature=0.0, ignore_eos=True)
    prompts = [BASE[:100], BASE[:100], BASE[:130], BASE[5:40]]
    for number, prompt in enumerate(prompts):
        engine.add(Request(request_id=f"r{number}", prompt_token_ids=prompt, sampling=sampling, seed=0))
        engine.step()
    ends = []
    while engine.has_work():
        ends += [chunk for chunk in engine.step() if chunk.finish_reason is not None]
        engine.check_integrity()
    assert all(end.finish_reason is FinishReason.LENGTH for end in ends) and len(ends) == 4
    drafted = sum(end.timing.num_drafted_tokens for end in ends)
    accepted = sum(end.timing.num_accepted_tokens for end in ends)
    assert drafted > 200
    assert accepted >= 0.97 * drafted
    engine.close()


def test_a_model_that_is_always_wrong_is_asked_less_and_less(folder) -> None:
    engine = opened(folder, "reference", "f32", "other.gguf")
    engine._speculation._predict = None
    engine._speculation._draft_model.seconds = lambda group, count: 0.3 * count
    sampling = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
    engine.add(Request(request_id="r", prompt_token_ids=BASE[:60], sampling=sampling, seed=0))
    while engine.has_work():
        chunks = engine.step()
    assert chunks[-1].timing.num_drafted_tokens < 60
    engine.close()


@pytest.mark.parametrize("change", ["swapped", "longer", "fewer"])
def test_another_vocabulary_is_refused(folder, tmp_path, change) -> None:
    checkpoint = open_checkpoint(folder / "model.gguf")
    metadata = dict(checkpoint.metadata)
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    tokens, merges = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.merges"])
    if change == "swapped":
        tokens[65], tokens[66] = tokens[66], tokens[65]
    elif change == "longer":
        tokens[200] += "x"
    else:
        tokens[-1] = "<|another|>"
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
    write_gguf(tmp_path / "other.gguf", metadata, tensors)
    checkpoint.close()
    settings = EngineSettings(
        model=str(folder / "model.gguf"),
        draft_model=str(tmp_path / "other.gguf"),
        chip="reference",
        kv_format="f32",
        cache_folder=str(folder),
    )
    with pytest.raises(UserError, match="another vocabulary") as caught:
        open_engine(settings)
    assert caught.value.field == "draft_model"
    assert "same family" in caught.value.hint


def test_vocabularies_that_differ_in_padding_alone_are_the_same(folder) -> None:
    tokenizer = open_text(open_checkpoint(folder / "model.gguf"))[0]
    check_same_vocabulary(tokenizer, tokenizer, "itself")


def test_its_memory_is_asked_for_before_anything_is_loaded(folder) -> None:
    with pytest.raises(UserError, match="needs"):
        settings = EngineSettings(
            model=str(folder / "model.gguf"),
            draft_model=str(folder / "other.gguf"),
            chip="reference",
            kv_format="f32",
            cache_folder=str(folder),
            memory_bytes=1_000_000,
        )
        open_engine(settings)


def test_it_is_of_no_use_without_speculation(folder) -> None:
    settings = EngineSettings(
        model=str(folder / "model.gguf"), draft_model=str(folder / "other.gguf"), speculation=False
    )
    with pytest.raises(UserError, match="speculation=False"):
        open_engine(settings)
