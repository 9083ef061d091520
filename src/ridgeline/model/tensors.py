"""The tensors of a decoder: their canonical names and their shapes, as the spec implies them.

Knows: DecoderSpec, LayerWeights. Does not know: files, families, chips.

Names: `embedding`, `final_norm`, `output`, `ropes.0`, `layers.3.attention.query`, `layers.3.mlp.down`, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ridgeline.model.decoder import DecoderWeights, LayerWeights
from ridgeline.model.spec import DecoderSpec, LayerSpec

W = TypeVar("W")

EMBEDDING, FINAL_NORM, OUTPUT = "embedding", "final_norm", "output"

LAYER_NAMES: Mapping[str, str] = {
    "attention_norm": "attention.norm",
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "query_bias": "attention.query_bias",
    "key_bias": "attention.key_bias",
    "value_bias": "attention.value_bias",
    "query_norm": "attention.query_norm",
    "key_norm": "attention.key_norm",
    "attention_output": "attention.output",
    "attention_output_bias": "attention.output_bias",
    "attention_post_norm": "attention.post_norm",
    "mlp_norm": "mlp.norm",
    "gate": "mlp.gate",
    "up": "mlp.up",
    "down": "mlp.down",
    "mlp_post_norm": "mlp.post_norm",
}
"""Field of `LayerWeights` -> what follows `layers.3.` in the tensor's name."""


def layer_tensor(index: int, field: str) -> str:
    """The canonical name of a layer's tensor, such as `layers.3.attention.query`."""
    return f"layers.{index}.{LAYER_NAMES[field]}"


def rope_tensor(index: int) -> str:
    """The canonical name of a rope's frequencies, such as `ropes.0`."""
    return f"ropes.{index}"


def layer_shapes(spec: DecoderSpec, layer: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Field of `LayerWeights` -> shape, of the fields that this layer has, in the decoder's order."""
    queries, keys = layer.num_query_heads * layer.head_width, layer.num_kv_heads * layer.head_width
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (spec.width,),
        "query": (queries, spec.width),
        "key": (keys, spec.width),
        "value": (keys, spec.width),
    }
    if layer.has_attention_bias:
        shapes |= {"query_bias": (queries,), "key_bias": (keys,), "value_bias": (keys,)}
    if layer.has_query_key_norm:
        shapes |= {"query_norm": (layer.head_width,), "key_norm": (layer.head_width,)}
    shapes["attention_output"] = (spec.width, queries)
    if layer.has_attention_output_bias:
        shapes["attention_output_bias"] = (spec.width,)
    if layer.has_post_norms:
        shapes["attention_post_norm"] = (spec.width,)
    shapes |= {
        "mlp_norm": (spec.width,),
        "gate": (layer.mlp_width, spec.width),
        "up": (layer.mlp_width, spec.width),
        "down": (spec.width, layer.mlp_width),
    }
    if layer.has_post_norms:
        shapes["mlp_post_norm"] = (spec.width,)
    return shapes


def tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of everything that a chip adopts for this decoder, ropes included.

    A tied output is not in it: the embedding serves for both.
    """
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocabulary_size, spec.width)}
    for index, layer in enumerate(spec.layers):
        shapes |= {layer_tensor(index, field): shape for field, shape in layer_shapes(spec, layer).items()}
    shapes[FINAL_NORM] = (spec.width,)
    if not spec.is_output_tied:
        shapes[OUTPUT] = (spec.vocabulary_size, spec.width)
    return shapes | {rope_tensor(index): (len(rope.frequencies),) for index, rope in enumerate(spec.ropes)}


def decoder_weights(spec: DecoderSpec, adopted: Mapping[str, W]) -> DecoderWeights[W]:
    """The weights that a chip adopted under canonical names, in the decoder's places."""
    layers = tuple(
        LayerWeights(**{field: adopted[layer_tensor(index, field)] for field in layer_shapes(spec, layer)})
        for index, layer in enumerate(spec.layers)
    )
    return DecoderWeights(
        embedding=adopted[EMBEDDING],
        layers=layers,
        final_norm=adopted[FINAL_NORM],
        output=adopted[EMBEDDING if spec.is_output_tied else OUTPUT],
        ropes=tuple(adopted[rope_tensor(index)] for index in range(len(spec.ropes))),
    )
