"""The torch and JAX chips beyond the suite: the default model, padding, what is said when the library is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ridgeline.chips.reference.chip import check_laws
from ridgeline.chips.registry import open_chip
from ridgeline.errors import UserError
from ridgeline.model.load import load_model
from ridgeline.model.trial import Trial
from ridgeline.ops.chip import AnyChip, HostStep, KvFormat, PageLayout
from ridgeline.ops.conformance.attention import MIXED, NUM_PAGES, steps_of_chunks
from ridgeline.ops.step import StepLimits
from ridgeline.weights.open import open_checkpoint
from tests.ops.chips import opened

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/smollm2_greedy.json").read_text(encoding="utf-8"))["prompts"]
LIMITS = StepLimits(max_tokens=256, max_sequences=8, max_logit_rows=256, max_pages_per_sequence=64)


def greedy_of_all(
    chip: AnyChip, path: Path, prompts: list[list[int]], kv_format: KvFormat, count: int
) -> list[list[int]]:
    """What follows each prompt when the likeliest token is taken each time, all prompts in the same steps."""
    checkpoint = open_checkpoint(path)
    trial = Trial(
        chip, load_model(checkpoint, chip), num_sequences=len(prompts), max_tokens=128, kv_format=kv_format, page_seed=2
    )
    following: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    fed = dict(enumerate(prompts))
    for _ in range(count):
        logits = trial.feed(fed, last_only=True)
        fed = {number: [int(logits[number][0].argmax())] for number in fed}
        for number, tokens in fed.items():
            following[number] += tokens
    checkpoint.close()
    return list(following.values())


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("kv_format", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_greedy_tokens_of_the_default_model_are_those_of_the_reference(
    name: str, kv_format: KvFormat, default_model_path: Path, tmp_path: Path
) -> None:
    chip = opened(name, tmp_path)
    prompts = [prompt["prompt_token_ids"] for prompt in GOLDEN]
    found = greedy_of_all(chip, default_model_path, prompts, kv_format, 32)
    assert found == [prompt["greedy_token_ids"] for prompt in GOLDEN]
    chip.close()


@pytest.mark.slow
@pytest.mark.model
def test_golden_tokens_are_the_reference_chips(default_model_path: Path, tmp_path: Path) -> None:
    prompts = [prompt["prompt_token_ids"] for prompt in GOLDEN]
    shortest = min(GOLDEN, key=lambda prompt: len(prompt["prompt_token_ids"]))
    assert all(len(prompt["greedy_token_ids"]) == 32 for prompt in GOLDEN) and len(prompts) == 4
    found = greedy_of_all(opened("reference", tmp_path), default_model_path, [shortest["prompt_token_ids"]], "f32", 32)
    assert found == [shortest["greedy_token_ids"]]


@pytest.mark.jax
def test_padding_keeps_the_step_and_stays_within_the_limits(tmp_path: Path) -> None:
    opened("jax", tmp_path).close()
    from ridgeline.chips.jax.chip import padded

    num_slots = NUM_PAGES * 64
    shapes = set()
    for step in steps_of_chunks(MIXED):
        arrays = padded(step, LIMITS, num_slots)
        for entry in fields(step):
            whole = getattr(step, entry.name)
            assert (arrays[entry.name][tuple(slice(extent) for extent in whole.shape)] == whole).all()
        num_tokens = len(step.token_ids_T)
        assert (arrays["slots_T"][num_tokens:] == num_slots).all(), "padding must not be stored"
        assert (arrays["sequences_T"][num_tokens:] == len(arrays["context_lengths_N"])).all()
        shapes.add(tuple(array.shape for array in arrays.values()))
        assert len(arrays["token_ids_T"]) <= LIMITS.max_tokens and arrays["page_table_NP"].shape[1] <= 64
        shrunk: HostStep = type(step)(
            **{e.name: arrays[e.name][tuple(slice(x) for x in getattr(step, e.name).shape)] for e in fields(step)}
        )
        check_laws(shrunk, LIMITS, num_slots)
    assert len(shapes) <= 3, "six steps must not be six programs"


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_int8_keys_are_refused_by_name(name: str, tmp_path: Path) -> None:
    chip = opened(name, tmp_path)
    with pytest.raises(UserError, match="f32, bf16, not int8"):
        chip.allocate_pages(PageLayout(layers=((1, 32),), format="int8"), 1, LIMITS)
    assert chip.page_bytes(PageLayout(layers=((2, 32), (1, 64)), format="bf16")) == 64 * 2 * (64 + 64) * 2


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_missing_library_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith(f"ridgeline.chips.{name}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"ridgeline\[{name}\]"):
        open_chip(name)


def test_opening_other_chips_imports_neither() -> None:
    script = (
        "import sys; from ridgeline.chips.registry import open_chip; open_chip('reference'); "
        "import ridgeline.chips.torch, ridgeline.chips.jax; assert not {'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
