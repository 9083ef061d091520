"""Llama 2 and 3, SmolLM2 and all that calls itself llama; GGUF files of Mistral do too.

Sources: Llama 2, arXiv 2307.09288; Llama 3, arXiv 2407.21783, section 3.2.
"""

from __future__ import annotations

from ridgeline.model.facts import MAX_CONTEXT_TOKENS, Description
from ridgeline.model.families.family import (
    ACTIVATIONS,
    Family,
    config_sizes,
    gguf_sizes,
    has_bias,
    refuse,
    uniform_decoder,
)
from ridgeline.model.origins import Origin, gguf_names, hugging_face_names
from ridgeline.model.rope import config_rope, gguf_rope
from ridgeline.model.spec import DecoderSpec

GGUF_NAMES = gguf_names(
    {
        "query": Origin(name="blk.{layer}.attn_q.weight", repair="paired_query_rows"),
        "key": Origin(name="blk.{layer}.attn_k.weight", repair="paired_key_rows"),
        "query_bias": Origin(name="blk.{layer}.attn_q.bias", repair="paired_query_rows"),
        "key_bias": Origin(name="blk.{layer}.attn_k.bias", repair="paired_key_rows"),
    }
)


def from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is llama."""
    sizes = gguf_sizes(description)
    window = description.facts.optional_integer("attention.sliding_window", MAX_CONTEXT_TOKENS)
    return uniform_decoder(
        "llama",
        sizes,
        gguf_rope(description, sizes.head_width),
        is_output_tied=not description.has("output.weight"),
        attention_scale=description.facts.optional_number("attention.scale"),
        windows=(window,) * sizes.num_layers,
        has_attention_bias=has_bias(description, GGUF_NAMES, "query_bias"),
        has_attention_output_bias=has_bias(description, GGUF_NAMES, "attention_output_bias"),
    )


def from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is llama."""
    facts = description.facts
    refuse(facts, "mlp_bias", False)
    sizes = config_sizes(facts, {"max_position_embeddings": 2048})
    has_biases = facts.flag("attention_bias")
    return uniform_decoder(
        "llama",
        sizes,
        config_rope(description, sizes.head_width),
        is_output_tied=facts.flag("tie_word_embeddings"),
        activation=facts.choice("hidden_act", ACTIVATIONS, default="silu"),
        has_attention_bias=has_biases,
        has_attention_output_bias=has_biases,
    )


LLAMA = Family(
    name="llama",
    gguf_architectures=("llama",),
    config_types=("llama",),
    from_gguf=from_gguf,
    from_config=from_config,
    gguf_names=GGUF_NAMES,
    hugging_face_names=hugging_face_names(),
)
