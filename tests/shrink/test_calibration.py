"""The chip whose products round their weights, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgeline.chips.reference.ops import attention_of_one_query
from ridgeline.chips.registry import open_chip
from ridgeline.model.load import load_model
from ridgeline.model.trial import prompt_logits
from ridgeline.quant import formats
from ridgeline.quant.tensor import HostTensor
from ridgeline.shrink.calibration import calibrated_tensors, causal_attention
from ridgeline.shrink.own_text import continued, openings
from ridgeline.shrink.recipe import Choice, choices, mix_named
from ridgeline.shrink.rewrite import rounded_tensors
from ridgeline.text.open import open_text
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf
from tests.tiny_models import tokens, write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def chosen(checkpoint: Checkpoint, name: str) -> tuple[Choice, ...]:
    listed = [(each, checkpoint.shape(each), checkpoint.format(each)) for each in checkpoint.names]
    return choices(mix_named(name), listed)


def sequences(seed: int, count: int = 24) -> list[list[int]]:
    """Sequences that use a part of the vocabulary, some tokens far more than others."""
    random = np.random.default_rng(seed)
    shares = np.exp(-np.arange(len(tokens()) - 8) / 20)
    return [random.choice(len(shares), 64, p=shares / shares.sum()).tolist() for _ in range(count)]


def ignored() -> None:
    """Progress that nobody looks at."""


def logits(checkpoint: Checkpoint, tensors: list[HostTensor], path: Path) -> np.ndarray:
    write_gguf(path, dict(checkpoint.metadata), tensors)
    chip = open_chip("reference")
    model = load_model(open_checkpoint(path), chip)
    return np.concatenate([prompt_logits(chip, model, tokens) for tokens in sequences(2, 4)])


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q5_0"])
def test_answers_stay_nearer_at_equal_bytes(tiny: Checkpoint, name: str, tmp_path: Path) -> None:
    made = chosen(tiny, name)
    calibrated = calibrated_tensors(tiny, made, sequences(1), ignored)
    nearest = rounded_tensors(tiny, made, ignored)
    assert [tensor.data.nbytes for tensor in calibrated] == [tensor.data.nbytes for tensor in nearest]
    exact = logits(tiny, [tiny.tensor(each) for each in tiny.names], tmp_path / "exact.gguf")
    errors = [
        float(((logits(tiny, tensors, tmp_path / "rounded.gguf") - exact) ** 2).sum())
        for tensors in (calibrated, nearest)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_the_same_text_gives_the_same_bytes(tiny: Checkpoint) -> None:
    made = chosen(tiny, "IQ4_NL")
    first, second = (calibrated_tensors(tiny, made, sequences(1, 4), ignored) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.format is other.format
        np.testing.assert_array_equal(one.data, other.data)


def test_every_tensor_is_told_and_none_is_lost(tiny: Checkpoint) -> None:
    made = chosen(tiny, "q8")
    told = []
    tensors = calibrated_tensors(tiny, made, sequences(1, 1), lambda: told.append(1))
    assert [(tensor.name, tensor.shape, tensor.format) for tensor in tensors] == [
        (choice.name, choice.shape, choice.chosen) for choice in made
    ]
    assert len(told) == len(made)
    assert {tensor.format for tensor in tensors} == {formats.Q8_0, formats.F32}


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, None), (None, 3.0), (3, 2.0)])
def test_attention_is_the_reference_s(window: int | None, softcap: float | None) -> None:
    random = np.random.default_rng(0)
    q_THC = random.standard_normal((12, 4, 16)).astype(np.float32)
    k_TKC, v_TKC = (random.standard_normal((12, 2, 16)).astype(np.float32) for _ in range(2))
    found = causal_attention(q_THC, k_TKC, v_TKC, 0.3, window, softcap)
    for t in range(12):
        seen = slice(0 if window is None else max(0, t - window + 1), t + 1)
        keys, values = (part[seen].astype(np.float64) for part in (k_TKC, v_TKC))
        expected = attention_of_one_query(q_THC[t].astype(np.float64), keys, values, 0.3, softcap)
        np.testing.assert_allclose(found[t], expected, rtol=1e-4, atol=1e-5)


def test_a_model_goes_on_with_every_opening(tiny: Checkpoint) -> None:
    tokenizer, template = open_text(tiny)
    prompts = openings(tokenizer, template)
    assert len(prompts) > 40
    start = tokenizer.token_id("<|im_start|>")
    assert 10 < sum(prompt[0] == start for prompt in prompts) < len(prompts)
    chip = open_chip("reference")
    model = load_model(tiny, chip)
    short = [prompt[:6] for prompt in prompts[:3]]
    forbidden = sorted(tokenizer.end_of_sequence_ids)
    first, again = (continued(chip, model, short, 16, forbidden, ignored) for _ in range(2))
    assert first == again
    assert all(len(text) == 16 and text[:6] == prompt for text, prompt in zip(first, short, strict=True))
    assert not set(forbidden) & {token for text in first for token in text[6:]}
    assert continued(chip, model, [prompts[0]], 4, (), ignored) == [prompts[0][:4]]
