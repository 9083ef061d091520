"""Gemma 1, 2 and 3 (text): scaled embeddings, norms times 1 + w, GELU; then windows, post norms, soft caps, two ropes.

Sources: Gemma, arXiv 2403.08295, section 2; Gemma 2, arXiv 2408.00118, section 2; Gemma 3, arXiv 2503.19786, section 2.

The 1 is added to norms' weights at load where files lack it (Hugging Face files; GGUF files have it worked in).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ridgeline.model.facts import MAX_CONTEXT_TOKENS, MAX_LAYERS, Description, Facts
from ridgeline.model.families.family import (
    ACTIVATIONS,
    Family,
    Sizes,
    config_sizes,
    gguf_sizes,
    listed_windows,
    refuse,
    uniform_decoder,
)
from ridgeline.model.origins import NameMap, Origin, gguf_names, hugging_face_names
from ridgeline.model.rope import config_rope, gguf_rope, plain_frequencies, scaled_rope
from ridgeline.model.spec import DecoderSpec, RopeSpec
from ridgeline.ops.protocol import Activation

GLOBAL_BASE, LOCAL_BASE = 1e6, 1e4
"""Rope bases of Gemma 3's layers without and with a window, where a file does not say."""
WHOLE_WIDTH_SCALES = {"gemma2": 46, "gemma3": 62}
"""GGUF files do not say the attention scale. The 27B models, known by their number of layers, scale by the
width over the heads, the others by the head width."""

# What `google/gemma-3-*` leave out of config.json: the defaults of the published configuration class.
GEMMA3_DEFAULTS: Mapping[str, float] = MappingProxyType({
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
})  # fmt: skip
GEMMA2_DEFAULTS: Mapping[str, float] = MappingProxyType({
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192
})  # fmt: skip
GEMMA1_DEFAULTS: Mapping[str, float] = MappingProxyType({"head_dim": 256, "max_position_embeddings": 8192})


def _gemma(
    family: str,
    sizes: Sizes,
    ropes: tuple[RopeSpec, ...],
    windows: tuple[int | None, ...],
    *,
    activation: Activation = "gelu_tanh",
    attention_scale: float | None = None,
    attention_softcap: float | None = None,
    logits_softcap: float | None = None,
    is_output_tied: bool = True,
) -> DecoderSpec:
    """What all Gemmas have in common; the last rope is that of layers with a window."""
    plain = uniform_decoder(
        family,
        sizes,
        ropes[0],
        is_output_tied=is_output_tied,
        activation=activation,
        attention_scale=attention_scale,
        windows=windows,
        has_query_key_norm=family == "gemma3",
    )
    layers = tuple(
        replace(
            layer,
            rope=0 if layer.window is None else len(ropes) - 1,
            attention_softcap=attention_softcap,
            has_post_norms=family != "gemma",
        )
        for layer in plain.layers
    )
    return replace(plain, layers=layers, ropes=ropes, embedding_scale=sizes.width**0.5, logits_softcap=logits_softcap)


