"""Splitting text into the pieces that the model segments one by one.

Knows: what each pre-tokenizer step does. Does not know: tokens, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ridgeline.text.gguf_families import GPT2_PATTERN, LINEAR_PATTERNS, PUNCTUATION_PATTERN
from ridgeline.text.patterns import Pattern
from ridgeline.text.spec import (
    ByteLevel,
    Digits,
    FixedLength,
    Metaspace,
    PreTokenizerStep,
    Punctuation,
    Split,
)

Pieces = list[str]
Splitting = Callable[[Pieces, bool], Pieces]


def _parts(pattern: Pattern, text: str, inverted: bool) -> list[tuple[str, bool]]:
    """The text cut at every match: (part, whether it counts as a match)."""
    parts = []
    position = 0
    for start, end in pattern.spans(text):
        if start > position:
            parts.append((text[position:start], inverted))
        if end > start:
            parts.append((text[start:end], not inverted))
        position = max(position, end)
    if position < len(text):
        parts.append((text[position:], inverted))
    return parts


def _joined_to_neighbour(parts: Iterable[tuple[str, bool]], *, forwards: bool) -> Pieces:
    """Pieces in the order walked; a match after a part that is none is joined to it."""
    pieces: Pieces = []
    after_match = False
    for part, is_match in parts:
        if is_match and not after_match and pieces:
            pieces[-1] = pieces[-1] + part if forwards else part + pieces[-1]
        else:
            pieces.append(part)
        after_match = is_match
    return pieces


def _contiguous(parts: Iterable[tuple[str, bool]]) -> Pieces:
    pieces: list[list[str]] = []
    last: bool | None = None
    for part, is_match in parts:
        if is_match is last:
            pieces[-1].append(part)
        else:
            pieces.append([part])
        last = is_match
    return ["".join(piece) for piece in pieces]


def _split_one(pattern: Pattern, step: Split, text: str) -> Pieces:
    if step.behavior == "isolated":
        if not pattern.has_groups:
            # Most patterns match everything, and then one call does it all.
            found = pattern.strings(text)
            if sum(map(len, found)) == len(text):
                return list(filter(None, found))
        return [part for part, _ in _parts(pattern, text, step.inverted)]
    parts = _parts(pattern, text, step.inverted)
    if step.behavior == "removed":
        return [part for part, is_match in parts if not is_match]
    if step.behavior == "contiguous":
        return _contiguous(parts)
    if step.behavior == "merged_with_previous":
        return _joined_to_neighbour(parts, forwards=True)
    return _joined_to_neighbour(reversed(parts), forwards=False)[::-1]


def _splitting_of_pattern(step: Split, where: str) -> Splitting:
    if not step.pattern:
        return lambda pieces, is_start: pieces
    is_linear = step.pattern in LINEAR_PATTERNS
    pattern = Pattern(step.pattern, is_regex=step.is_regex, is_linear=is_linear, where=where)
    return lambda pieces, is_start: [part for piece in pieces for part in _split_one(pattern, step, piece)]


def _byte_level(step: ByteLevel, *, is_last: bool) -> Splitting:
    split = _splitting_of_pattern(Split(pattern=GPT2_PATTERN, is_regex=True, behavior="isolated"), "ByteLevel")
    alphabet = byte_alphabet()

    def splitting(pieces: Pieces, is_start: bool) -> Pieces:
        if step.adds_prefix_space:
            pieces = [piece if piece.startswith(" ") else " " + piece for piece in pieces]
        if step.splits:
            pieces = split(pieces, is_start)
        if not is_last:  # what comes after sees the alphabet, so it must be written out
            pieces = ["".join([alphabet[byte] for byte in piece.encode()]) for piece in pieces]
        return pieces

    return splitting


def _metaspace(step: Metaspace) -> Splitting:
    split = _splitting_of_pattern(Split(pattern=step.mark, is_regex=False, behavior="merged_with_next"), "Metaspace")

    def splitting(pieces: Pieces, is_start: bool) -> Pieces:
        marked = []
        for index, piece in enumerate(pieces):
            piece = piece.replace(" ", step.mark)
            prepends = step.prepends == "always" or (step.prepends == "first" and is_start and index == 0)
            marked.append(step.mark + piece if prepends and not piece.startswith(step.mark) else piece)
        return split(marked, is_start) if step.splits else marked

    return splitting


def _splitting(step: PreTokenizerStep, *, is_last: bool) -> Splitting:
    match step:
        case Split():
            return _splitting_of_pattern(step, "pre_tokenizer")
        case Digits():
            pattern = r"\p{N}" if step.single else r"\p{N}+"
            return _splitting_of_pattern(Split(pattern=pattern, is_regex=True, behavior="isolated"), "Digits")
        case Punctuation():
            split = Split(pattern=PUNCTUATION_PATTERN, is_regex=True, behavior=step.behavior)
            return _splitting_of_pattern(split, "Punctuation")
        case ByteLevel():
            return _byte_level(step, is_last=is_last)
        case Metaspace():
            return _metaspace(step)
        case FixedLength():
            size = step.num_characters
            return lambda pieces, is_start: [
                piece[at : at + size] for piece in pieces for at in range(0, len(piece), size)
            ]


class PreTokenizer:
    """Splits normalized text into the pieces that the model segments one by one. Holds: compiled patterns."""

    def __init__(self, steps: Sequence[PreTokenizerStep]) -> None:
        self._splittings = [_splitting(step, is_last=index == len(steps) - 1) for index, step in enumerate(steps)]
        places = [index for index, step in enumerate(steps) if isinstance(step, ByteLevel)]
        self._leaves_alphabet = bool(places) and places[0] < len(steps) - 1
        self._byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}

    def pieces(self, text: str, *, is_start: bool) -> list[str] | list[bytes]:
        """The pieces, none empty; `is_start` says that the text is where the whole text begins.

        Pieces are bytes where a step after the byte-level one may have cut a character apart.
        """
        pieces = [text] if text else []
        for splitting in self._splittings:
            pieces = splitting(pieces, is_start)
        if self._leaves_alphabet:
            return [bytes([self._byte_of[character] for character in piece]) for piece in pieces]
        return pieces


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2)."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]
