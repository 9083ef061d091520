"""Where a decoder's tensors come from: which tensor of the file, which rows of it, and what is repaired on the way.

Knows: the naming conventions of GGUF and Hugging Face files, HostTensor. Does not know: families (they hold name maps
made here), chips.

`REPAIRS_VERSION` is part of every fingerprint: raise it when a repair's result changes, so that chips drop what they
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from ridgeline.model.spec import DecoderSpec, LayerSpec
from ridgeline.quant.formats import F32
from ridgeline.quant.reference import dequantize
from ridgeline.quant.tensor import HostTensor

REPAIRS_VERSION = 1

Part = Literal["whole", "query_rows", "key_rows", "value_rows", "first_half", "second_half"]
Repair = Literal["none", "paired_query_rows", "paired_key_rows", "add_one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One of our tensors in terms of the file's."""

    name: str
    """The file's name for it; `{layer}` stands for the layer's number."""
    part: Part = "whole"
    """Which rows, where the file keeps several matrices in one."""
    repair: Repair = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameMap:
    """All origins of one family in one kind of file."""

    embedding: Origin
    final_norm: Origin
    output: Origin
    layer: Mapping[str, Origin]
    """By the fields of `LayerWeights`."""
    ignored: tuple[str, ...] = field(default=())
    """Patterns (fnmatch) of tensors that say nothing more, or belong to other parts than the text decoder."""


NOTHING_CHANGED: Mapping[str, Origin] = MappingProxyType({})


