"""Other random tiny models than the golden ones, against transformers where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.model.load import load_model
from ridgeline.model.trial import prompt_logits
from ridgeline.weights.open import open_checkpoint

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "name",
    ["llama_llama3", "mistral", "qwen2", "qwen3_yarn", "gemma2", "gemma3", "smollm3", "granite", "phi3_longrope"],
)
@pytest.mark.filterwarnings("default")
def test_fresh_weights_give_the_logits_of_transformers(name, chip, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.golden import make_families

    make_families.make_case(tmp_path / name, {**make_families.SIZES, **make_families.CASES[name]}, seed=1234)
    with np.load(tmp_path / name / "expected.npz") as expected:
        token_ids, rows, logits = expected["token_ids"].tolist(), expected["rows"], expected["logits"]
    ours = prompt_logits(chip, load_model(open_checkpoint(tmp_path / name), chip), token_ids)
    assert np.abs(ours[rows] - logits).max() < 1e-4
