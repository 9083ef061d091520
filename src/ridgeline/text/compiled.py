"""A vocabulary in one flat file that is mapped, not read: look-up tables are built once, when it is written.

    | header, 64 bytes | table of sections | section | section | ...     each at a multiple of 64 bytes, little-endian

The header holds a magic, the format's version, the file's length and a checksum of all that follows the header. A file
that is of another version, cut short or damaged raises `StaleVocabularyError`; it is made anew and never trusted.

Knows: how the tables lie. Does not know: what a step does, or where the file is kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.errors import ModelFileError, RidgelineError
from ridgeline.text import _native
from ridgeline.text.normalization import Normalizer
from ridgeline.text.pre_tokenization import byte_alphabet
from ridgeline.text.spec import NO_TOKEN, TokenizerSpec, TokenizerTraits, TokenKind

MAGIC = b"RIDGEVOC"
VERSION = 1
"""Raise it whenever a section, a hash function or the meaning of a trait changes."""
MAX_TOKENS = 1 << 24
MAX_TOKEN_BYTES = 1 << 16
MAX_VOCABULARY_BYTES = 1 << 30
# Added tokens and Unigram pieces are searched at every place of a text: their length multiplies the time that takes.
MAX_SEARCHED_BYTES = 1 << 10

_HEADER = struct.Struct("<8sIIQQ32x")
_SECTION = struct.Struct("<QQ")
_ALIGNMENT = 64
# HF's Unigram gives a character that no piece covers the lowest score less this (SentencePiece, unigram_model.cc).
_UNKNOWN_PENALTY = 10.0


class StaleVocabularyError(RidgelineError):
    """A compiled vocabulary is not what this version of Ridgeline wrote; compile it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledVocabulary:
    """The tables, as they lie in the file; the arrays are views of it.

    `*_blob`, `*_offsets`: strings one after the other, and where each begins. `*_ids`: what each string stands for.
    """

    token_blob: npt.NDArray[np.uint8]
    """The tokens as the model file writes them, UTF-8."""
    token_offsets: npt.NDArray[np.uint32]
    byte_blob: npt.NDArray[np.uint8]
    """The tokens as they appear in text."""
    byte_offsets: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]
    may_merge: npt.NDArray[np.uint8]
    """Whether plain text may become this token."""
    byte_ids: npt.NDArray[np.uint32]
    token_slots: npt.NDArray[np.uint32]
    merge_slots: npt.NDArray[np.uint32]
    """"bpe" only."""
    piece_blob: npt.NDArray[np.uint8]
    """"unigram" only, sorted."""
    piece_offsets: npt.NDArray[np.uint32]
    piece_ids: npt.NDArray[np.uint32]
    scores: npt.NDArray[np.float64]
    added_blob: npt.NDArray[np.uint8]
    """Added tokens that are looked for in the text as it came, sorted."""
    added_offsets: npt.NDArray[np.uint32]
    added_ids: npt.NDArray[np.uint32]
    normalized_blob: npt.NDArray[np.uint8]
    """Added tokens that are looked for in normalized text, themselves normalized, sorted."""
    normalized_offsets: npt.NDArray[np.uint32]
    normalized_ids: npt.NDArray[np.uint32]
    traits_json: npt.NDArray[np.uint8]

    def traits(self) -> TokenizerTraits:
        """Everything but the tables. StaleVocabularyError if they are not as this version writes them."""
        try:
            return msgspec.json.decode(self.traits_json.tobytes(), type=TokenizerTraits)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StaleVocabularyError(f"the compiled vocabulary is of another version: {error}") from error


_DTYPES = {
    "kinds": np.uint8,
    "may_merge": np.uint8,
    "byte_offsets": np.int32,
    "scores": np.float64,
    "traits_json": np.uint8,
}


def _dtype(name: str) -> npt.DTypeLike:
    return _DTYPES.get(name, np.uint8 if name.endswith("_blob") else np.uint32)


_SECTIONS = tuple((field.name, np.dtype(_dtype(field.name))) for field in fields(CompiledVocabulary))


