"""The steps of a `tokenizer.json`: normalizers, pre-tokenizers, decoders.

Knows: how the Rust `tokenizers` library writes them. Does not know: vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from ridgeline.errors import ModelFileError
from ridgeline.text.spec import (
    SPACE_MARK,
    Behavior,
    ByteLevel,
    Digits,
    FixedLength,
    LeadingSpace,
    Lowercase,
    Metaspace,
    NormalizerStep,
    Prepend,
    PreTokenizerStep,
    Punctuation,
    Replace,
    Split,
    Strip,
    UnicodeForm,
)

Json = Mapping[str, Any]
_MAX_STEPS = 64
_SPACE = r"\s"


def refuse(key: str, problem: str) -> ModelFileError:
    """The error that says what is wrong with a key of `tokenizer.json`."""
    return ModelFileError(
        f"tokenizer.json: {key} {problem}", hint="fetch the file again, or another conversion of the model"
    )


class _Fields:
    """One step's fields, with their types checked as they are read."""

    def __init__(self, step: Json, key: str) -> None:
        if not isinstance(step, Mapping):
            raise refuse(key, "is not an object")
        self.step = step
        self.key = key
        self.type: str = self.get("type", str)

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.step.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise refuse(f"{self.key}.{name}", f"is {str(value)[:40]!r}; it must be of type {kind.__name__}")
        return value

    def behavior(self, default: str | None = None) -> Behavior:
        value = self.get("behavior", str, default)
        snake = "".join("_" + letter.lower() if letter.isupper() else letter for letter in value).lstrip("_")
        if snake not in get_args(Behavior):
            raise refuse(
                f"{self.key}.behavior", f"is {value[:40]!r}; it must be one of {', '.join(get_args(Behavior))}"
            )
        behavior: Behavior = msgspec.convert(snake, Behavior)
        return behavior

    def pattern(self) -> tuple[str, bool]:
        """The pattern, and whether it is a regular expression."""
        pattern = self.get("pattern", dict)
        for name in ("Regex", "String"):
            if isinstance(pattern.get(name), str):
                return pattern[name], name == "Regex"
        raise refuse(f"{self.key}.pattern", "is neither a Regex nor a String")


def _flat(step: Json | None, key: str, children: str) -> list[_Fields]:
    """The steps of a possibly nested Sequence, in order."""
    if step is None:
        return []
    flat: list[_Fields] = []
    waiting = [step]
    while waiting:
        fields = _Fields(waiting.pop(), key)
        if fields.type == "Sequence":
            waiting += reversed(fields.get(children, list))
        else:
            flat.append(fields)
        if len(flat) + len(waiting) > _MAX_STEPS:
            raise refuse(key, f"has more than {_MAX_STEPS} steps")
    return flat


def normalizer_steps(normalizer: Json | None) -> tuple[NormalizerStep, ...]:
    """What `normalizer` says. Raises ModelFileError for a kind that is not supported."""
    steps: list[NormalizerStep] = []
    for fields in _flat(normalizer, "normalizer", "normalizers"):
        match fields.type:
            case "NFC" | "NFD" | "NFKC" | "NFKD" as form:
                steps.append(UnicodeForm(form=form))
            case "Lowercase":
                steps.append(Lowercase())
            case "Prepend":
                steps.append(Prepend(text=fields.get("prepend", str)))
            case "Replace":
                pattern, is_regex = fields.pattern()
                steps.append(Replace(pattern=pattern, is_regex=is_regex, replacement=fields.get("content", str)))
            case "Strip":
                steps.append(Strip(left=fields.get("strip_left", bool), right=fields.get("strip_right", bool)))
            case unknown:
                raise refuse("normalizer.type", f"is {unknown[:40]!r}, which is not supported")
    return tuple(steps)


def pre_tokenizer_steps(pre_tokenizer: Json | None) -> tuple[PreTokenizerStep, ...]:
    """What `pre_tokenizer` says. Raises ModelFileError for a kind that is not supported."""
    return tuple(
        step
        for fields in _flat(pre_tokenizer, "pre_tokenizer", "pretokenizers")
        for step in _pre_tokenizer_step(fields)
    )


