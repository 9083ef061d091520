"""Reading a `tokenizer.json` and the small files beside it.

Knows: the format of the Rust `tokenizers` library, and which keys of `tokenizer_config.json` and
`generation_config.json` say more than it. Does not know: how a step is done.
Source: huggingface/tokenizers, its serialisation of normalizers, pre-tokenizers, models, post-processors, decoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ridgeline.errors import ModelFileError
from ridgeline.text.eos_tokens import eos_ids_by_name
from ridgeline.text.hf_steps import decoding_of, normalizer_steps, pre_tokenizer_steps, refuse
from ridgeline.text.spec import (
    AddedToken,
    ByteLevel,
    PreTokenizerStep,
    TokenizerSpec,
    TokenizerTraits,
    TokenKind,
)

_MAX_TOKENS = 1 << 24


class _AddedTokenJson(msgspec.Struct, kw_only=True):
    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class _ModelJson(msgspec.Struct, kw_only=True):
    type: str | None = None
    vocab: dict[str, int] | list[tuple[str, float]]
    merges: list[str | tuple[str, str]] | None = None
    unk_token: str | None = None
    unk_id: int | None = None
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class _TokenizerJson(msgspec.Struct, kw_only=True):
    model: msgspec.Raw
    added_tokens: list[_AddedTokenJson] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vocabulary:
    """The model's own tokens and those added to it."""

    tokens: list[str]
    kinds: Any
    ids: dict[str, int]
    scores: Any
    merges: list[Any] | None


