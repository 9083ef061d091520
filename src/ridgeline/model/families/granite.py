"""Granite 3: Llama with four multipliers, which come from Tensor Programs V, arXiv 2203.03466.

The multiplier m of what a layer adds to the stream needs no op: x = e + m (a + b + ...) is m times (e/m + a + b + ...),
and an RMS norm of m x with epsilon is that of x with epsilon / m². So the embedding's scale is divided by m, and
epsilon by m².
"""

from __future__ import annotations

from dataclasses import replace

from ridgeline.model.facts import Description
from ridgeline.model.families import llama
from ridgeline.model.families.family import Family
from ridgeline.model.origins import hugging_face_names
from ridgeline.model.spec import DecoderSpec


def _multiplied(spec: DecoderSpec, embedding: float, residual: float, attention: float, logits: float) -> DecoderSpec:
    """The decoder with Granite's multipliers; logits are divided by theirs."""
    return replace(
        spec,
        family="granite",
        layers=tuple(replace(layer, attention_scale=attention) for layer in spec.layers),
        embedding_scale=embedding / residual,
        norm_epsilon=spec.norm_epsilon / residual**2,
        logits_scale=1 / logits,
    )


def from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is granite."""
    facts = description.facts
    spec = llama.from_gguf(description)
    return _multiplied(
        spec,
        embedding=facts.number("embedding_scale", default=1.0),
        residual=facts.number("residual_scale", default=1.0),
        attention=spec.layers[0].attention_scale,
        logits=facts.number("logit_scale"),
    )


def from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is granite."""
    facts = description.facts
    return _multiplied(
        llama.from_config(description),
        embedding=facts.number("embedding_multiplier", default=1.0),
        residual=facts.number("residual_multiplier", default=1.0),
        attention=facts.number("attention_multiplier", default=1.0),
        logits=facts.number("logits_scaling", default=1.0),
    )


GRANITE = Family(
    name="granite",
    gguf_architectures=("granite",),
    config_types=("granite",),
    from_gguf=from_gguf,
    from_config=from_config,
    gguf_names=llama.GGUF_NAMES,
    hugging_face_names=hugging_face_names(),
    gguf_switches=("embedding_scale", "residual_scale", "logit_scale"),
)
