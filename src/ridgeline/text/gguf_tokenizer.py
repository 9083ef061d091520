"""Reading the tokenizer that a GGUF file carries in its metadata (`tokenizer.ggml.*`).

Knows: the keys, their meaning and their defaults. Does not know: how a GGUF file is read.
Source: the GGUF specification (ggml-org/ggml, docs/gguf.md); the defaults for files that do not say are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.errors import ModelFileError
from ridgeline.text.eos_tokens import eos_ids_by_name
from ridgeline.text.gguf_families import FAMILIES, Family
from ridgeline.text.spec import (
    SPACE_MARK,
    AddedToken,
    LeadingSpace,
    NormalizerStep,
    Prepend,
    Replace,
    TokenizerSpec,
    TokenizerTraits,
    TokenKind,
)

_PREFIX = "tokenizer.ggml."
_HINT = "the file is damaged or was converted wrongly; fetch it again, or a newer conversion"
_MAX_TOKENS = 1 << 24
# A file without these ids means SentencePiece's own.
_LLAMA_DEFAULTS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}


class _Metadata:
    """The tokenizer's keys, with their types checked as they are read."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def has(self, key: str) -> bool:
        return _PREFIX + key in self._metadata

    def refuse(self, key: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{_PREFIX}{key} {problem}", hint=_HINT)

    def _value(self, key: str, kind: type, default: Any, what: str) -> Any:
        value = self._metadata.get(_PREFIX + key, default)
        if isinstance(value, np.generic):
            value = value.item()
        is_confused = kind is int and isinstance(value, bool)
        if value is not default and (is_confused or not isinstance(value, kind)):
            raise self.refuse(key, f"is {str(value)[:60]!r}; it must be {what}")
        return value

    def string(self, key: str, default: str = "") -> str:
        value: str = self._value(key, str, default, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value: bool = self._value(key, bool, default, "true or false")
        return value

    def token_id(self, key: str, num_tokens: int, default: int | None = None) -> int | None:
        value: int | None = self._value(key, int, default, "a token id")
        if value is None or (not self.has(key) and value >= num_tokens):
            return None
        if not 0 <= value < num_tokens:
            raise self.refuse(key, f"is {value}; ids go from 0 to {num_tokens - 1}")
        return value

    def strings(self, key: str) -> list[str]:
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            raise self.refuse(key, "is missing")
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.refuse(key, f"is a {type(value).__name__}; it must be a list of strings")
        if len(value) > _MAX_TOKENS:
            raise self.refuse(key, f"has {len(value)} entries; at most {_MAX_TOKENS} are possible")
        strings = list(value)
        if set(map(type, strings)) - {str}:
            raise self.refuse(key, "holds something that is not a string")
        return strings

    def numbers(self, key: str, length: int, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            return None
        try:
            numbers = np.asarray(value, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.refuse(key, "is not a list of numbers") from error
        if numbers.shape != (length,):
            raise self.refuse(key, f"has {numbers.size} entries for {length} tokens")
        return numbers


def spec_of_gguf(metadata: Mapping[str, Any]) -> TokenizerSpec:
    """The tokenizer that this metadata describes.

    Raises:
        ModelFileError: a key is missing, of the wrong type or length, out of range, or names something unknown.
    """
    reader = _Metadata(metadata)
    model = reader.string("model")
    tokens = _tokens(reader)
    kinds = _kinds(reader, tokens)
    if model in ("gpt2", "gemma4"):
        return _with_merges(reader, "gemma4" if model == "gemma4" else reader.string("pre"), tokens, kinds, metadata)
    if model == "llama":
        return _sentencepiece(reader, tokens, kinds, metadata)
    if not model:
        raise reader.refuse("model", "is missing: the file has no tokenizer")
    raise reader.refuse("model", f"is {model[:40]!r}; 'gpt2', 'llama' and 'gemma4' are supported")


def _tokens(reader: _Metadata) -> list[str]:
    tokens = reader.strings("tokens")
    if not tokens:
        raise reader.refuse("tokens", "is empty")
    if len(set(tokens)) != len(tokens):
        first_id: dict[str, int] = {}
        for token_id, token in enumerate(tokens):
            if token and first_id.setdefault(token, token_id) != token_id:
                raise reader.refuse("tokens", f"has {token[:40]!r} twice, as {first_id[token]} and {token_id}")
    return tokens


def _kinds(reader: _Metadata, tokens: list[str]) -> npt.NDArray[np.uint8]:
    num_tokens = len(tokens)
    numbers = reader.numbers("token_type", num_tokens, np.int64)
    if numbers is None:
        numbers = np.full(num_tokens, TokenKind.NORMAL)
    known = np.isin(numbers, [int(kind) for kind in TokenKind])
    if not known.all():
        token_id = int(np.argmin(known))
        raise reader.refuse("token_type", f"says {numbers[token_id]} of token {token_id}; types go from 0 to 6")
    kinds = numbers.astype(np.uint8)
    kinds[kinds == TokenKind.ABSENT] = TokenKind.NORMAL  # "undefined" says nothing about a token that is there
    if "" in tokens:  # some conversions pad the vocabulary with tokens that have no text
        empty = [token_id for token_id, token in enumerate(tokens) if not token and kinds[token_id] != TokenKind.BYTE]
        kinds[empty] = TokenKind.ABSENT
    return kinds


def _special_ids(
    reader: _Metadata, tokens: list[str], kinds: npt.NDArray[np.uint8], defaults: Mapping[str, int]
) -> dict[str, Any]:
    num_tokens = len(tokens)

    def named(key: str) -> int | None:
        return reader.token_id(key, num_tokens, defaults.get(key))

    eos_id = named("eos_token_id")
    eos_ids = {eos_id, named("eot_token_id"), named("eom_token_id")} - {None}
    control_ids = np.flatnonzero(kinds == TokenKind.CONTROL).tolist()
    controls = {tokens[token_id]: token_id for token_id in control_ids}
    eos_ids |= eos_ids_by_name(controls)
    return {
        "eos_id": eos_id,
        "eos_ids": tuple(sorted(token_id for token_id in eos_ids if token_id is not None)),
        "bos_id": named("bos_token_id"),
        "unknown_id": named("unknown_token_id"),
        "pad_id": named("padding_token_id"),
    }


def _added_tokens(
    tokens: list[str], kinds: npt.NDArray[np.uint8], metadata: Mapping[str, Any]
) -> tuple[AddedToken, ...]:
    # Phi-3 was trained with the white space after its markers taken away; GGUF has no key for it.
    strips_right = metadata.get("general.architecture") == "phi3"
    kept = {"<unk>", "<s>", "<|endoftext|>"}
    added = []
    for token_id in np.flatnonzero(np.isin(kinds, (TokenKind.CONTROL, TokenKind.ADDED, TokenKind.UNKNOWN))).tolist():
        text = tokens[token_id]
        is_control = int(kinds[token_id]) != TokenKind.ADDED
        if text:
            strips = strips_right and is_control and text not in kept
            added.append(AddedToken(id=token_id, text=text, is_control=is_control, strips_right=strips))
    return tuple(added)


def _ends(reader: _Metadata, ids: dict[str, Any], adds_bos: bool) -> dict[str, Any]:
    ends: dict[str, Any] = {"prefix_ids": (), "suffix_ids": ()}
    if reader.flag("add_bos_token", adds_bos) and ids["bos_id"] is not None:
        ends["prefix_ids"] = (ids["bos_id"],)
    if reader.flag("add_eos_token", False) and ids["eos_id"] is not None:
        ends["suffix_ids"] = (ids["eos_id"],)
    return ends


def _family(reader: _Metadata, name: str) -> Family:
    family = FAMILIES.get(name)
    if family is None:
        raise ModelFileError(
            f"{_PREFIX}pre is {name[:40]!r}, a way of splitting text that is not known here",
            hint=f"known are: {', '.join(sorted(filter(None, FAMILIES)))}",
        )
    return family


def _with_merges(
    reader: _Metadata, name: str, tokens: list[str], kinds: npt.NDArray[np.uint8], metadata: Mapping[str, Any]
) -> TokenizerSpec:
    family = _family(reader, name)
    merges = reader.strings("merges")
    ids = _special_ids(reader, tokens, kinds, {})
    traits = TokenizerTraits(
        model="bpe",
        is_byte_level=family.is_byte_level,
        has_byte_fallback=not family.is_byte_level,
        ignores_merges=family.ignores_merges,
        normalizer=family.normalizer,
        pre_tokenizer=family.pre_tokenizer,
        space_mark=None if family.is_byte_level else SPACE_MARK,
        added_tokens=_added_tokens(tokens, kinds, metadata),
        **_ends(reader, ids, family.adds_bos),
        **(ids | ({"unknown_id": None} if family.is_byte_level else {})),
    )
    return TokenizerSpec(traits=traits, tokens=tokens, kinds=kinds, merges=merges)


def _sentencepiece(
    reader: _Metadata, tokens: list[str], kinds: npt.NDArray[np.uint8], metadata: Mapping[str, Any]
) -> TokenizerSpec:
    scores = reader.numbers("scores", len(tokens), np.float64)
    if scores is None:
        raise reader.refuse("scores", "is missing")
    if not np.isfinite(scores).all():
        raise reader.refuse("scores", "holds a number that is not finite")
    ids = _special_ids(reader, tokens, kinds, _LLAMA_DEFAULTS)
    adds_space = reader.flag("add_space_prefix", True)
    spaces: tuple[NormalizerStep, ...] = (Replace(pattern=" ", is_regex=False, replacement=SPACE_MARK),)
    traits = TokenizerTraits(
        model="bpe",
        is_byte_level=False,
        has_byte_fallback=True,
        fuses_unknown=True,
        normalizer=(Prepend(text=SPACE_MARK), *spaces) if adds_space else spaces,
        space_mark=SPACE_MARK,
        leading_space=LeadingSpace.DROP_ONE if adds_space else LeadingSpace.KEEP,
        added_tokens=_added_tokens(tokens, kinds, metadata),
        **_ends(reader, ids, True),
        **ids,
    )
    return TokenizerSpec(traits=traits, tokens=tokens, kinds=kinds, scores=scores)
