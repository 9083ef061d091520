"""What a family is: functions from a file's description to a spec, and maps of names. No forward code.

Also the figures that most families name alike, read once here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ridgeline.model import facts as limits
from ridgeline.model.facts import Description, Facts
from ridgeline.model.origins import NameMap
from ridgeline.model.spec import DecoderSpec, LayerSpec, RopeSpec
from ridgeline.ops.protocol import Activation

NO_DEFAULTS: Mapping[str, int] = MappingProxyType({})

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
"""Names of activations in config.json -> ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family as data."""

    name: str
    gguf_architectures: tuple[str, ...]
    """Values of `general.architecture`; empty where GGUF files call the family by another's name."""
    config_types: tuple[str, ...]
    """Values of `model_type` in config.json."""
    from_gguf: Callable[[Description], DecoderSpec]
    from_config: Callable[[Description], DecoderSpec]
    gguf_names: NameMap
    hugging_face_names: NameMap
    gguf_switches: tuple[str, ...] = ()
    """Keys that most families refuse and this one reads (see `load.GGUF_SWITCHES`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The figures that every decoder has."""

    vocabulary_size: int
    width: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    norm_epsilon: float
    context_tokens: int


def gguf_sizes(description: Description) -> Sizes:
    """The sizes under the standard GGUF keys; the vocabulary is as long as the embedding table."""
    facts = description.facts
    width = facts.integer("embedding_length", limits.MAX_WIDTH)
    num_query_heads = facts.integer("attention.head_count", limits.MAX_HEADS)
    head_width = _head_width(facts, "attention.key_length", width, num_query_heads, "attention.head_count")
    value_width = facts.integer("attention.value_length", limits.MAX_HEAD_WIDTH, default=head_width)
    if value_width != head_width:
        facts.fail("attention.value_length", f"is {value_width}; only that of keys, {head_width}, is supported")
    table = description.shapes.get("token_embd.weight")
    if table is None or len(table) != 2:
        facts.fail("token_embd.weight", f"must be a matrix, but is {table or 'missing'}")
    vocabulary_size = facts.integer("vocab_size", limits.MAX_VOCABULARY, default=table[0])
    return Sizes(
        vocabulary_size=vocabulary_size,
        width=width,
        num_layers=facts.integer("block_count", limits.MAX_LAYERS),
        num_query_heads=num_query_heads,
        num_kv_heads=facts.integer("attention.head_count_kv", limits.MAX_HEADS, default=num_query_heads),
        head_width=head_width,
        mlp_width=facts.integer("feed_forward_length", limits.MAX_WIDTH),
        norm_epsilon=facts.number("attention.layer_norm_rms_epsilon"),
        context_tokens=facts.integer("context_length", limits.MAX_CONTEXT_TOKENS),
    )


def config_sizes(facts: Facts, defaults: Mapping[str, Any] = NO_DEFAULTS) -> Sizes:
    """The sizes under the keys of config.json; `defaults` are those of the family's published configuration class."""

    def integer(key: str, maximum: int) -> int:
        return facts.integer(key, maximum, default=defaults.get(key))

    width = integer("hidden_size", limits.MAX_WIDTH)
    num_query_heads = integer("num_attention_heads", limits.MAX_HEADS)
    kv_default = defaults.get("num_key_value_heads", num_query_heads)
    return Sizes(
        vocabulary_size=integer("vocab_size", limits.MAX_VOCABULARY),
        width=width,
        num_layers=integer("num_hidden_layers", limits.MAX_LAYERS),
        num_query_heads=num_query_heads,
        num_kv_heads=facts.integer("num_key_value_heads", limits.MAX_HEADS, default=kv_default),
        head_width=_head_width(
            facts, "head_dim", width, num_query_heads, "num_attention_heads", default=defaults.get("head_dim")
        ),
        mlp_width=integer("intermediate_size", limits.MAX_WIDTH),
        norm_epsilon=facts.number("rms_norm_eps", default=float(defaults.get("rms_norm_eps", 1e-6))),
        context_tokens=integer("max_position_embeddings", limits.MAX_CONTEXT_TOKENS),
    )


def _head_width(
    facts: Facts, key: str, width: int, num_query_heads: int, heads_key: str, default: int | None = None
) -> int:
    """The width of a head that is named, or the family's, or an equal share of the whole width."""
    if facts.find(key) is None and default is None:
        if width % num_query_heads:
            facts.fail(heads_key, f"is {num_query_heads}, which does not divide the width, {width}")
        return width // num_query_heads
    return facts.integer(key, limits.MAX_HEAD_WIDTH, default=default)


def uniform_decoder(
    family: str,
    sizes: Sizes,
    rope: RopeSpec,
    *,
    is_output_tied: bool,
    activation: Activation = "silu",
    attention_scale: float | None = None,
    windows: tuple[int | None, ...] | None = None,
    has_attention_bias: bool = False,
    has_attention_output_bias: bool = False,
    has_query_key_norm: bool = False,
) -> DecoderSpec:
    """A decoder whose layers are alike, but for their windows; the scale is 1 / sqrt(head width) unless given."""
    layers = tuple(
        LayerSpec(
            num_query_heads=sizes.num_query_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_width=sizes.head_width,
            attention_scale=attention_scale or sizes.head_width**-0.5,
            rope=0,
            window=window,
            has_attention_bias=has_attention_bias,
            has_attention_output_bias=has_attention_output_bias,
            has_query_key_norm=has_query_key_norm,
            mlp_width=sizes.mlp_width,
            activation=activation,
        )
        for window in windows or (None,) * sizes.num_layers
    )
    return DecoderSpec(
        family=family,
        vocabulary_size=sizes.vocabulary_size,
        width=sizes.width,
        layers=layers,
        ropes=(rope,),
        norm_epsilon=sizes.norm_epsilon,
        context_tokens=sizes.context_tokens,
        is_output_tied=is_output_tied,
    )


def listed_windows(facts: Facts, num_layers: int, window: int | None) -> tuple[int | None, ...] | None:
    """Each layer's window by the config's `layer_types`, or None where there is no such list."""
    kinds = facts.find("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        facts.fail("layer_types", f"must be a list of {num_layers} entries, one for each layer")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            facts.fail("layer_types", f"has {str(kind)[:60]!r}; supported: full_attention, sliding_attention")
    if window is None and "sliding_attention" in kinds:
        facts.fail("sliding_window", "is missing, but layer_types has sliding layers")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def refuse(facts: Facts, key: str, neutral: Any) -> None:
    """Fail where a switch that this program does not have is on."""
    value = facts.find(key)
    if value is not None and value != neutral:
        facts.fail(key, f"is {str(value)[:60]}, which is not supported; supported: {neutral}")


def has_bias(description: Description, names: NameMap, field: str) -> bool:
    """Whether the first layer of a GGUF file has this bias."""
    return description.has(names.layer[field].name.format(layer=0))