def compile_vocabulary(spec: TokenizerSpec) -> bytes:
    """The whole file for this tokenizer.

    Raises:
        ModelFileError: the description contradicts itself (duplicate tokens, merges of tokens that do not exist,
            lengths that differ, ids out of range).
    """
    _check_lengths(spec)
    traits = spec.traits
    kinds = np.asarray(spec.kinds, dtype=np.uint8)
    may_merge = np.isin(kinds, (TokenKind.NORMAL, TokenKind.ADDED)).astype(np.uint8)
    is_present = (kinds != TokenKind.ABSENT).astype(np.uint8)
    try:
        token_blob, token_offsets = _packed([token.encode() for token in spec.tokens])
        token_slots = _native.token_slots(token_blob, token_offsets, is_present)
        merge_slots = _merge_slots(spec, token_blob, token_offsets, token_slots, may_merge)
    except (ValueError, UnicodeEncodeError) as error:
        raise ModelFileError(f"tokenizer: {error}", hint=_DAMAGED_HINT) from error
    byte_blob, byte_offsets = _bytes_of_tokens(spec, token_blob, token_offsets)
    pieces = _pieces(spec) if traits.model == "unigram" else {}
    piece_blob, piece_offsets, piece_ids = _string_set(pieces)
    raw = {token.text: token.id for token in traits.added_tokens if not token.is_normalized}
    normalized = _normalized_added(traits)
    added_blob, added_offsets, added_ids = _string_set(raw)
    normalized_blob, normalized_offsets, normalized_ids = _string_set(normalized)
    vocabulary = CompiledVocabulary(
        token_blob=token_blob,
        token_offsets=token_offsets,
        byte_blob=byte_blob,
        byte_offsets=byte_offsets,
        kinds=kinds,
        may_merge=may_merge,
        byte_ids=_byte_ids(traits, _native.TokenLookup(token_blob, token_offsets, token_slots)),
        token_slots=token_slots,
        merge_slots=merge_slots,
        piece_blob=piece_blob,
        piece_offsets=piece_offsets,
        piece_ids=piece_ids,
        scores=np.zeros(0) if traits.model == "bpe" or spec.scores is None else spec.scores.astype(np.float64),
        added_blob=added_blob,
        added_offsets=added_offsets,
        added_ids=added_ids,
        normalized_blob=normalized_blob,
        normalized_offsets=normalized_offsets,
        normalized_ids=normalized_ids,
        traits_json=np.frombuffer(msgspec.json.encode(traits), dtype=np.uint8),
    )
    return _written(vocabulary)


def read_vocabulary(buffer: bytes | memoryview) -> CompiledVocabulary:
    """The tables in a file's bytes, checked; the arrays keep the buffer alive.

    Raises:
        StaleVocabularyError: wrong magic, version, length or checksum.
    """
    data = np.frombuffer(buffer, dtype=np.uint8)
    start = _HEADER.size + len(_SECTIONS) * _SECTION.size
    if len(data) < start:
        raise StaleVocabularyError("the compiled vocabulary is cut short")
    magic, version, num_sections, num_bytes, checksum = _HEADER.unpack_from(buffer)
    if magic != MAGIC or version != VERSION or num_sections != len(_SECTIONS):
        raise StaleVocabularyError("the compiled vocabulary is of another version")
    if num_bytes != len(data) or checksum != _native.checksum(data[_HEADER.size :]):
        raise StaleVocabularyError("the compiled vocabulary is damaged")
    arrays: dict[str, Any] = {}
    for index, (name, dtype) in enumerate(_SECTIONS):
        offset, length = _SECTION.unpack_from(buffer, _HEADER.size + index * _SECTION.size)
        arrays[name] = data[offset : offset + length].view(dtype)
    return CompiledVocabulary(**arrays)


_DAMAGED_HINT = "the model file is damaged or was converted wrongly; fetch it again"


def _written(vocabulary: CompiledVocabulary) -> bytes:
    place = _HEADER.size + len(_SECTIONS) * _SECTION.size
    table = []
    body = []
    for name, dtype in _SECTIONS:
        content = np.ascontiguousarray(getattr(vocabulary, name), dtype=dtype).tobytes()
        padding = -place % _ALIGNMENT
        table.append(_SECTION.pack(place + padding, len(content)))
        body += [b"\0" * padding, content]
        place += padding + len(content)
    payload = b"".join(table + body)
    checksum = _native.checksum(np.frombuffer(payload, dtype=np.uint8))
    return _HEADER.pack(MAGIC, VERSION, len(_SECTIONS), _HEADER.size + len(payload), checksum) + payload


