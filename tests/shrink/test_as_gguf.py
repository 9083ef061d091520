"""A folder with safetensors under GGUF's names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ridgeline.errors import ModelFileError
from ridgeline.model.load import plan_model
from ridgeline.quant import formats
from ridgeline.shrink.as_gguf import AsGguf
from ridgeline.text.open import open_text
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf
from tests.tiny_models import write_tiny_gguf, write_tiny_safetensors

TEXT = "hello world, <|im_start|>user\nwhat is 12345 in the north?<|im_end|>\n\n  naïve 東京 </think>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_safetensors(tmp_path / "tiny")


def test_it_is_the_gguf_file_of_the_same_model(folder: Path, tmp_path: Path) -> None:
    made = AsGguf(open_checkpoint(folder))
    expected = open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf"))
    assert sorted(made.names) == sorted(expected.names)
    for name in made.names:
        one, other = made.tensor(name), expected.tensor(name)
        assert (one.name, one.shape, one.format) == (other.name, other.shape, other.format)
        assert (made.shape(name), made.format(name)) == (one.shape, one.format)
        np.testing.assert_array_equal(one.data, other.data)
    for key, value in expected.metadata.items():
        if key != "general.name":
            found = made.metadata[key]
            assert list(found) == list(value) if hasattr(value, "__len__") else found == pytest.approx(value), key
    with pytest.raises(ModelFileError, match="there is no tensor lm_head"):
        made.tensor("lm_head.weight")


def test_what_is_written_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(folder)
    made = AsGguf(source)
    write_gguf(tmp_path / "made.gguf", made.metadata, [made.tensor(name) for name in made.names])
    back = open_checkpoint(tmp_path / "made.gguf")
    before, after = plan_model(source), plan_model(back)
    for name, tensor in before.sources.items():
        np.testing.assert_array_equal(after.sources[name].read().data, tensor.read().data)
    (one, first_template), (other, second_template) = open_text(source), open_text(back)
    assert one.encode(TEXT) == other.encode(TEXT)
    assert one.end_of_sequence_ids == other.end_of_sequence_ids
    assert first_template.sources == second_template.sources


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scaled_ropes_become_factors(folder: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    change_config(folder, rope_scaling=scaling)
    made = AsGguf(open_checkpoint(folder))
    factors = made.tensor("rope_freqs.weight").data.view("<f4")
    assert (made.shape("rope_freqs.weight"), made.format("rope_freqs.weight")) == (factors.shape, formats.F32)
    assert factors[0] == 1 and factors[-1] == pytest.approx(8)


def test_what_gguf_cannot_say_is_refused(folder: Path) -> None:
    change_config(folder, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512})
    with pytest.raises(ModelFileError, match=r"ropes\.0\.magnitude .* would not come out the same"):
        AsGguf(open_checkpoint(folder))


def test_tokenizers_that_cut_otherwise_are_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "q+"}, "behavior": "Isolated", "invert": False},
        tokenizer["pre_tokenizer"],
    ]}  # fmt: skip
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelFileError, match="splits text in a way that no family of GGUF files has"):
        AsGguf(open_checkpoint(folder))