def _pre_tokenizer_step(fields: _Fields) -> Sequence[PreTokenizerStep]:
    match fields.type:
        case "ByteLevel":
            splits = fields.get("use_regex", bool, True)
            return [ByteLevel(adds_prefix_space=fields.get("add_prefix_space", bool), splits=splits)]
        case "Split":
            pattern, is_regex = fields.pattern()
            inverted = fields.get("invert", bool, False)
            return [Split(pattern=pattern, is_regex=is_regex, behavior=fields.behavior(), inverted=inverted)]
        case "Digits":
            return [Digits(single=fields.get("individual_digits", bool, False))]
        case "Punctuation":
            return [Punctuation(behavior=fields.behavior("Isolated"))]
        case "Metaspace":
            return [_metaspace(fields)]
        case "Whitespace":
            return [Split(pattern=r"\w+|[^\w\s]+", is_regex=True, behavior="removed", inverted=True)]
        case "WhitespaceSplit":
            return [Split(pattern=_SPACE, is_regex=True, behavior="removed")]
        case "BertPreTokenizer":
            return [Split(pattern=_SPACE, is_regex=True, behavior="removed"), Punctuation(behavior="isolated")]
        case "CharDelimiterSplit":
            return [Split(pattern=fields.get("delimiter", str), is_regex=False, behavior="removed")]
        case "FixedLength":
            length = fields.get("length", int)
            if length < 1:
                raise refuse("pre_tokenizer.length", f"is {length}; it must be at least 1")
            return [FixedLength(num_characters=length)]
        case unknown:
            raise refuse("pre_tokenizer.type", f"is {unknown[:40]!r}, which is not supported")


def _metaspace(fields: _Fields) -> Metaspace:
    # Files before tokenizers 0.15 say add_prefix_space instead of prepend_scheme.
    old_scheme = "always" if fields.get("add_prefix_space", bool, True) else "never"
    scheme = fields.get("prepend_scheme", str, old_scheme)
    if scheme not in ("always", "first", "never"):
        raise refuse(f"{fields.key}.prepend_scheme", f"is {scheme[:40]!r}; it must be always, first or never")
    mark = fields.get("replacement", str, SPACE_MARK)
    return Metaspace(mark=mark, prepends=scheme, splits=fields.get("split", bool, True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens become text again, as far as it is not simply their own text."""

    is_byte_level: bool = False
    has_byte_fallback: bool = False
    space_mark: str | None = None
    leading_space: LeadingSpace = LeadingSpace.KEEP


def decoding_of(decoder: Json | None) -> Decoding:
    """What `decoder` says. Raises ModelFileError where a token's bytes would depend on its neighbours."""
    flags: dict[str, Any] = {}
    for fields in _flat(decoder, "decoder", "decoders"):
        match fields.type:
            case "ByteLevel":
                flags["is_byte_level"] = True
            case "ByteFallback":
                flags["has_byte_fallback"] = True
            case "Fuse":
                pass
            case "Metaspace":
                metaspace = _metaspace(fields)
                flags["space_mark"] = metaspace.mark
                if metaspace.prepends != "never":
                    flags["leading_space"] = LeadingSpace.DROP_OF_FIRST_TOKEN
            case "Replace":
                pattern, is_regex = fields.pattern()
                if is_regex or fields.get("content", str) != " " or not pattern:
                    raise refuse("decoder.Replace", "does more than write a mark as a space, which is not supported")
                flags["space_mark"] = pattern
            case "Strip":
                what = (fields.get("content", str), fields.get("start", int), fields.get("stop", int))
                if what != (" ", 1, 0):
                    raise refuse("decoder.Strip", f"is {what}; only one space at the start is supported")
                flags["leading_space"] = LeadingSpace.DROP_ONE
            case unknown:
                raise refuse("decoder.type", f"is {unknown[:40]!r}, which is not supported")
    return Decoding(**flags)
