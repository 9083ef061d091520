"""The decoder: one engine step, for every family and every chip.

Knows: DecoderSpec, the ops. Does not know: which chip runs, how weights are stored or quantised, who asked, how pages
are allocated, how a token is sampled, whether a token is prompt or output.

Shape letters: T new tokens of this step (all sequences, ragged), B rows of which logits are wanted, D width, H query
heads, K kv heads, C head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ridgeline.model.spec import DecoderSpec, LayerSpec
from ridgeline.ops.protocol import Ops
from ridgeline.ops.step import StepArrays

A = TypeVar("A")
W = TypeVar("W")
P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights(Generic[W]):
    """One layer's weights, as the chip adopted them; what a family lacks is None."""

    attention_norm: W
    query: W
    key: W
    value: W
    query_bias: W | None = None
    key_bias: W | None = None
    value_bias: W | None = None
    query_norm: W | None = None
    key_norm: W | None = None
    attention_output: W
    attention_output_bias: W | None = None
    attention_post_norm: W | None = None
    mlp_norm: W
    gate: W
    up: W
    down: W
    mlp_post_norm: W | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights(Generic[W]):
    """A decoder's weights."""

    embedding: W
    layers: tuple[LayerWeights[W], ...]
    final_norm: W
    output: W
    """The embedding itself where they are tied."""
    ropes: tuple[W, ...]
    """The frequencies of `DecoderSpec.ropes`, adopted as vectors."""


def decoder_step(
    spec: DecoderSpec, weights: DecoderWeights[W], ops: Ops[A, W, P], step: StepArrays[A], pages: P
) -> tuple[A, P]:
    """Run the step's tokens through all layers; return logits_BV of the rows asked for, and the pages."""
    x_TD = ops.embed(weights.embedding, step.token_ids_T)
    if spec.embedding_scale != 1.0:
        x_TD = ops.scale(x_TD, spec.embedding_scale)
    angles = [
        ops.angles(step.positions_T, frequencies, rope.magnitude)
        for frequencies, rope in zip(weights.ropes, spec.ropes, strict=True)
    ]
    for index, (layer, w) in enumerate(zip(spec.layers, weights.layers, strict=True)):
        h_TD = ops.rms_norm(x_TD, w.attention_norm, spec.norm_epsilon)
        h_TD, pages = _attention(spec, layer, w, index, h_TD, angles[layer.rope], ops, step, pages)
        if w.attention_post_norm is not None:
            h_TD = ops.rms_norm(h_TD, w.attention_post_norm, spec.norm_epsilon)
        x_TD = ops.add(x_TD, h_TD)
        h_TD = ops.rms_norm(x_TD, w.mlp_norm, spec.norm_epsilon)
        h_TD = ops.gated_mlp(h_TD, w.gate, w.up, w.down, layer.activation)
        if w.mlp_post_norm is not None:
            h_TD = ops.rms_norm(h_TD, w.mlp_post_norm, spec.norm_epsilon)
        x_TD = ops.add(x_TD, h_TD)
    x_BD = ops.take_rows(x_TD, step.logit_rows_B)
    logits_BV = ops.linear(ops.rms_norm(x_BD, weights.final_norm, spec.norm_epsilon), weights.output)
    if spec.logits_scale != 1.0:
        logits_BV = ops.scale(logits_BV, spec.logits_scale)
    if spec.logits_softcap is not None:
        logits_BV = ops.softcap(logits_BV, spec.logits_softcap)
    return logits_BV, pages


def _attention(
    spec: DecoderSpec,
    layer: LayerSpec,
    w: LayerWeights[W],
    index: int,
    h_TD: A,
    angles: A,
    ops: Ops[A, W, P],
    step: StepArrays[A],
    pages: P,
) -> tuple[A, P]:
    q_TD, k_TD, v_TD = ops.linears(h_TD, (w.query, w.key, w.value), (w.query_bias, w.key_bias, w.value_bias))
    q_THC = ops.heads(q_TD, layer.num_query_heads)
    k_TKC = ops.heads(k_TD, layer.num_kv_heads)
    v_TKC = ops.heads(v_TD, layer.num_kv_heads)
    if w.query_norm is not None and w.key_norm is not None:
        q_THC = ops.rms_norm(q_THC, w.query_norm, spec.norm_epsilon)
        k_TKC = ops.rms_norm(k_TKC, w.key_norm, spec.norm_epsilon)
    y_THC, pages = ops.store_and_attend(
        ops.rope(q_THC, angles),
        ops.rope(k_TKC, angles),
        v_TKC,
        pages,
        index,
        step,
        scale=layer.attention_scale,
        window=layer.window,
        softcap=layer.attention_softcap,
    )
    return ops.linear(ops.merge_heads(y_THC), w.attention_output, w.attention_output_bias), pages
