"""Text to tokens and back.

Knows: the order in which a tokenizer's steps are done, and how added tokens are cut out of text.
Does not know: file formats, chat formats, models.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import regex

from ridgeline.errors import RequestError
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.text import _native
from ridgeline.text.compiled import (
    CompiledVocabulary,
    StaleVocabularyError,
    compile_vocabulary,
    read_vocabulary,
    unknown_score,
)
from ridgeline.text.normalization import Normalizer
from ridgeline.text.pre_tokenization import PreTokenizer
from ridgeline.text.spec import AddedToken, TokenizerSpec, TokenizerTraits, TokenKind
from ridgeline.text.text_stream import TextStream
from ridgeline.text.token_bytes import TokenBytes

_WORD = regex.compile(r"\w")
_SPACES = regex.compile(r"\s*")


class Tokenizer:
    """Turns text into tokens as the model's makers did, and tokens into text.

    Holds: the compiled tables, usually views of a mapped file; nothing changes after it is made, but `encode` is for
    one thread at a time.
    """

    def __init__(self, vocabulary: CompiledVocabulary) -> None:
        """Raises StaleVocabularyError if the tables contradict each other."""
        traits = vocabulary.traits()
        self._traits = traits
        try:
            self._lookup = _native.TokenLookup(vocabulary.token_blob, vocabulary.token_offsets, vocabulary.token_slots)
            self._model = _model(vocabulary, traits)
            self._added = _native.StringSet(vocabulary.added_blob, vocabulary.added_offsets, vocabulary.added_ids)
            self._added_normalized = _native.StringSet(
                vocabulary.normalized_blob, vocabulary.normalized_offsets, vocabulary.normalized_ids
            )
        except ValueError as error:
            raise StaleVocabularyError(f"the compiled vocabulary is damaged: {error}") from error
        self._added_tokens = {token.id: token for token in traits.added_tokens}
        self._normalizer = Normalizer(traits.normalizer)
        self._pre_tokenizer = PreTokenizer(traits.pre_tokenizer)
        self.token_bytes_table = TokenBytes(
            blob=vocabulary.byte_blob,
            offsets=vocabulary.byte_offsets,
            is_special=(vocabulary.kinds == TokenKind.CONTROL) | (vocabulary.kinds == TokenKind.UNKNOWN),
            leading_space=traits.leading_space,
        )
        self.end_of_sequence_ids = frozenset(traits.eos_ids)
        """Every token that ends an answer."""

    @classmethod
    def from_spec(cls, spec: TokenizerSpec) -> Tokenizer:
        """The tokenizer of this description; ModelFileError if that contradicts itself."""
        return cls(read_vocabulary(compile_vocabulary(spec)))

    @classmethod
    def from_compiled(cls, path: Path) -> Tokenizer:
        """The tokenizer of a compiled vocabulary, mapped.

        Raises:
            StaleVocabularyError: the file is damaged or of another version.
            OSError: there is no such file.
        """
        with path.open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise StaleVocabularyError("the compiled vocabulary is empty") from error
        return cls(read_vocabulary(memoryview(mapped)))

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary; ids are below it."""
        return len(self.token_bytes_table)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        return self._traits.bos_id

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, if the model has one; `end_of_sequence_ids` has all that end an answer."""
        return self._traits.eos_id

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills unused places, if the model has one."""
        return self._traits.pad_id

    @property
    def prefix_token_ids(self) -> tuple[int, ...]:
        """What `add_special_tokens` puts before a text."""
        return self._traits.prefix_ids

    def token_id(self, token: str) -> int | None:
        """The id of the token that the model file writes so, or None."""
        try:
            found = self._lookup.find(token)
        except UnicodeEncodeError:
            return None
        return None if found < 0 else found

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes as they appear in text; RequestError if there is no such token."""
        return self.token_bytes_table.bytes_of(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is no text; RequestError if there is no such token."""
        self.token_bytes_table.check(token_id)
        return bool(self.token_bytes_table.is_special[token_id])

    def encode(
        self, text: str, *, add_special_tokens: bool = False, parse_special: bool = True, plain_mark: str = ""
    ) -> list[int]:
        """The tokens of a text.

        Args:
            text: any text, hostile or not; the cost is linear in its length.
            add_special_tokens: begin (and end) as the model wants texts to begin (and end).
            parse_special: control tokens written out in the text become those tokens. If not, they are plain text like
                any other, and no control token comes out: for text that a stranger wrote.
            plain_mark: the character that `with_marks` was given; it is taken out after control tokens were found.

        Raises:
            RequestError: the text has half a surrogate pair, which is no character.
        """
        ids: list[int] = []
        try:
            for part, start in self._cut(text, self._added, parse_special):
                if isinstance(part, int):
                    ids.append(part)
                else:
                    is_plain = not parse_special
                    if plain_mark and plain_mark in part:
                        part, is_plain = part.replace(plain_mark, ""), True
                    self._encode_segment(part, start == 0, not is_plain, ids)
        except UnicodeEncodeError as error:
            raise _half_pair(error) from error
        return [*self._traits.prefix_ids, *ids, *self._traits.suffix_ids] if add_special_tokens else ids

    def with_marks(self, text: str, mark: str) -> str:
        """The text with `mark` inside whatever would become a control token, so that it becomes none.

        RequestError if the text has half a surrogate pair.
        """
        try:
            while True:
                found = [
                    start for start, _, token_id in self._added.find_in(text) if self._added_tokens[token_id].is_control
                ]
                if not found:
                    return text
                # Breaking one token may bare another that it overlapped, hence again.
                parts = [text[start:end] for start, end in pairwise([0, *(start + 1 for start in found), len(text)])]
                text = mark.join(parts)
        except UnicodeEncodeError as error:
            raise _half_pair(error) from error

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD. RequestError if there is no such token."""
        return self.token_bytes_table.text_of(token_ids, skip_special_tokens=skip_special_tokens)

    def sample_text(self, sampling: SamplingParams) -> TextStream:
        """A new stream for the text of one sample that is drawn so."""
        return TextStream(
            self.token_bytes_table,
            stop=sampling.stop,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
            skip_special_tokens=sampling.skip_special_tokens,
            min_tokens=sampling.min_tokens,
        )

    def _encode_segment(self, segment: str, is_start: bool, parse_special: bool, ids: list[int]) -> None:
        segment = self._normalizer.normalized(segment)
        for part, start in self._cut(segment, self._added_normalized, parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                pieces = self._pre_tokenizer.pieces(part, is_start=is_start and start == 0)
                ids += self._model.encode(pieces)

    def _cut(self, text: str, added: _native.StringSet, parse_special: bool) -> Iterator[tuple[int | str, int]]:
        """The text with its added tokens cut out: (token or text between, where it starts)."""
        position = 0
        for start, end, token_id in added.find_in(text):
            token = self._added_tokens[token_id]
            if token.is_control and not parse_special:
                continue
            if token.is_single_word and _touches_word(text, start, end):
                continue
            start, end = _stretched(token, text, position, start, end)
            if start >= end:
                continue  # white space that the token before has swallowed
            if position < start:
                yield text[position:start], position
            yield token_id, start
            position = end
        if position < len(text):
            yield text[position:], position


def cached_tokenizer(path: Path, read_spec: Callable[[], TokenizerSpec]) -> Tokenizer:
    """The tokenizer whose compiled vocabulary lies at `path`; if none does, or not a sound one, it is put there.

    `read_spec` is called only then. A folder that cannot be written to costs time, not the tokenizer.

    Raises:
        ModelFileError: from `read_spec`, or the description contradicts itself.
    """
    try:
        return Tokenizer.from_compiled(path)
    except (StaleVocabularyError, OSError):
        pass
    content = compile_vocabulary(read_spec())
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A reader sees the old file or the whole new one, never half: written beside it, then renamed.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            partial = Path(file.name)
            file.write(content)
        os.replace(partial, path)
    except OSError:
        if partial is not None:
            partial.unlink(missing_ok=True)
        return Tokenizer(read_vocabulary(content))
    return Tokenizer.from_compiled(path)


def _half_pair(error: UnicodeEncodeError) -> RequestError:
    return RequestError(
        f"the text has half a surrogate pair at character {error.start}, which is not Unicode",
        hint="decode the text as UTF-16 or replace what could not be decoded",
    )


def _touches_word(text: str, start: int, end: int) -> bool:
    before = start > 0 and _WORD.match(text, start - 1) is not None
    return before or (end < len(text) and _WORD.match(text, end) is not None)


def _stretched(token: AddedToken, text: str, position: int, start: int, end: int) -> tuple[int, int]:
    """Where the token begins and ends with the white space that it swallows; not before `position`."""
    if token.strips_left:
        while start > position and _SPACES.fullmatch(text, start - 1, start):
            start -= 1
        start = max(start, position)
    if token.strips_right:
        match = _SPACES.match(text, end)
        assert match is not None
        end = match.end()
    return start, end


def _model(
    vocabulary: CompiledVocabulary, traits: TokenizerTraits
) -> _native.BpeVocabulary | _native.UnigramVocabulary:
    unknown_id = -1 if traits.unknown_id is None else traits.unknown_id
    if traits.model == "unigram":
        return _native.UnigramVocabulary(
            pieces=_native.StringSet(vocabulary.piece_blob, vocabulary.piece_offsets, vocabulary.piece_ids),
            scores=vocabulary.scores,
            byte_ids=vocabulary.byte_ids,
            unknown_id=unknown_id,
            unknown_score=unknown_score(vocabulary.scores),
            has_byte_fallback=traits.has_byte_fallback,
        )
    return _native.BpeVocabulary(
        blob=vocabulary.token_blob,
        offsets=vocabulary.token_offsets,
        token_slots=vocabulary.token_slots,
        merge_slots=vocabulary.merge_slots,
        may_merge=vocabulary.may_merge,
        byte_ids=vocabulary.byte_ids,
        unknown_id=unknown_id,
        is_byte_level=traits.is_byte_level,
        has_byte_fallback=traits.has_byte_fallback,
        fuses_unknown=traits.fuses_unknown,
        ignores_merges=traits.ignores_merges,
    )
