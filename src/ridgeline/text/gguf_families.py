"""How GGUF files name their way of splitting text, and what each name means.

A GGUF file of a byte-level vocabulary does not carry its splitting patterns; it names a family in `tokenizer.ggml.pre`.
Here is what the families' own published `tokenizer.json` files do. Where a family also normalizes (Qwen: NFC), that is
part of its entry, because its tokens were learned so.

Source of the names: llama.cpp, `src/llama-vocab.cpp` (ggml-org). The patterns are the families' own; llama.cpp writes
some of them differently where its engine lacks a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ridgeline.text.spec import (
    SPACE_MARK,
    ByteLevel,
    Digits,
    NormalizerStep,
    PreTokenizerStep,
    Punctuation,
    Replace,
    Split,
    UnicodeForm,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a name in `tokenizer.ggml.pre` stands for."""

    pre_tokenizer: tuple[PreTokenizerStep, ...]
    normalizer: tuple[NormalizerStep, ...] = ()
    ignores_merges: bool = False
    adds_bos: bool = False
    """Where the file does not say."""
    is_byte_level: bool = True


def _family(
    *patterns: str,
    normalizer: tuple[NormalizerStep, ...] = (),
    ignores_merges: bool = False,
    adds_bos: bool = False,
) -> Family:
    splits = tuple(Split(pattern=pattern, is_regex=True, behavior="isolated") for pattern in patterns)
    last = ByteLevel(adds_prefix_space=False, splits=False)
    return Family(
        pre_tokenizer=(*splits, last), normalizer=normalizer, ignores_merges=ignores_merges, adds_bos=adds_bos
    )


_NFC = (UnicodeForm(form="NFC"),)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_WORDS_CONTRACTED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
)

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PUNCTUATION_PATTERN = r"[\p{P}!-/:-@\[-`{-~]"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_GPT4O = rf"{_CASED_WORDS_CONTRACTED}|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASH}|{_SPACES}"
_TEKKEN = rf"{_CASED_WORDS}|\p{{N}}|{_SIGNS_AND_SLASH}|{_SPACES}"
_YOUTU = rf"{_CASED_WORDS_CONTRACTED}|\p{{N}}|{_SIGNS_AND_SLASH}|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_CJK_RUN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_SIGN_AND_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_NOT_HAN = r"(?!\p{Han})"
_KIMI_UPPER = rf"(?:{_NOT_HAN}{_UPPER})"
_KIMI_LOWER = rf"(?:{_NOT_HAN}{_LOWER})"
_KIMI = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
)
_SPARK = _ASCII_SIGN_AND_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    _ASCII_SIGN_AND_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_HALVING_SPACES = "|".join(
    rf"\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")
)
_JAIS2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|{_HALVING_SPACES}|\s"

# Cased letters as DeepSeek's first tokenizer lists them (a fixed list, not a Unicode property: it must not grow).
_DEEPSEEK_LETTERS = (
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    r"\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    r"\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    r"\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    r"\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    r"\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    r"\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    r"\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    r"\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    r"\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_DEEPSEEK_LLM = _family(
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}+",
)
_DIGITS_THEN_GPT2 = Family(pre_tokenizer=(Digits(single=True), ByteLevel(adds_prefix_space=False, splits=True)))
_FALCON = Family(
    pre_tokenizer=(
        Punctuation(behavior="contiguous"),
        ByteLevel(adds_prefix_space=False, splits=True),
        Digits(single=False),
        Split(pattern="[0-9][0-9][0-9]", is_regex=True, behavior="isolated"),
    )
)
_DEFAULT = _family(r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]")
_MARKED_SPACES = Family(
    pre_tokenizer=(Split(pattern=r"[^\n]+|[\n]+", is_regex=True, behavior="isolated"),),
    normalizer=(Replace(pattern=" ", is_regex=False, replacement=SPACE_MARK),),
    is_byte_level=False,
)

FAMILIES: Mapping[str, Family] = MappingProxyType({
    **dict.fromkeys(("default", ""), _DEFAULT),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _family(_LLAMA3, ignores_merges=True, adds_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _family(_LLAMA3)),
    **dict.fromkeys(("glm4", "glm5"), _family(_LLAMA3, ignores_merges=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _family(_QWEN2, normalizer=_NFC)),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2", "laguna"), _family(_QWEN2)),
    "qwen35": _family(_QWEN35, normalizer=_NFC),
    "ufakzeka": _family(rf"{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"),
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _family(
        r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"
    ),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _family(r"\p{N}{1,3}", _CJK_RUN, _DEEPSEEK3)
    ),
    "kimi-k2": _family(_KIMI),
    "spark2_5": _family(r"\p{N}{1,3}", _CJK_RUN, _SPARK, r"\p{N}"),
    "youtu": _family(_YOUTU, ignores_merges=True),
    "falcon": _FALCON,
    **dict.fromkeys(("mpt", "olmo"), _family(GPT2_PATTERN, normalizer=_NFC)),
    **dict.fromkeys(
        (
            "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code",
            "gigachat", "a.x-4.0", "mellum", "modern-bert", "roberta-bpe", "jais", "trillion",
            "granite-docling", "exaone4",
        ),
        _family(GPT2_PATTERN),
    ),
    **dict.fromkeys(
        ("starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS_THEN_GPT2
    ),
    "command-r": replace(_DIGITS_THEN_GPT2, normalizer=_NFC),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _family(_BLOOM)),
    "viking": _family(_BLOOM, r"\p{N}"),
    "tekken": _family(_TEKKEN, ignores_merges=True, adds_bos=True),
    **dict.fromkeys(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tiny_aya", "cohere2moe"), _family(_GPT4O)
    ),
    "granite-embed-multi-97m": _family(_GPT4O, ignores_merges=True),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _family(_BAILING)),
    "seed-coder": _family(_SEED_CODER),
    "exaone-moe": _family(_EXAONE_MOE),
    "jais-2": _family(_JAIS2),
    "minicpm5": _family(
        r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACES}", ignores_merges=True
    ),
    **dict.fromkeys(("gemma4", "sarvam-moe", "granite-embed-multi-311m"), _MARKED_SPACES),
})  # fmt: skip
"""By the name in `tokenizer.ggml.pre`; "" is a file without one."""

LINEAR_PATTERNS = frozenset(
    step.pattern for family in FAMILIES.values() for step in family.pre_tokenizer if isinstance(step, Split)
) | {GPT2_PATTERN, PUNCTUATION_PATTERN, r"\p{N}", r"\p{N}+"}
"""Patterns that take linear time on any text."""