def spec_of_tokenizer_json(
    content: bytes,
    *,
    tokenizer_config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> TokenizerSpec:
    """The tokenizer that these files describe.

    Args:
        content: the bytes of `tokenizer.json`.
        tokenizer_config: `tokenizer_config.json`: the names of special tokens, `add_bos_token`, more added tokens.
        generation_config: `generation_config.json`, or a `config.json`: `eos_token_id`, one or several.

    Raises:
        ModelFileError: something is missing, contradictory or not supported; names the key.
    """
    config = tokenizer_config or {}
    whole = _decoded(content, _TokenizerJson, "tokenizer.json")
    model = _decoded(bytes(whole.model), _ModelJson, "tokenizer.json: model")
    kind = _kind_of_model(model)
    named = _named_tokens(config)
    added = _with_named(_with_configured(whole.added_tokens, config), model, named)
    vocabulary = _vocabulary(model, kind, added, set(named.values()))
    pre_tokenizer = pre_tokenizer_steps(whole.pre_tokenizer)
    decoding = decoding_of(whole.decoder)
    is_byte_level = _is_byte_level(pre_tokenizer, decoding.is_byte_level)
    if decoding.has_byte_fallback:
        _mark_bytes(vocabulary)
    control_ids = np.flatnonzero(vocabulary.kinds == TokenKind.CONTROL).tolist()
    controls = {vocabulary.tokens[token_id]: token_id for token_id in control_ids}
    special = {name: vocabulary.ids.get(token) for name, token in named.items()}
    prefix_ids, suffix_ids = _ends(whole.post_processor, vocabulary, config, special)
    generation_eos = _generation_eos(generation_config)
    eos_ids = {special.get("eos_token")} | eos_ids_by_name(controls) | generation_eos
    eos_id = special.get("eos_token")
    traits = TokenizerTraits(
        model=kind,
        is_byte_level=is_byte_level,
        has_byte_fallback=model.byte_fallback,
        fuses_unknown=model.fuse_unk,
        ignores_merges=model.ignore_merges,
        normalizer=normalizer_steps(whole.normalizer),
        pre_tokenizer=pre_tokenizer,
        space_mark=decoding.space_mark,
        leading_space=decoding.leading_space,
        added_tokens=_added_tokens(added, set(named.values())),
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        unknown_id=_unknown_id(model, vocabulary),
        bos_id=special.get("bos_token"),
        eos_id=min(generation_eos, default=None) if eos_id is None else eos_id,
        eos_ids=tuple(sorted(token_id for token_id in eos_ids if token_id is not None)),
        pad_id=special.get("pad_token"),
    )
    return TokenizerSpec(
        traits=traits,
        tokens=vocabulary.tokens,
        kinds=vocabulary.kinds,
        merges=vocabulary.merges,
        scores=vocabulary.scores,
    )


def _decoded(content: bytes, kind: Any, where: str) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{where} is not UTF-8 text", hint="fetch the file again") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(f"{where}: {error}", hint="fetch the file again") from error


def _kind_of_model(model: _ModelJson) -> Any:
    kind = model.type or ("Unigram" if isinstance(model.vocab, list) else "BPE")
    if kind not in ("BPE", "Unigram") or isinstance(model.vocab, list) != (kind == "Unigram"):
        raise refuse("model.type", f"is {str(kind)[:40]!r}; 'BPE' with a map and 'Unigram' with a list are supported")
    if model.dropout:
        raise refuse("model.dropout", "is set: tokens would be drawn by chance")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise refuse("model.continuing_subword_prefix or end_of_word_suffix", "is set, which is not supported")
    if kind == "BPE" and model.merges is None:
        raise refuse("model.merges", "is missing")
    return kind.lower()


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that `tokenizer_config.json` names: {"eos_token": "</s>", ...}."""
    named = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if value is not None and not isinstance(value, str):
            raise ModelFileError(f"tokenizer_config.json: {name} is {str(value)[:40]!r}; it must be a string or null")
        if value:
            named[name] = value
    return named


def _with_configured(added: list[_AddedTokenJson], config: Mapping[str, Any]) -> list[_AddedTokenJson]:
    """The added tokens, and those that only `tokenizer_config.json` has; its entries win."""
    by_id = {token.id: token for token in added}
    configured = config.get("added_tokens_decoder") or {}
    if not isinstance(configured, Mapping):
        raise ModelFileError("tokenizer_config.json: added_tokens_decoder is not a map from ids to tokens")
    for key, value in configured.items():
        try:
            token = msgspec.convert({**value, "id": int(key)}, _AddedTokenJson)
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            raise ModelFileError(f"tokenizer_config.json: added_tokens_decoder[{str(key)[:20]!r}]: {error}") from error
        by_id[token.id] = token
    return [by_id[token_id] for token_id in sorted(by_id)]


def _with_named(added: list[_AddedTokenJson], model: _ModelJson, named: Mapping[str, str]) -> list[_AddedTokenJson]:
    """The added tokens, and those of the vocabulary that are special only by being named."""
    known = {token.content for token in added}
    names = sorted({*named.values()} - known)
    ids = dict(model.vocab) if isinstance(model.vocab, dict) else {token: i for i, (token, _) in enumerate(model.vocab)}
    special = [
        _AddedTokenJson(id=ids[name], content=name, normalized=False, special=True) for name in names if name in ids
    ]
    return added + special


def _added_tokens(added: list[_AddedTokenJson], named: set[str]) -> tuple[AddedToken, ...]:
    return tuple(
        AddedToken(
            id=token.id,
            text=token.content,
            is_control=token.special or token.content in named,
            is_normalized=token.normalized,
            strips_left=token.lstrip,
            strips_right=token.rstrip,
            is_single_word=token.single_word,
        )
        for token in added
        if token.content
    )


def _vocabulary(model: _ModelJson, kind: str, added: list[_AddedTokenJson], named: set[str]) -> _Vocabulary:
    if isinstance(model.vocab, list):
        ids = {token: index for index, (token, _) in enumerate(model.vocab)}
        if len(ids) != len(model.vocab):
            raise refuse("model.vocab", "has a token twice")
    else:
        ids = dict(model.vocab)
    highest = max([*ids.values(), *(token.id for token in added)], default=-1)
    lowest = min([*ids.values(), *(token.id for token in added)], default=0)
    if lowest < 0 or not 0 <= highest < min(_MAX_TOKENS, 2 * (len(ids) + len(added)) + 1024):
        raise refuse("model.vocab", f"has {len(ids) + len(added)} tokens, but ids from {lowest} to {highest}")
    tokens = [""] * (highest + 1)
    kinds = bytearray(highest + 1)
    normal = int(TokenKind.NORMAL)
    for token, token_id in ids.items():
        if kinds[token_id]:
            raise refuse("model.vocab", f"gives id {token_id} to {tokens[token_id][:40]!r} and to {token[:40]!r}")
        tokens[token_id], kinds[token_id] = token, normal
    for each in added:
        known = ids.get(each.content)
        if known is not None and known != each.id:
            raise refuse("added_tokens", f"has {each.content[:40]!r} as {each.id}, the vocabulary has it as {known}")
        tokens[each.id] = each.content
        is_control = each.special or each.content in named
        kinds[each.id] = TokenKind.CONTROL if is_control else TokenKind.ADDED
    ids = {token: token_id for token_id, token in enumerate(tokens) if kinds[token_id]}
    scores = None
    if isinstance(model.vocab, list):
        scores = np.full(len(tokens), 0.0)
        scores[: len(model.vocab)] = [score for _, score in model.vocab]
    return _Vocabulary(
        tokens=tokens,
        kinds=np.frombuffer(kinds, dtype=np.uint8).copy(),
        ids=ids,
        scores=scores,
        merges=None if kind == "unigram" else list(model.merges or ()),
    )


def _mark_bytes(vocabulary: _Vocabulary) -> None:
    for byte in range(256):
        token_id = vocabulary.ids.get(f"<0x{byte:02X}>")
        if token_id is not None and vocabulary.kinds[token_id] == TokenKind.NORMAL:
            vocabulary.kinds[token_id] = TokenKind.BYTE


def _is_byte_level(steps: tuple[PreTokenizerStep, ...], decodes_bytes: bool) -> bool:
    is_byte_level = any(isinstance(step, ByteLevel) for step in steps)
    if is_byte_level != decodes_bytes:
        raise refuse("decoder", "and pre_tokenizer disagree on whether the vocabulary is byte-level")
    return is_byte_level


def _unknown_id(model: _ModelJson, vocabulary: _Vocabulary) -> int | None:
    if isinstance(model.vocab, list):
        return model.unk_id
    if model.unk_token is None:
        return None
    unknown = vocabulary.ids.get(model.unk_token)
    if unknown is None:
        raise refuse("model.unk_token", f"is {model.unk_token[:40]!r}, which is not in the vocabulary")
    return unknown


def _generation_eos(config: Mapping[str, Any] | None) -> set[int]:
    value = (config or {}).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(token_id, bool) or not isinstance(token_id, int) for token_id in ids):
        raise ModelFileError(f"generation_config.json: eos_token_id is {str(value)[:60]}; it must be one id or several")
    return set(ids)


def _ends(
    processor: Mapping[str, Any] | None,
    vocabulary: _Vocabulary,
    config: Mapping[str, Any],
    special: Mapping[str, int | None],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens before and after a text: the post-processor's, unless `tokenizer_config.json` says otherwise."""
    prefix, suffix = _template_ends(processor, vocabulary)
    bos_id, eos_id = special.get("bos_token"), special.get("eos_token")
    for key, token_id, ends in (("add_bos_token", bos_id, prefix), ("add_eos_token", eos_id, suffix)):
        said = config.get(key)
        if said is True and token_id is not None and token_id not in ends:
            ends.insert(0, token_id)
        elif said is False and token_id in ends:
            ends.remove(token_id)
    return tuple(prefix), tuple(suffix)


def _template_ends(processor: Mapping[str, Any] | None, vocabulary: _Vocabulary) -> tuple[list[int], list[int]]:
    ends: tuple[list[int], list[int]] = ([], [])
    kind = None if processor is None else processor.get("type")
    if processor is None or kind == "ByteLevel":
        return ends
    if kind == "Sequence":
        for each in processor.get("processors") or ():
            before, after = _template_ends(each, vocabulary)
            ends[0][:0] = before
            ends[1].extend(after)
        return ends
    if kind in ("BertProcessing", "RobertaProcessing"):
        try:
            return [int(processor["cls"][1])], [int(processor["sep"][1])]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise refuse("post_processor", "has no cls and sep tokens") from error
    if kind != "TemplateProcessing":
        raise refuse("post_processor.type", f"is {str(kind)[:40]!r}, which is not supported")
    side = 0
    for item in processor.get("single") or ():
        if "Sequence" in item:
            side = 1
            continue
        name = item.get("SpecialToken", {}).get("id")
        entry = (processor.get("special_tokens") or {}).get(name)
        ids = entry.get("ids") if isinstance(entry, Mapping) else [vocabulary.ids.get(name)]
        if not isinstance(ids, list) or not all(isinstance(token_id, int) for token_id in ids):
            raise refuse("post_processor.special_tokens", f"does not say what {str(name)[:40]!r} is")
        ends[side].extend(ids)
    return ends
