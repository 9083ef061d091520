"""Frequencies of rotary position embeddings, with every published scaling worked into them.

Knows: config.json's `rope_scaling` / `rope_parameters` and the GGUF keys `rope.*`. Does not know: families.

R is the width of a head that is turned; there are R / 2 frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ridgeline.errors import ModelFileError
from ridgeline.model.facts import MAX_CONTEXT_TOKENS, MAX_HEAD_WIDTH, Description, Facts
from ridgeline.model.spec import RopeSpec


def plain_frequencies(base: float, width: int) -> tuple[float, ...]:
    """base^(-2i / R) for each turned pair i. Source: RoFormer, arXiv 2104.09864, section 3.2.2."""
    return tuple(base ** (-2 * pair / width) for pair in range(width // 2))


def divided(frequencies: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """Each frequency by its factor."""
    return tuple(frequency / factor for frequency, factor in zip(frequencies, factors, strict=True))


def llama3_frequencies(
    frequencies: Sequence[float], *, factor: float, low: float, high: float, original_tokens: int
) -> tuple[float, ...]:
    """Long wavelengths slowed by `factor`, short ones kept, those between blended.

    A wavelength is short where the original context holds more than `high` of it, long where fewer than `low`.
    Source: the Llama 3.1 reference code (llama-models, `apply_scaling`).
    """

    def scaled(frequency: float) -> float:
        waves = original_tokens * frequency / (2 * math.pi)
        kept = min(max((waves - low) / (high - low), 0.0), 1.0)
        return frequency * (kept + (1 - kept) / factor)

    return tuple(scaled(frequency) for frequency in frequencies)


def yarn_frequencies(
    base: float,
    width: int,
    *,
    factor: float,
    original_tokens: int,
    fast_turns: float = 32.0,
    slow_turns: float = 1.0,
    is_truncated: bool = True,
) -> tuple[float, ...]:
    """Frequencies that turn often in the original context kept, slow ones divided, a ramp over the pairs between.

    Source: YaRN, arXiv 2309.00071, section 3.2, equations 17 to 23.
    """

    def pair_of(turns: float) -> float:
        return width * math.log(original_tokens / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_of(fast_turns), pair_of(slow_turns)
    if is_truncated:
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, width - 1.0)
    span = last - first if last != first else 0.001

    def scaled(pair: int, frequency: float) -> float:
        divided_share = min(max((pair - first) / span, 0.0), 1.0)
        return frequency / factor * divided_share + frequency * (1 - divided_share)

    return tuple(scaled(pair, frequency) for pair, frequency in enumerate(plain_frequencies(base, width)))


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """0.1 * weight * ln(factor) + 1. Source: YaRN, arXiv 2309.00071, equation 22."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def longrope_magnitude(factor: float, original_tokens: int) -> float:
    """sqrt(1 + ln(factor) / ln(original context)). Source: LongRoPE, arXiv 2402.13753; Phi-3's own code."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_tokens))


def config_rope(description: Description, head_width: int, *, default_base: float = 10000.0) -> RopeSpec:
    """The rope of a config.json whose layers all have the same one.

    `rope_parameters` has it all in new files; old ones have `rope_theta` and `rope_scaling` beside each other.
    """
    facts = description.facts
    share = facts.number("partial_rotary_factor", default=1.0)
    base = _base(facts, "rope_theta", default_base)
    scaling = facts.nested("rope_parameters") or facts.nested("rope_scaling")
    if scaling is None:
        return RopeSpec(frequencies=plain_frequencies(base, _turned(facts, head_width, share)))
    base = _base(scaling, "rope_theta", base)
    width = _turned(scaling, head_width, scaling.number("partial_rotary_factor", default=share))
    return scaled_rope(description, scaling, base, width)


def scaled_rope(description: Description, scaling: Facts, base: float, width: int) -> RopeSpec:
    """The rope that a config's `rope_scaling` object describes."""
    kind_key = "rope_type" if scaling.find("rope_type") is not None else "type"
    scale = scaling.choice(kind_key, _CONFIG_SCALINGS, default="default")
    rope: RopeSpec = scale(description, scaling, base, width)
    return rope