def _packed(strings: list[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    ends = np.cumsum(np.fromiter(map(len, strings), dtype=np.int64, count=len(strings)))
    return np.frombuffer(b"".join(strings), dtype=np.uint8), np.concatenate([[0], ends]).astype(np.uint32)


def _string_set(
    ids: dict[str, int],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    members = sorted((text.encode(), token_id) for text, token_id in ids.items() if text)
    blob, offsets = _packed([text for text, _ in members])
    return blob, offsets, np.array([token_id for _, token_id in members], dtype=np.uint32)


def _normalized_added(traits: TokenizerTraits) -> dict[str, int]:
    normalizer = Normalizer(traits.normalizer)
    return {normalizer.normalized(token.text): token.id for token in traits.added_tokens if token.is_normalized}


def _pieces(spec: TokenizerSpec) -> dict[str, int]:
    usable = (TokenKind.NORMAL, TokenKind.ADDED, TokenKind.BYTE)
    pieces = {token: token_id for token_id, token in enumerate(spec.tokens) if spec.kinds[token_id] in usable}
    _check_searched(pieces, "a piece of the vocabulary")
    return pieces


def _merge_slots(
    spec: TokenizerSpec,
    blob: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.uint32],
    slots: npt.NDArray[np.uint32],
    may_merge: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint32]:
    if spec.traits.model != "bpe":
        return np.zeros(0, dtype=np.uint32)
    if spec.merges is not None:
        return _native.merge_slots(blob, offsets, slots, may_merge, list(spec.merges))
    assert spec.scores is not None
    return _native.score_merge_slots(blob, offsets, slots, may_merge, spec.scores.astype(np.float64))


def _byte_ids(traits: TokenizerTraits, lookup: _native.TokenLookup) -> npt.NDArray[np.uint32]:
    """The token of each byte, `NO_TOKEN` where there is none."""
    if traits.is_byte_level:
        found = [lookup.find(character) for character in byte_alphabet()]
    elif traits.has_byte_fallback:
        found = [lookup.find(f"<0x{byte:02X}>") for byte in range(256)]
    else:
        found = [-1] * 256
    return np.array([NO_TOKEN if token_id < 0 else token_id for token_id in found], dtype=np.uint32)


def _bytes_of_tokens(
    spec: TokenizerSpec, blob: npt.NDArray[np.uint8], offsets: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    kinds = spec.kinds
    if spec.traits.is_byte_level:
        is_literal = np.isin(kinds, (TokenKind.CONTROL, TokenKind.ADDED, TokenKind.UNKNOWN)).astype(np.uint8)
        decoded, ends = _native.bytes_of_alphabet(blob, offsets, is_literal)
        return np.frombuffer(decoded, dtype=np.uint8), ends
    mark = spec.traits.space_mark
    texts = []
    for token_id, token in enumerate(spec.tokens):
        kind = kinds[token_id]
        if kind == TokenKind.BYTE:
            texts.append(bytes([byte_of_token(token, token_id)]))
        elif kind == TokenKind.CONTROL or not mark:
            texts.append(token.encode())
        else:
            texts.append(token.replace(mark, " ").encode())
    packed, starts = _packed(texts)
    return packed, starts.astype(np.int32)


def byte_of_token(token: str, token_id: int) -> int:
    """The byte that a token such as "<0x0A>" stands for.

    Raises:
        ModelFileError: it is not of that form.
    """
    digits = token[3:5]
    is_hex = len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits)
    if len(token) != 6 or not token.startswith("<0x") or token[5] != ">" or not is_hex:
        raise ModelFileError(
            f"tokenizer: token {token_id} is said to be a byte, but is {token[:40]!r}; bytes are <0x00> to <0xFF>",
            hint=_DAMAGED_HINT,
        )
    return int(digits, 16)


def _check_searched(texts: dict[str, int], what: str) -> None:
    for text, token_id in texts.items():
        num_bytes = len(text.encode())
        if num_bytes > MAX_SEARCHED_BYTES:
            raise ModelFileError(
                f"tokenizer: {what} (id {token_id}) is {num_bytes} bytes long; at most {MAX_SEARCHED_BYTES} work",
                hint=_DAMAGED_HINT,
            )


def _check_lengths(spec: TokenizerSpec) -> None:
    num_tokens = len(spec.tokens)
    if not 0 < num_tokens <= MAX_TOKENS:
        raise ModelFileError(f"tokenizer: {num_tokens} tokens; a vocabulary has 1 to {MAX_TOKENS}", hint=_DAMAGED_HINT)
    if len(spec.kinds) != num_tokens or (spec.scores is not None and len(spec.scores) != num_tokens):
        raise ModelFileError("tokenizer: token types or scores are not as many as tokens", hint=_DAMAGED_HINT)
    if spec.scores is not None and not np.isfinite(spec.scores).all():
        raise ModelFileError("tokenizer: scores are not all finite numbers", hint=_DAMAGED_HINT)
    longest = max(map(len, spec.tokens))
    if longest > MAX_TOKEN_BYTES or sum(map(len, spec.tokens)) > MAX_VOCABULARY_BYTES // 4:
        raise ModelFileError(
            f"tokenizer: the longest token has {longest} characters; {MAX_TOKEN_BYTES} are allowed", hint=_DAMAGED_HINT
        )
    _check_searched({token.text: token.id for token in spec.traits.added_tokens}, "an added token")
    _check_ids(spec.traits, num_tokens)


def _check_ids(traits: TokenizerTraits, num_tokens: int) -> None:
    named: list[tuple[str, int | None]] = [
        ("unknown", traits.unknown_id),
        ("bos", traits.bos_id),
        ("eos", traits.eos_id),
        ("padding", traits.pad_id),
        *(("end", token_id) for token_id in traits.eos_ids),
        *(("prefix", token_id) for token_id in traits.prefix_ids),
        *(("suffix", token_id) for token_id in traits.suffix_ids),
        *(("added", token.id) for token in traits.added_tokens),
    ]
    for what, token_id in named:
        if token_id is not None and not 0 <= token_id < num_tokens:
            raise ModelFileError(
                f"tokenizer: the {what} token is {token_id}, but ids go from 0 to {num_tokens - 1}", hint=_DAMAGED_HINT
            )


def unknown_score(scores: npt.NDArray[np.float64]) -> float:
    """The score of a character that no piece covers."""
    return float(scores.min()) - _UNKNOWN_PENALTY if len(scores) else 0.0
