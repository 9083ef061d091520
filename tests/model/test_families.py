"""Every family on the reference chip against what transformers computed, and against itself in other cuts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from ridgeline.model.load import load_model, plan_model
from ridgeline.model.trial import Trial, greedy, prompt_logits
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_safetensors
from tests.model.goldens import NAMES, golden, weights_of, write_as_gguf
from tests.tiny_models import host_tensor, write_tiny_gguf, write_tiny_safetensors

TOLERANCE = 1e-4
"""Both sides compute in float32 and add up in different orders; logits are of the order of 1 to 5."""
# GGUF files cannot say these: windows of qwen2, and scales of attention that are not 1 / sqrt(head width).
UNSAYABLE = {"qwen2", "gemma2", "gemma3"}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name, chip):
    case = golden(name)
    logits = prompt_logits(chip, load_model(case.checkpoint(), chip), case.token_ids)
    assert np.abs(logits[case.rows] - case.logits).max() < TOLERANCE
    assert case.logits.std() > 0.5, "the case would pass whatever is computed"


def test_short_factors_serve_a_short_context(chip):
    case = golden("phi3_longrope")
    model = load_model(case.checkpoint(), chip, context_tokens=64)
    logits = prompt_logits(chip, model, case.token_ids[: case.short_rows.max() + 1])
    assert np.abs(logits[case.short_rows] - case.short_logits).max() < TOLERANCE
    longer = prompt_logits(chip, load_model(case.checkpoint(), chip, context_tokens=65), case.token_ids)
    assert np.abs(longer[case.rows] - case.logits).max() < TOLERANCE


@pytest.mark.parametrize("kv_format", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_the_cut_into_steps_changes_no_bit(name, kv_format, chip):
    case = golden(name)
    model = load_model(case.checkpoint(), chip)
    whole = prompt_logits(chip, model, case.token_ids, kv_format=kv_format)
    for chunk_tokens in (1, 37, 64):
        cut = prompt_logits(
            chip, model, case.token_ids, chunk_tokens=chunk_tokens, kv_format=kv_format, page_seed=chunk_tokens
        )
        assert np.array_equal(cut, whole), chunk_tokens


@pytest.mark.parametrize("name", ["llama_llama3", "gemma3", "phi3_longrope"])
def test_batch_mates_change_no_bit(name, chip):
    case = golden(name)
    model = load_model(case.checkpoint(), chip)
    first, second = case.token_ids, case.token_ids[::-1][:70]
    trial = Trial(chip, model, num_sequences=3, max_tokens=192, kv_format="bf16", page_seed=5)
    parts = [
        trial.feed({2: first[:100], 0: second[:1]}),
        trial.feed({0: second[1:66]}),
        trial.feed({0: second[66:], 2: first[100:101], 1: first[:3]}),
        trial.feed({2: first[101:]}),
    ]
    for sequence, token_ids in ((2, first), (0, second), (1, first[:3])):
        batched = np.concatenate([part[sequence] for part in parts if sequence in part])
        assert np.array_equal(batched, prompt_logits(chip, model, token_ids, kv_format="bf16"))


def test_other_kv_formats_differ_a_little(chip):
    case = golden("llama_llama3")
    model = load_model(case.checkpoint(), chip)
    exact = prompt_logits(chip, model, case.token_ids)
    rounded = prompt_logits(chip, model, case.token_ids, kv_format="bf16")
    coded = prompt_logits(chip, model, case.token_ids, kv_format="int8")
    assert np.array_equal(coded[:64], rounded[:64]), "the first page is read as it was rounded"
    assert 0 < np.abs(rounded - exact).mean() < np.abs(coded - exact).mean() < 0.05


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNSAYABLE])
def test_gguf_files_give_the_same_logits(name, chip, tmp_path):
    case = golden(name)
    checkpoint = open_checkpoint(write_as_gguf(case.folder, tmp_path / "model.gguf"))
    logits = prompt_logits(chip, load_model(checkpoint, chip), case.token_ids)
    assert np.abs(logits[case.rows] - case.logits).max() < TOLERANCE


@pytest.mark.parametrize(("name", "key", "value"), [
    ("gemma2", "query_pre_attn_scalar", 16),
    ("gemma3", "query_pre_attn_scalar", 8),
    ("qwen2", "use_sliding_window", False),
])  # fmt: skip
def test_gguf_files_give_the_same_logits_where_they_can_say_it(name, key, value, chip, tmp_path):
    folder = changed_copy(golden(name).folder, tmp_path / "changed", {key: value, "layer_types": None})
    token_ids = golden(name).token_ids
    expected = prompt_logits(chip, load_model(open_checkpoint(folder), chip), token_ids)
    checkpoint = open_checkpoint(write_as_gguf(folder, tmp_path / "model.gguf"))
    assert np.abs(prompt_logits(chip, load_model(checkpoint, chip), token_ids) - expected).max() < TOLERANCE
    assert np.abs(expected[golden(name).rows] - golden(name).logits).max() > 0.01, "the figure makes no difference"


def changed_copy(folder, target, changes):
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


OLD_STYLES = {
    "llama_llama3": {
        "rope_theta": 5000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama_linear_tied_biased": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "gemma3": {
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "layer_types": None, "sliding_window_pattern": 6,
    },
    "qwen2": {"rope_theta": 1000000.0, "layer_types": None},
    "gemma2": {"layer_types": None},
    "phi3_longrope": {
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1.5, 6.0]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_STYLES)
def test_configs_of_older_versions_say_the_same(name, tmp_path):
    folder = changed_copy(golden(name).folder, tmp_path / "old", {"rope_parameters": None} | OLD_STYLES[name])
    assert plan_model(open_checkpoint(folder)).spec == plan_model(golden(name).checkpoint()).spec


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_multimodal_file_gives_its_text_decoder(prefix, chip, tmp_path):
    case = golden("gemma3")
    config = {"model_type": "gemma3", "text_config": dict(case.checkpoint().metadata), "vision_config": {}}
    weights = {prefix + name.removeprefix("model."): values for name, values in weights_of(case.checkpoint()).items()}
    weights["vision_tower.patch.weight"] = np.zeros((2, 2))
    weights["multi_modal_projector.mm_input_projection_weight"] = np.zeros((2, 2))
    write_safetensors(tmp_path / "nested", config, [[host_tensor(*item) for item in weights.items()]])
    model = load_model(open_checkpoint(tmp_path / "nested"), chip)
    logits = prompt_logits(chip, model, case.token_ids)
    assert np.abs(logits[case.rows] - case.logits).max() < TOLERANCE


def test_published_gemma_3_4b_config_is_filled_up():
    """What google/gemma-3-4b-it has in its text_config, which leaves out all that its class has as defaults."""
    from ridgeline.model.facts import Description, Facts
    from ridgeline.model.families.gemma import GEMMA3

    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    facts = Facts(file="config.json", values={"model_type": "gemma3", "text_config": text})
    spec = GEMMA3.from_config(Description(facts=facts, shapes={}, vector=lambda name: ()))
    assert (spec.vocabulary_size, spec.context_tokens, spec.is_output_tied) == (262208, 131072, True)
    assert [layer.window for layer in spec.layers[:7]] == [1024] * 5 + [None, 1024]
    assert [layer.rope for layer in spec.layers[:7]] == [1] * 5 + [0, 1]
    layer = spec.layers[0]
    assert (layer.num_query_heads, layer.num_kv_heads, layer.head_width, layer.attention_scale) == (8, 4, 256, 1 / 16)
    assert spec.ropes[0].frequencies[0] == 1 / 8 and spec.ropes[1].frequencies[0] == 1


def test_the_tiny_model_is_one_model_in_both_kinds_of_file(chip, tmp_path):
    token_ids = [290, 282, 111, 265, 272, 108, 100, 44]
    from_gguf = load_model(open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf")), chip)
    from_folder = load_model(open_checkpoint(write_tiny_safetensors(tmp_path / "tiny")), chip)
    answer = greedy(chip, from_gguf, token_ids, 12)
    assert answer == greedy(chip, from_folder, token_ids, 12)
    assert len(set(answer)) > 6, "a model that repeats itself tests nothing"