def gguf_names(changed: Mapping[str, Origin] = NOTHING_CHANGED) -> NameMap:
    """The map of GGUF files, with a family's own origins for some fields of a layer.

    Source: the GGUF specification, section "Standardized tensor names".
    """
    layer = {
        "attention_norm": "attn_norm.weight",
        "query": "attn_q.weight",
        "key": "attn_k.weight",
        "value": "attn_v.weight",
        "query_bias": "attn_q.bias",
        "key_bias": "attn_k.bias",
        "value_bias": "attn_v.bias",
        "query_norm": "attn_q_norm.weight",
        "key_norm": "attn_k_norm.weight",
        "attention_output": "attn_output.weight",
        "attention_output_bias": "attn_output.bias",
        "attention_post_norm": "post_attention_norm.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "ffn_gate.weight",
        "up": "ffn_up.weight",
        "down": "ffn_down.weight",
        "mlp_post_norm": "post_ffw_norm.weight",
    }
    return NameMap(
        embedding=Origin(name="token_embd.weight"),
        final_norm=Origin(name="output_norm.weight"),
        output=Origin(name="output.weight"),
        layer={field: Origin(name=f"blk.{{layer}}.{name}") for field, name in layer.items()} | dict(changed),
        # Worked into the frequencies when the spec is made.
        ignored=("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
    )


def hugging_face_names(changed: Mapping[str, Origin] = NOTHING_CHANGED, *, norm_repair: Repair = "none") -> NameMap:
    """The map of Hugging Face files, with a family's own origins for some fields of a layer.

    Names are as in a plain causal language model; `load` takes off what a multimodal file puts before them.
    """
    norms = {
        "attention_norm": "input_layernorm.weight",
        "query_norm": "self_attn.q_norm.weight",
        "key_norm": "self_attn.k_norm.weight",
        "mlp_norm": "post_attention_layernorm.weight",
    }
    rest = {
        "query": "self_attn.q_proj.weight",
        "key": "self_attn.k_proj.weight",
        "value": "self_attn.v_proj.weight",
        "query_bias": "self_attn.q_proj.bias",
        "key_bias": "self_attn.k_proj.bias",
        "value_bias": "self_attn.v_proj.bias",
        "attention_output": "self_attn.o_proj.weight",
        "attention_output_bias": "self_attn.o_proj.bias",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
    }
    layer = {
        field: Origin(name=f"model.layers.{{layer}}.{name}", repair=norm_repair if field in norms else "none")
        for field, name in (norms | rest).items()
    }
    return NameMap(
        embedding=Origin(name="model.embed_tokens.weight"),
        final_norm=Origin(name="model.norm.weight", repair=norm_repair),
        output=Origin(name="lm_head.weight"),
        layer=layer | dict(changed),
        ignored=("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
    )


def part_rows(part: Part, layer: LayerSpec) -> tuple[int, int, int]:
    """(first row, row behind the last, rows of the file's whole tensor) of one of our matrices."""
    queries, keys = layer.num_query_heads * layer.head_width, layer.num_kv_heads * layer.head_width
    ends = {
        "query_rows": (0, queries, queries + 2 * keys),
        "key_rows": (queries, queries + keys, queries + 2 * keys),
        "value_rows": (queries + keys, queries + 2 * keys, queries + 2 * keys),
        "first_half": (0, layer.mlp_width, 2 * layer.mlp_width),
        "second_half": (layer.mlp_width, 2 * layer.mlp_width, 2 * layer.mlp_width),
    }
    return ends[part]


def file_shape(origin: Origin, shape: tuple[int, ...], layer: LayerSpec | None) -> tuple[int, ...]:
    """The shape that the file's tensor must have for ours to have `shape`."""
    if origin.part == "whole" or layer is None:
        return shape
    return (part_rows(origin.part, layer)[2], *shape[1:])


def repaired(tensor: HostTensor, origin: Origin, spec: DecoderSpec, layer: LayerSpec | None) -> HostTensor:
    """Our tensor, from the file's."""
    if layer is not None and origin.part != "whole":
        start, end, _ = part_rows(origin.part, layer)
        tensor = tensor.rows(start, end) if len(tensor.shape) > 1 else _values(tensor, start, end)
    return tensor if origin.repair == "none" else _REPAIRS[origin.repair](tensor, spec, layer)


def repaired_format(origin: Origin, file_format: str) -> str:
    """The name of the format of our tensor, given the file's."""
    return F32.name if origin.repair == "add_one" else file_format


def f32_tensor(name: str, values: npt.ArrayLike) -> HostTensor:
    """These values as a tensor."""
    array = np.ascontiguousarray(values, dtype="<f4")
    return HostTensor(name=name, shape=array.shape, format=F32, data=array.reshape(-1).view(np.uint8))


def _values(vector: HostTensor, start: int, end: int) -> HostTensor:
    """The values [start, end) of a vector."""
    item_bytes = vector.format.block_bytes
    data = vector.data[start * item_bytes : end * item_bytes]
    return HostTensor(name=vector.name, shape=(end - start,), format=vector.format, data=data)


def _halves_from_pairs(num_heads: int, head_width: int, turned: int) -> npt.NDArray[np.intp]:
    """The order that takes rows whose turned pairs lie side by side to rows where they lie half of `turned` apart.

    GGUF files of the llama architecture keep each head's rows as 0, R/2, 1, R/2 + 1, ...: row 2i of a head goes to i,
    row 2i + 1 to i + R/2, rows from R on stay.
    """
    head = np.arange(head_width)
    head[:turned] = head[:turned].reshape(turned // 2, 2).T.reshape(-1)
    return (np.arange(num_heads)[:, None] * head_width + head).reshape(-1).astype(np.intp)


def _unpaired(tensor: HostTensor, num_heads: int, spec: DecoderSpec, layer: LayerSpec) -> HostTensor:
    turned = 2 * len(spec.ropes[layer.rope].frequencies)
    order = _halves_from_pairs(num_heads, layer.head_width, turned)
    if len(tensor.shape) > 1:
        return tensor.take_rows(order)
    values = tensor.data.reshape(-1, tensor.format.block_bytes)[order]
    return HostTensor(name=tensor.name, shape=tensor.shape, format=tensor.format, data=values.reshape(-1))


def _unpaired_query(tensor: HostTensor, spec: DecoderSpec, layer: LayerSpec | None) -> HostTensor:
    assert layer is not None
    return _unpaired(tensor, layer.num_query_heads, spec, layer)


def _unpaired_key(tensor: HostTensor, spec: DecoderSpec, layer: LayerSpec | None) -> HostTensor:
    assert layer is not None
    return _unpaired(tensor, layer.num_kv_heads, spec, layer)


def _one_added(tensor: HostTensor, spec: DecoderSpec, layer: LayerSpec | None) -> HostTensor:
    """Gemma's norms multiply by 1 + w: the sum is made here, in float32."""
    return f32_tensor(tensor.name, dequantize(tensor.data, tensor.format, tensor.shape) + np.float32(1))


_REPAIRS: Mapping[Repair, Callable[[HostTensor, DecoderSpec, LayerSpec | None], HostTensor]] = {
    "paired_query_rows": _unpaired_query,
    "paired_key_rows": _unpaired_key,
    "add_one": _one_added,
}
