"""Qwen 2, 2.5 (biases on queries, keys and values) and Qwen 3 (norms of query and key heads instead).

Sources: Qwen2, arXiv 2407.10671, section 2.2.1; Qwen3, arXiv 2505.09388, section 2.
"""

from __future__ import annotations

from ridgeline.model.facts import MAX_CONTEXT_TOKENS, MAX_LAYERS, Description, Facts
from ridgeline.model.families.family import (
    ACTIVATIONS,
    Family,
    config_sizes,
    gguf_sizes,
    has_bias,
    listed_windows,
    uniform_decoder,
)
from ridgeline.model.origins import gguf_names, hugging_face_names
from ridgeline.model.rope import config_rope, gguf_rope
from ridgeline.model.spec import DecoderSpec

GGUF_NAMES = gguf_names()


def qwen2_from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is qwen2."""
    sizes = gguf_sizes(description)
    return uniform_decoder(
        "qwen2",
        sizes,
        gguf_rope(description, sizes.head_width),
        is_output_tied=not description.has("output.weight"),
        has_attention_bias=True,
    )


def qwen3_from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is qwen3."""
    sizes = gguf_sizes(description)
    return uniform_decoder(
        "qwen3",
        sizes,
        gguf_rope(description, sizes.head_width),
        is_output_tied=not description.has("output.weight"),
        has_attention_bias=has_bias(description, GGUF_NAMES, "query_bias"),
        has_attention_output_bias=has_bias(description, GGUF_NAMES, "attention_output_bias"),
        has_query_key_norm=True,
    )


def _windows(facts: Facts, num_layers: int) -> tuple[int | None, ...]:
    """Layers from `max_window_layers` on see a window, where windows are switched on at all."""
    if not facts.flag("use_sliding_window"):
        return (None,) * num_layers
    window = facts.integer("sliding_window", MAX_CONTEXT_TOKENS, default=4096)
    first = facts.integer("max_window_layers", MAX_LAYERS, minimum=0, default=28)
    listed = listed_windows(facts, num_layers, window)
    return listed or tuple(window if index >= first else None for index in range(num_layers))


def qwen2_from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is qwen2."""
    facts = description.facts
    sizes = config_sizes(facts, {"max_position_embeddings": 32768})
    return uniform_decoder(
        "qwen2",
        sizes,
        config_rope(description, sizes.head_width),
        is_output_tied=facts.flag("tie_word_embeddings"),
        activation=facts.choice("hidden_act", ACTIVATIONS, default="silu"),
        windows=_windows(facts, sizes.num_layers),
        has_attention_bias=True,
    )


def qwen3_from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is qwen3."""
    facts = description.facts
    sizes = config_sizes(facts, {"max_position_embeddings": 32768, "head_dim": 128})
    has_biases = facts.flag("attention_bias")
    return uniform_decoder(
        "qwen3",
        sizes,
        config_rope(description, sizes.head_width),
        is_output_tied=facts.flag("tie_word_embeddings"),
        activation=facts.choice("hidden_act", ACTIVATIONS, default="silu"),
        windows=_windows(facts, sizes.num_layers),
        has_attention_bias=has_biases,
        has_attention_output_bias=has_biases,
        has_query_key_norm=True,
    )


QWEN2 = Family(
    name="qwen2",
    gguf_architectures=("qwen2",),
    config_types=("qwen2",),
    from_gguf=qwen2_from_gguf,
    from_config=qwen2_from_config,
    gguf_names=GGUF_NAMES,
    hugging_face_names=hugging_face_names(),
)
QWEN3 = Family(
    name="qwen3",
    gguf_architectures=("qwen3",),
    config_types=("qwen3",),
    from_gguf=qwen3_from_gguf,
    from_config=qwen3_from_config,
    gguf_names=GGUF_NAMES,
    hugging_face_names=hugging_face_names(),
)
