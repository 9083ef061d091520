"""DecoderSpec: everything that distinguishes one decoder from another, as data."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.ops.protocol import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """How positions turn queries and keys: one frequency per turned pair, scaling already worked in.

    Families' scalings (linear, Llama 3's by wavelength, YaRN, Phi-3's long factors) are worked into `frequencies` when
    the spec is made, so the decoder knows of none.
    """

    frequencies: tuple[float, ...]
    """Radians per position; R / 2 of them, R <= head width. All 0 for layers that do not turn (cos 1, sin 0)."""
    magnitude: float = 1.0
    """Factor on cos and sin (YaRN, Phi-3 long)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer."""

    num_query_heads: int
    num_kv_heads: int
    head_width: int
    attention_scale: float
    rope: int
    """Index into `DecoderSpec.ropes`."""
    window: int | None = None
    """How many positions back, itself included, a query may see."""
    attention_softcap: float | None = None
    has_attention_bias: bool = False
    """Whether queries, keys and values get a bias."""
    has_attention_output_bias: bool = False
    has_query_key_norm: bool = False
    """RMS norm of each query and key head before rope."""
    mlp_width: int
    activation: Activation = "silu"
    has_post_norms: bool = False
    """Norms after attention and MLP, before they are added to the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A decoder."""

    family: str
    vocabulary_size: int
    width: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    norm_epsilon: float
    context_tokens: int
    """The longest context that the model was made for."""
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    """Factor on the logits, before the soft cap."""
    logits_softcap: float | None = None
    is_output_tied: bool = False
    """Whether the output matrix is the embedding table."""
