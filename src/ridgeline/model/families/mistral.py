"""Mistral 7B and Ministral: Llama with a sliding window. Source: Mistral 7B, arXiv 2310.06825, section 2."""

from __future__ import annotations

from ridgeline.model.facts import MAX_CONTEXT_TOKENS, Description
from ridgeline.model.families import llama
from ridgeline.model.families.family import ACTIVATIONS, Family, config_sizes, listed_windows, uniform_decoder
from ridgeline.model.origins import hugging_face_names
from ridgeline.model.rope import config_rope
from ridgeline.model.spec import DecoderSpec


def from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is mistral or ministral."""
    facts = description.facts
    sizes = config_sizes(facts, {"num_key_value_heads": 8, "max_position_embeddings": 131072})
    # Absent is the published class's 4096; null is none.
    has_key = facts.prefix + "sliding_window" in facts.values
    window = facts.optional_integer("sliding_window", MAX_CONTEXT_TOKENS) if has_key else 4096
    return uniform_decoder(
        "mistral",
        sizes,
        config_rope(description, sizes.head_width),
        is_output_tied=facts.flag("tie_word_embeddings"),
        activation=facts.choice("hidden_act", ACTIVATIONS, default="silu"),
        windows=listed_windows(facts, sizes.num_layers, window) or (window,) * sizes.num_layers,
    )


MISTRAL = Family(
    name="mistral",
    gguf_architectures=(),
    config_types=("mistral", "ministral"),
    from_gguf=llama.from_gguf,
    from_config=from_config,
    gguf_names=llama.GGUF_NAMES,
    hugging_face_names=hugging_face_names(),
)
