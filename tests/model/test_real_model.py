"""SmolLM2-135M on the reference chip against what transformers computes of the same dequantised weights in float32.

`golden/smollm2_135m.npz` holds three prompts with their 32 greedy tokens, and of one text the 40 likeliest next tokens
with their log-probabilities at 13 places.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ridgeline.chips.reference import ReferenceChip
from ridgeline.model.load import LoadedModel, load_model
from ridgeline.model.trial import greedy, prompt_logits
from ridgeline.weights.open import open_checkpoint

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent.parent / "golden" / "smollm2_135m.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def loaded(default_model_path: Path) -> Iterator[tuple[ReferenceChip, LoadedModel]]:
    chip, checkpoint = ReferenceChip(), open_checkpoint(default_model_path)
    yield chip, load_model(checkpoint, chip)
    chip.close()
    checkpoint.close()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_greedy_tokens_are_those_of_transformers(number, loaded, expected):
    prompt, answer = expected[f"prompt_{number}"].tolist(), expected[f"greedy_{number}"].tolist()
    assert greedy(*loaded, prompt, len(answer)) == answer


@pytest.mark.parametrize(("kv_format", "closeness"), [("f32", 1e-3), ("bf16", 0.1), ("int8", 0.1)])
def test_log_probabilities_are_those_of_transformers(kv_format, closeness, loaded, expected):
    logits = prompt_logits(*loaded, expected["token_ids"].tolist(), kv_format=kv_format)[expected["rows"]]
    logits = logits.astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    log_probabilities = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    found = np.take_along_axis(log_probabilities, expected["top_ids"], axis=1)
    error = np.abs(found - expected["top_logprobs"])
    assert np.mean(error) < closeness / 4 and np.median(error) < closeness / 4
    if kv_format == "f32":
        assert error.max() < closeness
        assert np.array_equal(logits.argmax(axis=1), expected["top_ids"][:, 0])
