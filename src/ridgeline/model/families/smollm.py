"""SmolLM3: Llama, but every fourth layer does not turn queries and keys.

Source: the model card of HuggingFaceTB/SmolLM3-3B, after Rope to Nope and Back Again, arXiv 2501.18795.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ridgeline.model.facts import MAX_CONTEXT_TOKENS, MAX_LAYERS, Description, Facts
from ridgeline.model.families import llama
from ridgeline.model.families.family import ACTIVATIONS, Family, config_sizes, listed_windows, refuse, uniform_decoder
from ridgeline.model.origins import hugging_face_names
from ridgeline.model.rope import config_rope
from ridgeline.model.spec import DecoderSpec, RopeSpec

PERIOD = 4
"""GGUF files do not say which layers do not turn: every fourth."""


def _with_still_layers(spec: DecoderSpec, turns: Sequence[bool]) -> DecoderSpec:
    """The same decoder with a rope of frequency 0, which is none, for layers that do not turn."""
    still = RopeSpec(frequencies=(0.0,) * len(spec.ropes[0].frequencies))
    layers = tuple(replace(layer, rope=0 if turn else 1) for layer, turn in zip(spec.layers, turns, strict=True))
    return replace(spec, family="smollm3", layers=layers, ropes=(*spec.ropes, still))


def _every_other_than(period: int, num_layers: int) -> list[bool]:
    return [(index + 1) % period != 0 for index in range(num_layers)]


def from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is smollm3."""
    spec = llama.from_gguf(description)
    return _with_still_layers(spec, _every_other_than(PERIOD, len(spec.layers)))


def from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is smollm3."""
    facts = description.facts
    refuse(facts, "mlp_bias", False)
    sizes = config_sizes(facts, {"num_key_value_heads": 4, "max_position_embeddings": 32768})
    window = facts.optional_integer("sliding_window", MAX_CONTEXT_TOKENS)
    has_biases = facts.flag("attention_bias")
    spec = uniform_decoder(
        "smollm3",
        sizes,
        config_rope(description, sizes.head_width, default_base=2e6),
        is_output_tied=facts.flag("tie_word_embeddings", default=True),
        activation=facts.choice("hidden_act", ACTIVATIONS, default="silu"),
        windows=listed_windows(facts, sizes.num_layers, window),
        has_attention_bias=has_biases,
        has_attention_output_bias=has_biases,
    )
    return _with_still_layers(spec, _turns(facts, sizes.num_layers))


def _turns(facts: Facts, num_layers: int) -> list[bool]:
    """Whether each layer turns: `no_rope_layers` has 1 for those that do."""
    listed = facts.find("no_rope_layers")
    if listed is None:
        return _every_other_than(facts.integer("no_rope_layer_interval", MAX_LAYERS, default=PERIOD), num_layers)
    if not isinstance(listed, list) or len(listed) != num_layers or not all(entry in (0, 1) for entry in listed):
        facts.fail("no_rope_layers", f"must be a list of {num_layers} entries that are 0 or 1")
    return [bool(entry) for entry in listed]


SMOLLM3 = Family(
    name="smollm3",
    gguf_architectures=("smollm3",),
    config_types=("smollm3",),
    from_gguf=from_gguf,
    from_config=from_config,
    gguf_names=llama.GGUF_NAMES,
    hugging_face_names=hugging_face_names(),
)