def _gguf_scale(family: str, sizes: Sizes) -> float | None:
    if sizes.num_layers == WHOLE_WIDTH_SCALES[family]:
        return 1 / math.sqrt(sizes.width // sizes.num_query_heads)
    return None


def _patterned(num_layers: int, window: int | None, period: int) -> tuple[int | None, ...]:
    """A window in all layers but every `period`-th."""
    return tuple(window if (index + 1) % period else None for index in range(num_layers))


def gemma1_from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is gemma."""
    sizes = gguf_sizes(description)
    rope = gguf_rope(description, sizes.head_width)
    return _gemma("gemma", sizes, (rope,), (None,) * sizes.num_layers)


def gemma2_from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is gemma2: every other layer has a window, the first too."""
    facts = description.facts
    sizes = gguf_sizes(description)
    window = facts.integer("attention.sliding_window", MAX_CONTEXT_TOKENS, default=4096)
    return _gemma(
        "gemma2",
        sizes,
        (gguf_rope(description, sizes.head_width),),
        _patterned(sizes.num_layers, window, 2),
        attention_scale=_gguf_scale("gemma2", sizes),
        attention_softcap=facts.number("attn_logit_softcapping", default=50.0),
        logits_softcap=facts.number("final_logit_softcapping", default=30.0),
    )


def gemma3_from_gguf(description: Description) -> DecoderSpec:
    """The spec of a GGUF file whose architecture is gemma3: five layers with a window, then one without."""
    facts = description.facts
    sizes = gguf_sizes(description)
    window = facts.optional_integer("attention.sliding_window", MAX_CONTEXT_TOKENS)
    period = facts.integer("attention.sliding_window_pattern", MAX_LAYERS, default=6)
    local_base = facts.number("rope.freq_base_swa", default=LOCAL_BASE)
    return _gemma(
        "gemma3",
        sizes,
        (
            gguf_rope(description, sizes.head_width, default_base=GLOBAL_BASE),
            RopeSpec(frequencies=plain_frequencies(local_base, sizes.head_width)),
        ),
        _patterned(sizes.num_layers, window, period),
        attention_scale=_gguf_scale("gemma3", sizes),
        logits_softcap=facts.optional_number("final_logit_softcapping"),
        is_output_tied=not description.has("output.weight"),
    )


def _activation(facts: Facts) -> Activation:
    """Gemma's is GELU in its tanh form even where old files call it `gelu`."""
    key = "hidden_activation" if facts.find("hidden_activation") is not None else "hidden_act"
    activation: Activation = facts.choice(key, {**ACTIVATIONS, "gelu": "gelu_tanh"}, default="gelu_pytorch_tanh")
    return activation


def gemma1_from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is gemma."""
    facts = description.facts
    refuse(facts, "attention_bias", False)
    sizes = config_sizes(facts, GEMMA1_DEFAULTS)
    return _gemma(
        "gemma",
        sizes,
        (config_rope(description, sizes.head_width),),
        (None,) * sizes.num_layers,
        activation=_activation(facts),
        is_output_tied=facts.flag("tie_word_embeddings", default=True),
    )


def gemma2_from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is gemma2."""
    facts = description.facts
    refuse(facts, "attention_bias", False)
    refuse(facts, "use_bidirectional_attention", False)
    sizes = config_sizes(facts, GEMMA2_DEFAULTS)
    window = facts.integer("sliding_window", MAX_CONTEXT_TOKENS, default=4096)
    return _gemma(
        "gemma2",
        sizes,
        (config_rope(description, sizes.head_width),),
        listed_windows(facts, sizes.num_layers, window) or _patterned(sizes.num_layers, window, 2),
        activation=_activation(facts),
        attention_scale=facts.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        attention_softcap=_cap(facts, "attn_logit_softcapping", 50.0),
        logits_softcap=_cap(facts, "final_logit_softcapping", 30.0),
        is_output_tied=facts.flag("tie_word_embeddings", default=True),
    )


def _cap(facts: Facts, key: str, default: float | None) -> float | None:
    """A soft cap: absent is the family's, null is none."""
    return facts.optional_number(key) if facts.prefix + key in facts.values else default


def gemma3_from_config(description: Description) -> DecoderSpec:
    """The spec of a config.json whose model_type is gemma3_text, or gemma3, whose text part is nested."""
    facts = description.facts.nested("text_config") or description.facts
    description = replace(description, facts=facts)
    refuse(facts, "attention_bias", False)
    refuse(facts, "use_bidirectional_attention", False)
    sizes = config_sizes(facts, GEMMA3_DEFAULTS)
    window = facts.integer("sliding_window", MAX_CONTEXT_TOKENS, default=4096)
    period_key = "sliding_window_pattern" if facts.find("sliding_window_pattern") else "_sliding_window_pattern"
    period = facts.integer(period_key, MAX_LAYERS, default=6)
    return _gemma(
        "gemma3",
        sizes,
        _gemma3_ropes(description, sizes.head_width),
        listed_windows(facts, sizes.num_layers, window) or _patterned(sizes.num_layers, window, period),
        activation=_activation(facts),
        attention_scale=facts.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        attention_softcap=_cap(facts, "attn_logit_softcapping", None),
        logits_softcap=_cap(facts, "final_logit_softcapping", None),
        is_output_tied=facts.flag("tie_word_embeddings", default=True),
    )


def _gemma3_ropes(description: Description, head_width: int) -> tuple[RopeSpec, RopeSpec]:
    """(rope of layers without a window, of layers with one): new files nest both, old ones scale only the first."""
    facts = description.facts
    both = facts.nested("rope_parameters")
    if both is None or (both.find("full_attention") is None and both.find("sliding_attention") is None):
        local_base = facts.number("rope_local_base_freq", default=LOCAL_BASE)
        local = RopeSpec(frequencies=plain_frequencies(local_base, head_width))
        return config_rope(description, head_width, default_base=GLOBAL_BASE), local

    def rope(key: str, default_base: float) -> RopeSpec:
        parameters = both.nested(key)
        if parameters is None:
            return RopeSpec(frequencies=plain_frequencies(default_base, head_width))
        base = parameters.number("rope_theta", default=default_base)
        return scaled_rope(description, parameters, base, head_width)

    return rope("full_attention", GLOBAL_BASE), rope("sliding_attention", LOCAL_BASE)


HUGGING_FACE_NAMES_1 = hugging_face_names(norm_repair="add_one")
HUGGING_FACE_NAMES: NameMap = hugging_face_names(
    {
        "attention_post_norm": Origin(name="model.layers.{layer}.post_attention_layernorm.weight", repair="add_one"),
        "mlp_norm": Origin(name="model.layers.{layer}.pre_feedforward_layernorm.weight", repair="add_one"),
        "mlp_post_norm": Origin(name="model.layers.{layer}.post_feedforward_layernorm.weight", repair="add_one"),
    },
    norm_repair="add_one",
)
# Pictures are seen by other parts of a multimodal file, which this program does not run.
GEMMA3_HUGGING_FACE_NAMES: NameMap = replace(
    HUGGING_FACE_NAMES,
    ignored=(*HUGGING_FACE_NAMES.ignored, "*vision_tower.*", "*multi_modal_projector.*"),
)

GEMMA1 = Family(
    name="gemma",
    gguf_architectures=("gemma",),
    config_types=("gemma",),
    from_gguf=gemma1_from_gguf,
    from_config=gemma1_from_config,
    gguf_names=gguf_names(),
    hugging_face_names=HUGGING_FACE_NAMES_1,
)
GEMMA2 = Family(
    name="gemma2",
    gguf_architectures=("gemma2",),
    config_types=("gemma2",),
    from_gguf=gemma2_from_gguf,
    from_config=gemma2_from_config,
    gguf_names=gguf_names(),
    hugging_face_names=HUGGING_FACE_NAMES,
)
GEMMA3 = Family(
    name="gemma3",
    gguf_architectures=("gemma3",),
    config_types=("gemma3_text", "gemma3"),
    from_gguf=gemma3_from_gguf,
    from_config=gemma3_from_config,
    gguf_names=gguf_names(),
    hugging_face_names=GEMMA3_HUGGING_FACE_NAMES,
)
