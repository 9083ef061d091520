"""Loading: what is read and when, and what is said of files that lie or lack something."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ridgeline.chips.reference import ReferenceChip
from ridgeline.errors import ModelFileError
from ridgeline.model.families import FAMILIES
from ridgeline.model.load import load_plan, memory_bytes, page_layout, plan_model
from ridgeline.model.tensors import tensor_shapes
from ridgeline.quant import formats
from ridgeline.quant.reference import dequantize
from ridgeline.quant.tensor import HostTensor
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf, write_safetensors
from tests.model.goldens import NAMES, golden, weights_of, write_as_gguf
from tests.tiny_models import SIZES, host_tensor, tiny_weights, write_tiny_gguf, write_tiny_safetensors


@pytest.fixture
def tiny(tmp_path):
    return open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf"))


def rewritten(checkpoint, path, *, metadata=(), without=(), tensors=()):
    """The same GGUF file with other metadata (None drops a key) and other tensors, opened."""
    pairs = {key: value for key, value in (dict(checkpoint.metadata) | dict(metadata)).items() if value is not None}
    replaced = {tensor.name for tensor in tensors}
    kept = [checkpoint.tensor(name) for name in checkpoint.names if name not in without and name not in replaced]
    write_gguf(path, pairs, [*kept, *tensors])
    return open_checkpoint(path)


def test_planning_reads_no_weight(tiny, monkeypatch):
    monkeypatch.setattr(HostTensor, "take_rows", lambda *_: pytest.fail("rows were taken"))
    plan = plan_model(tiny)
    load_plan(plan, ReferenceChip())
    assert set(plan.sources) == set(tensor_shapes(plan.spec))


@pytest.mark.parametrize("name", NAMES)
def test_sources_say_what_they_give(name):
    plan = plan_model(golden(name).checkpoint())
    for our_name, shape in tensor_shapes(plan.spec).items():
        source = plan.sources[our_name]
        tensor = source.read()
        assert (source.name, source.shape, tensor.name, tensor.shape) == (our_name, shape, our_name, shape)
        assert tensor.format.name == source.format_name
        assert tensor.data.nbytes == int(np.prod(shape)) // tensor.format.block_values * tensor.format.block_bytes
    assert plan.weight_bytes == sum(source.read().data.nbytes for source in plan.sources.values())


def test_memory_is_that_of_the_files_and_a_page(tiny):
    plan = plan_model(tiny)
    ropes = 4 * sum(len(rope.frequencies) for rope in plan.spec.ropes)
    assert plan.weight_bytes == ropes + sum(tiny.tensor(name).data.nbytes for name in tiny.names)
    page = SIZES.num_layers * 2 * 64 * SIZES.num_kv_heads * SIZES.head_width * 4
    assert memory_bytes(plan, ReferenceChip(), "f32") == plan.weight_bytes + page
    assert page_layout(plan.spec, "int8").layers == ((SIZES.num_kv_heads, SIZES.head_width),) * SIZES.num_layers


def test_rows_of_quantised_queries_are_put_back(tmp_path):
    checkpoint = open_checkpoint(write_tiny_gguf(tmp_path / "q.gguf", entry=formats.Q4_0))
    source = plan_model(checkpoint).sources["layers.1.attention.query"]
    tensor = source.read()
    assert tensor.format is formats.Q4_0
    original = tiny_weights(SIZES, 0)["model.layers.1.self_attn.q_proj.weight"]
    expected = host_tensor("x", original, formats.Q4_0)
    assert np.array_equal(tensor.data, expected.data)


def test_fingerprint_follows_the_files_and_the_ropes(tmp_path):
    first = plan_model(open_checkpoint(write_tiny_gguf(tmp_path / "a.gguf", seed=1)))
    again = plan_model(open_checkpoint(tmp_path / "a.gguf"))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != plan_model(open_checkpoint(write_tiny_gguf(tmp_path / "b.gguf", seed=2))).fingerprint
    phi = golden("phi3_longrope").checkpoint()
    assert plan_model(phi).fingerprint != plan_model(phi, context_tokens=64).fingerprint
    assert plan_model(phi).fingerprint == plan_model(phi, context_tokens=65).fingerprint


def test_fingerprint_follows_the_rules_of_repair(tiny, monkeypatch):
    before = plan_model(tiny).fingerprint
    monkeypatch.setattr("ridgeline.model.load.REPAIRS_VERSION", 10**6)
    assert plan_model(tiny).fingerprint != before


IMPOSSIBLE_FIGURES = [
    ("llama.attention.head_count", 0, r"llama\.attention\.head_count: is 0, but must be 1 to"),
    ("llama.attention.head_count", 1 << 31, r"attention\.head_count: is 2147483648"),
    ("llama.attention.head_count", 3, r"3 query heads cannot share 2 kv heads"),
    ("llama.attention.head_count", "4", r"attention\.head_count: is 4, but must be one whole number"),
    ("llama.attention.head_count", np.array([4, 4], dtype=np.int32), r"must be one whole number"),
    ("llama.attention.head_count", True, r"must be one whole number"),
    ("llama.attention.head_count", None, r"attention\.head_count: is missing"),
    (
        "llama.attention.head_count",
        8,
        r"blk\.0\.attn_q\.weight has shape \[128, 128\], but must have \[256, 128\]",
    ),
    ("llama.attention.head_count_kv", 0, r"head_count_kv: is 0"),
    ("llama.attention.key_length", 0, r"key_length: is 0"),
    ("llama.attention.key_length", 31, r"value_length: is 32; only that of keys, 31"),
    ("llama.block_count", 0, r"block_count: is 0"),
    ("llama.block_count", -1, r"block_count: is -1"),
    ("llama.block_count", 1 << 40, r"block_count: is 1099511627776"),
    ("llama.block_count", 3, r"tensor blk\.2\.attn_norm\.weight is missing; its shape would be \[128\]"),
    ("llama.block_count", 1, r"tensor blk\.1\.attn_norm\.weight of shape \[128\] has no place"),
    ("llama.embedding_length", 0, r"embedding_length: is 0"),
    ("llama.embedding_length", 64, r"tensor token_embd\.weight has shape \[304, 128\], but must have \[304, 64\]"),
    ("llama.feed_forward_length", 0, r"feed_forward_length: is 0"),
    ("llama.feed_forward_length", 128, r"tensor blk\.0\.ffn_gate\.weight has shape \[256, 128\]"),
    ("llama.context_length", 0, r"context_length: is 0"),
    ("llama.vocab_size", 303, r"tensor token_embd\.weight has shape \[304, 128\], but must have \[303, 128\]"),
    ("llama.attention.layer_norm_rms_epsilon", float("nan"), r"rms_epsilon: is nan, but must be finite and above 0"),
    ("llama.attention.layer_norm_rms_epsilon", 0.0, r"rms_epsilon: is 0, but must be finite and above 0"),
    ("llama.attention.layer_norm_rms_epsilon", None, r"rms_epsilon: is missing"),
    ("llama.rope.freq_base", 0.0, r"freq_base: is 0, but must be finite and above 0"),
    ("llama.rope.freq_base", -1.0, r"freq_base: is -1, but"),
    ("llama.rope.freq_base", 1.0, r"freq_base: is 1\.0, but must be above 1"),
    ("llama.rope.freq_base", float("inf"), r"freq_base: is inf"),
    ("llama.rope.dimension_count", 33, r"dimension_count: is 33, but must be even and at most the head's width, 32"),
    ("llama.rope.dimension_count", 64, r"dimension_count: is 64"),
    ("llama.rope.scaling.type", "dynamic", r"scaling\.type: is 'dynamic', which is not supported; supported: linear,"),
    ("llama.attention.sliding_window", -5, r"sliding_window: is -5"),
    ("llama.expert_count", 8, r"expert_count: is 8, which is not supported"),
    ("llama.attention.causal", False, r"attention\.causal: is False"),
    ("general.architecture", "mamba", r"general\.architecture is 'mamba', which is not supported"),
]


@pytest.mark.parametrize(("key", "value", "message"), IMPOSSIBLE_FIGURES)
def test_impossible_figures_are_named(key, value, message, tiny, tmp_path):
    checkpoint = rewritten(tiny, tmp_path / "lie.gguf", metadata={key: value})
    with pytest.raises(ModelFileError, match=message) as caught:
        plan_model(checkpoint)
    assert str(tmp_path / "lie.gguf") in caught.value.message


def test_unsupported_architecture_lists_what_is(tiny, tmp_path):
    checkpoint = rewritten(tiny, tmp_path / "lie.gguf", metadata={"general.architecture": "rwkv7"})
    with pytest.raises(ModelFileError) as caught:
        plan_model(checkpoint)
    for family in FAMILIES:
        for architecture in family.gguf_architectures:
            assert architecture in caught.value.hint


WRONG_TENSORS = [
    ("blk.1.attn_q.bias", (128,), r"blk\.1\.attn_q\.bias of shape \[128\] has no place"),
    ("blk.0.ffn_gate_exps.weight", (2, 8, 8), r"blk\.0\.ffn_gate_exps\.weight of shape \[2, 8, 8\] has no place"),
    ("blk.0.attn_q_norm.weight", (32,), r"attn_q_norm\.weight of shape \[32\] has no place"),
    ("blk.0.attn_q.bias", (128,), r"tensor blk\.0\.attn_k\.bias is missing; its shape would be \[64\]"),
    ("blk.1.ffn_down.weight", (128, 255), r"ffn_down\.weight has shape \[128, 255\], but must have \[128, 256\]"),
    ("output_norm.weight", (1, 128), r"output_norm\.weight has shape \[1, 128\], but must have \[128\]"),
    ("token_embd.weight", (304 * 128,), r"token_embd\.weight: must be a matrix"),
    ("rope_freqs.weight", (15,), r"rope_freqs\.weight has shape \[15\], but must have \[16\]"),
    ("rope_freqs.weight", (16,), r"rope_freqs\.weight must hold finite numbers above 0"),
]


@pytest.mark.parametrize(("name", "shape", "message"), WRONG_TENSORS)
def test_wrong_tensors_are_named(name, shape, message, tiny, tmp_path):
    tensors = [host_tensor(name, np.zeros(shape))]
    with pytest.raises(ModelFileError, match=message):
        plan_model(rewritten(tiny, tmp_path / "lie.gguf", tensors=tensors))


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_every_missing_tensor_is_named(kind, tmp_path):
    """Of a GGUF file the output may miss: it is tied then."""
    whole = open_checkpoint(
        write_tiny_gguf(tmp_path / "m.gguf") if kind == "gguf" else write_tiny_safetensors(tmp_path / "m")
    )
    tied = {"output.weight"}
    for name in whole.names:
        target = tmp_path / f"without {name}"
        if kind == "gguf":
            checkpoint = rewritten(whole, target, without=[name])
        else:
            kept = [whole.tensor(other) for other in whole.names if other != name]
            write_safetensors(target, dict(whole.metadata), [kept])
            checkpoint = open_checkpoint(target)
        if name in tied:
            assert plan_model(checkpoint).spec.is_output_tied
            continue
        with pytest.raises(ModelFileError, match=re.escape(name.removeprefix("model."))):
            plan_model(checkpoint)


CONFIG_LIES = [
    ("llama_llama3", {"model_type": "bert"}, r"model_type is 'bert', which is not supported"),
    ("llama_llama3", {"model_type": None}, r"model_type: is missing"),
    ("llama_llama3", {"mlp_bias": True}, r"mlp_bias: is True, which is not supported"),
    ("llama_llama3", {"hidden_act": "relu2"}, r"hidden_act: is 'relu2', which is not supported; supported: gelu"),
    ("llama_llama3", {"num_attention_heads": 0}, r"num_attention_heads: is 0"),
    ("llama_llama3", {"num_hidden_layers": 2.5}, r"num_hidden_layers: is 2\.5, but must be one whole number"),
    ("llama_llama3", {"rms_norm_eps": -1e-5}, r"rms_norm_eps: is -1e-05, but must be finite and above 0"),
    (
        "llama_llama3",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        r"\.rope_type: is 'dynamic'",
    ),
    ("llama_llama3", {"rope_parameters": {"rope_type": "llama3"}}, r"rope_parameters\.low_freq_factor: is missing"),
    ("llama_llama3", {"rope_parameters": [1]}, r"rope_parameters: is \[1\], but must be an object"),
    ("llama_llama3", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, r"factor: is 0, but must be finite"),
    ("llama_llama3", {"tie_word_embeddings": "yes"}, r"tie_word_embeddings: is yes, but must be true or false"),
    ("llama_llama3", {"attention_bias": True}, r"tensor model\.layers\.0\.self_attn\.q_proj\.bias is missing"),
    ("llama_linear_tied_biased", {"attention_bias": False}, r"has no place in a llama decoder"),
    ("qwen2", {"layer_types": ["full_attention"]}, r"layer_types: must be a list of 3 entries"),
    ("qwen2", {"layer_types": ["linear_attention"] * 3}, r"layer_types: has 'linear_attention'"),
    ("gemma3", {"use_bidirectional_attention": True}, r"use_bidirectional_attention: is True"),
    (
        "gemma3",
        {"model_type": "gemma2", "rope_parameters": None},
        r"k_norm\.weight of shape \[8\] has no place",
    ),
    ("phi3_longrope", {"num_key_value_heads": 4}, r"qkv_proj\.weight has shape \[64, 32\], but must have \[96, 32\]"),
    ("phi3_longrope", {"partial_rotary_factor": 1.5, "rope_parameters": None}, r"partial_rotary_factor: is 1\.5"),
    (
        "phi3_longrope",
        {"intermediate_size": 24},
        r"gate_up_proj\.weight has shape \[96, 32\], but must have \[48",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), CONFIG_LIES)
def test_lies_of_a_config_are_named(name, changes, message, tmp_path):
    checkpoint = golden(name).checkpoint()
    shards = [[checkpoint.tensor(tensor) for tensor in checkpoint.names]]
    write_safetensors(tmp_path / "lie", dict(checkpoint.metadata) | changes, shards)
    with pytest.raises(ModelFileError, match=message):
        plan_model(open_checkpoint(tmp_path / "lie"))


def test_a_tied_output_in_the_file_is_not_read(tmp_path):
    checkpoint = golden("llama_linear_tied_biased").checkpoint()
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    table = checkpoint.tensor("model.embed_tokens.weight")
    extra = HostTensor(name="lm_head.weight", shape=table.shape, format=table.format, data=table.data)
    write_safetensors(tmp_path / "twice", dict(checkpoint.metadata), [[*tensors, extra]])
    assert "output" not in plan_model(open_checkpoint(tmp_path / "twice")).sources


def test_gemma_norms_get_their_one_only_where_files_lack_it(tmp_path):
    folder = golden("gemma2").folder
    from_folder = plan_model(open_checkpoint(folder)).sources["layers.2.mlp.post_norm"].read()
    from_gguf = plan_model(open_checkpoint(write_as_gguf(folder, tmp_path / "g.gguf"))).sources[
        "layers.2.mlp.post_norm"
    ]
    stored = weights_of(open_checkpoint(folder))["model.layers.2.post_feedforward_layernorm.weight"]
    for tensor in (from_folder, from_gguf.read()):
        assert np.array_equal(dequantize(tensor.data, tensor.format, tensor.shape), stored + 1)