def _base(facts: Facts, key: str, default: float) -> float:
    base = facts.number(key, default=default)
    if base <= 1:
        facts.fail(key, f"is {base}, but must be above 1")
    return base


def _turned(facts: Facts, head_width: int, share: float) -> int:
    width = int(head_width * share)
    if width < 2 or width % 2 or width > head_width:
        facts.fail("partial_rotary_factor", f"is {share}, which turns {width} of a head's {head_width} values")
    return width


def _default(_: Description, scaling: Facts, base: float, width: int) -> RopeSpec:
    return RopeSpec(frequencies=plain_frequencies(base, width))


def _linear(_: Description, scaling: Facts, base: float, width: int) -> RopeSpec:
    factor = scaling.number("factor")
    return RopeSpec(frequencies=divided(plain_frequencies(base, width), [factor] * (width // 2)))


def _original_tokens(description: Description, scaling: Facts) -> int:
    """The context before scaling, which stands in the scaling, or beside it, or is the model's own."""
    key = "original_max_position_embeddings"
    facts = description.facts
    own = facts.integer("max_position_embeddings", MAX_CONTEXT_TOKENS)
    beside = facts.integer(key, MAX_CONTEXT_TOKENS, minimum=2, default=own)
    return scaling.integer(key, MAX_CONTEXT_TOKENS, minimum=2, default=beside)


def _llama3(description: Description, scaling: Facts, base: float, width: int) -> RopeSpec:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        scaling.fail("low_freq_factor", f"is {low}, but must be below high_freq_factor, which is {high}")
    frequencies = llama3_frequencies(
        plain_frequencies(base, width),
        factor=scaling.number("factor"),
        low=low,
        high=high,
        original_tokens=_original_tokens(description, scaling),
    )
    return RopeSpec(frequencies=frequencies)


def _context_ratio(description: Description, original_tokens: int) -> float:
    return description.facts.integer("max_position_embeddings", MAX_CONTEXT_TOKENS) / original_tokens


def _yarn(description: Description, scaling: Facts, base: float, width: int) -> RopeSpec:
    original_tokens = _original_tokens(description, scaling)
    factor = scaling.number("factor", default=_context_ratio(description, original_tokens))
    frequencies = yarn_frequencies(
        base,
        width,
        factor=factor,
        original_tokens=original_tokens,
        fast_turns=scaling.number("beta_fast", default=32.0),
        slow_turns=scaling.number("beta_slow", default=1.0),
        is_truncated=scaling.flag("truncate", default=True),
    )
    weight, whole = scaling.optional_number("mscale"), scaling.optional_number("mscale_all_dim")
    magnitude = yarn_magnitude(factor)
    if weight is not None and whole is not None:
        magnitude = yarn_magnitude(factor, weight) / yarn_magnitude(factor, whole)
    return RopeSpec(frequencies=frequencies, magnitude=scaling.number("attention_factor", default=magnitude))


def _longrope(description: Description, scaling: Facts, base: float, width: int) -> RopeSpec:
    original_tokens = _original_tokens(description, scaling)
    factor = scaling.number("factor", default=_context_ratio(description, original_tokens))
    factors = {name: scaling.numbers(f"{name}_factor", width // 2) for name in ("long", "short")}
    chosen = longrope_choice(description, original_tokens)
    return RopeSpec(
        frequencies=divided(plain_frequencies(base, width), factors[chosen]),
        magnitude=scaling.number("attention_factor", default=longrope_magnitude(factor, original_tokens)),
    )


def longrope_choice(description: Description, original_tokens: int) -> str:
    """Which factors serve the context that is wanted: "short" where it fits the original one.

    Source: Phi-3, arXiv 2404.14219, section 2. The choice is made once, since keys that are stored must not change.
    """
    return "short" if (description.context_tokens or MAX_CONTEXT_TOKENS) <= original_tokens else "long"


_CONFIG_SCALINGS: Mapping[str, Callable[[Description, Facts, float, int], RopeSpec]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}


def gguf_rope(description: Description, head_width: int, *, default_base: float = 10000.0) -> RopeSpec:
    """The rope of a GGUF file whose layers all have the same one; `rope_freqs.weight` divides the frequencies."""
    facts = description.facts
    base = _base(facts, "rope.freq_base", default_base)
    width = facts.integer("rope.dimension_count", MAX_HEAD_WIDTH, default=head_width)
    if width % 2 or width > head_width:
        facts.fail("rope.dimension_count", f"is {width}, but must be even and at most the head's width, {head_width}")
    # Files of Phi-3 do not name their scaling: they have its tensors.
    default = "longrope" if description.has("rope_factors_long.weight") else "none"
    rope: RopeSpec = facts.choice("rope.scaling.type", _GGUF_SCALINGS, default=default)(description, base, width)
    if description.has("rope_freqs.weight"):
        factors = _factors(description, "rope_freqs.weight", width)
        return RopeSpec(frequencies=divided(rope.frequencies, factors), magnitude=rope.magnitude)
    return rope


def _factors(description: Description, name: str, width: int) -> tuple[float, ...]:
    # Its shape first: what is no small vector is never read.
    shape = description.shapes.get(name)
    if shape != (width // 2,):
        found = "is missing" if shape is None else f"has shape {list(shape)}"
        raise ModelFileError(f"{description.facts.file}: tensor {name} {found}, but must have [{width // 2}]")
    factors = description.vector(name)
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise ModelFileError(f"{description.facts.file}: tensor {name} must hold finite numbers above 0")
    return factors


def _gguf_none(description: Description, base: float, width: int) -> RopeSpec:
    return RopeSpec(frequencies=plain_frequencies(base, width))


def _gguf_linear(description: Description, base: float, width: int) -> RopeSpec:
    factor = description.facts.number("rope.scaling.factor", default=1.0)
    return RopeSpec(frequencies=divided(plain_frequencies(base, width), [factor] * (width // 2)))


def _gguf_original_tokens(facts: Facts) -> int:
    own = facts.integer("context_length", MAX_CONTEXT_TOKENS)
    return facts.integer("rope.scaling.original_context_length", MAX_CONTEXT_TOKENS, minimum=2, default=own)


def _gguf_yarn(description: Description, base: float, width: int) -> RopeSpec:
    facts = description.facts
    factor = facts.number("rope.scaling.factor")
    frequencies = yarn_frequencies(
        base,
        width,
        factor=factor,
        original_tokens=_gguf_original_tokens(facts),
        fast_turns=facts.number("rope.scaling.yarn_beta_fast", default=32.0),
        slow_turns=facts.number("rope.scaling.yarn_beta_slow", default=1.0),
    )
    magnitude = yarn_magnitude(factor) * facts.number("rope.scaling.attn_factor", default=1.0)
    return RopeSpec(frequencies=frequencies, magnitude=magnitude)


def _gguf_longrope(description: Description, base: float, width: int) -> RopeSpec:
    """Phi-3's: the factors are tensors, and the magnitude is `rope.scaling.attn_factor`."""
    facts = description.facts
    original_tokens = _gguf_original_tokens(facts)
    chosen = longrope_choice(description, original_tokens)
    factors = _factors(description, f"rope_factors_{chosen}.weight", width)
    ratio = facts.integer("context_length", MAX_CONTEXT_TOKENS) / original_tokens
    return RopeSpec(
        frequencies=divided(plain_frequencies(base, width), factors),
        magnitude=facts.number("rope.scaling.attn_factor", default=longrope_magnitude(ratio, original_tokens)),
    )


_GGUF_SCALINGS: Mapping[str, Callable[[Description, float, int], RopeSpec]] = {
    "none": _gguf_none,
    "linear": _gguf_linear,
    "yarn": _gguf_yarn,
    "longrope": _gguf_longrope,
}
