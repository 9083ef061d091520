"""Phi-3, Phi-3.5 mini and Phi-4: queries, keys and values in one matrix, gate and up in another, LongRoPE.

Source: Phi-3, arXiv 2404.14219, section 2. Both merged matrices are cut by rows when they are loaded.
"""

from __future__ import annotations

from ridgeline.model.facts import MAX_CONTEXT_TOKENS, Description
from ridgeline.model.families.family import (
    ACTIVATIONS,
    Family,
    config_sizes,
    gguf_sizes,
    refuse,
    uniform_decoder,
)
from ridgeline.model.origins import NameMap, Origin, gguf_names, hugging_face_names
from ridgeline.model.rope import config_rope, gguf_rope
from ridgeline.model.spec import DecoderSpec


def _cut(qkv: str, gate_up: str) -> dict[str, Origin]:
    return {
        "query": Origin(name=qkv, part="query_rows"),
        "key": Origin(name=qkv, part="key_rows"),
        "value": Origin(name=qkv, part="value_rows"),
        "gate": Origin(name=gate_up, part="first_half"),
        "up": Origin(name=gate_up, part="second_half"),
    }


GGUF_NAMES: NameMap = gguf_names(_cut("blk.{layer}.attn_qkv.weight", "blk.{layer}.ffn_up.weight"))
HUGGING_FACE_NAMES: NameMap = hugging_face_names(
    _cut("model.layers.{layer}.self_attn.qkv_proj.weight", "model.layers.{layer}.mlp.gate_up_proj.weight")
)


def from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is phi3."""
    sizes = gguf_sizes(description)
    window = description.facts.optional_integer("attention.sliding_window", MAX_CONTEXT_TOKENS)
    return uniform_decoder(
        "phi3",
        sizes,
        gguf_rope(description, sizes.head_width),
        is_output_tied=not description.has("output.weight"),
        windows=(window,) * sizes.num_layers,
    )


def from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is phi3."""
    facts = description.facts
    refuse(facts, "attention_bias", False)
    sizes = config_sizes(facts, {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5})
    window = facts.optional_integer("sliding_window", MAX_CONTEXT_TOKENS)
    return uniform_decoder(
        "phi3",
        sizes,
        config_rope(description, sizes.head_width),
        is_output_tied=facts.flag("tie_word_embeddings"),
        activation=facts.choice("hidden_act", ACTIVATIONS, default="silu"),
        windows=(window,) * sizes.num_layers,
    )


PHI3 = Family(
    name="phi3",
    gguf_architectures=("phi3",),
    config_types=("phi3",),
    from_gguf=from_gguf,
    from_config=from_config,
    gguf_names=GGUF_NAMES,
    hugging_face_names=HUGGING_FACE_NAMES,
)
