"""One check of a finished spec: whatever family made it, no decoder is built from figures that contradict each other.

Knows: DecoderSpec. Does not know: files, families.
"""

from __future__ import annotations

import math

from ridgeline.errors import ModelFileError
from ridgeline.model.facts import (
    MAX_CONTEXT_TOKENS,
    MAX_HEAD_WIDTH,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
)
from ridgeline.model.spec import DecoderSpec, LayerSpec, RopeSpec


def check_spec(spec: DecoderSpec, file: str) -> None:
    """Raise the ModelFileError that says which figure of the spec cannot be."""

    def within(name: str, value: int, maximum: int) -> None:
        if not 1 <= value <= maximum:
            raise ModelFileError(f"{file}: {name} is {value}, but must be 1 to {maximum}")

    def positive(name: str, value: float | None) -> None:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ModelFileError(f"{file}: {name} is {value}, but must be finite and above 0")

    within("the vocabulary size", spec.vocabulary_size, MAX_VOCABULARY)
    within("the width", spec.width, MAX_WIDTH)
    within("the number of layers", len(spec.layers), MAX_LAYERS)
    within("the context length", spec.context_tokens, MAX_CONTEXT_TOKENS)
    positive("the norms' epsilon", spec.norm_epsilon)
    positive("the embedding scale", spec.embedding_scale)
    positive("the logits' scale", spec.logits_scale)
    positive("the logits' soft cap", spec.logits_softcap)
    for rope in spec.ropes:
        positive("a rope's magnitude", rope.magnitude)
        if not all(math.isfinite(frequency) and frequency >= 0 for frequency in rope.frequencies):
            raise ModelFileError(f"{file}: a rope frequency is negative or not finite")
    for index, layer in enumerate(spec.layers):
        where = f"layer {index}: "
        within(where + "the number of query heads", layer.num_query_heads, MAX_HEADS)
        within(where + "the number of kv heads", layer.num_kv_heads, MAX_HEADS)
        within(where + "the head width", layer.head_width, MAX_HEAD_WIDTH)
        within(where + "the MLP's width", layer.mlp_width, MAX_WIDTH)
        positive(where + "the attention scale", layer.attention_scale)
        positive(where + "the attention soft cap", layer.attention_softcap)
        if layer.window is not None:
            within(where + "the window", layer.window, MAX_CONTEXT_TOKENS)
        _check_heads(layer, spec.ropes, f"{file}: {where}")


def _check_heads(layer: LayerSpec, ropes: tuple[RopeSpec, ...], where: str) -> None:
    if layer.num_query_heads % layer.num_kv_heads:
        raise ModelFileError(
            f"{where}{layer.num_query_heads} query heads cannot share {layer.num_kv_heads} kv heads equally"
        )
    if not 0 <= layer.rope < len(ropes):
        raise ModelFileError(f"{where}its rope is number {layer.rope} of {len(ropes)}")
    turned = 2 * len(ropes[layer.rope].frequencies)
    if turned > layer.head_width:
        raise ModelFileError(f"{where}the rope turns {turned} values of heads that have {layer.head_width}")
