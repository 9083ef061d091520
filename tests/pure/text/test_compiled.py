"""The compiled vocabulary: what was written comes back, and nothing else is believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import ModelFileError
from ridgeline.text.compiled import StaleVocabularyError, compile_vocabulary, read_vocabulary
from ridgeline.text.spec import TokenizerSpec, TokenizerTraits, TokenKind
from ridgeline.text.tokenizer import Tokenizer, cached_tokenizer

TOKENS = ["a", "b", "ab", "c", "<end>"]


def small_spec(**traits: object) -> TokenizerSpec:
    kinds = np.array([TokenKind.NORMAL] * 4 + [TokenKind.CONTROL], dtype=np.uint8)
    settled = TokenizerTraits(model="bpe", is_byte_level=False, eos_ids=(4,), **traits)  # type: ignore[arg-type]
    return TokenizerSpec(traits=settled, tokens=TOKENS, kinds=kinds, merges=["a b"])


def test_mapped_file_gives_the_same_tokens(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.bin"
    path.write_bytes(compile_vocabulary(small_spec()))
    tokenizer = Tokenizer.from_compiled(path)
    assert tokenizer.encode("abcab") == [2, 3, 2]
    assert tokenizer.decode([2, 4, 3], skip_special_tokens=False) == "ab<end>c"
    assert tokenizer.end_of_sequence_ids == {4}
    assert [tokenizer.token_id(token) for token in TOKENS] == [0, 1, 2, 3, 4]


def test_every_damaged_byte_is_noticed() -> None:
    content = compile_vocabulary(small_spec())
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        if damaged == content or 32 <= place < 64:  # the header's padding says nothing
            continue
        with pytest.raises(StaleVocabularyError):
            Tokenizer(read_vocabulary(bytes(damaged)))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 400, -1])
def test_cut_short(length: int, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.bin"
    path.write_bytes(compile_vocabulary(small_spec())[:length])
    with pytest.raises(StaleVocabularyError):
        Tokenizer.from_compiled(path)


def test_traits_of_another_time() -> None:
    vocabulary = read_vocabulary(compile_vocabulary(small_spec()))
    for traits in (b"{}", b"", b"\xff", b'{"model": "rnn", "is_byte_level": true}'):
        with pytest.raises(StaleVocabularyError, match="another version"):
            Tokenizer(replace(vocabulary, traits_json=np.frombuffer(traits, dtype=np.uint8)))


@given(content=st.binary(max_size=2000))
@settings(max_examples=100, deadline=None)
def test_anything_else_is_not_believed(content: bytes) -> None:
    with pytest.raises(StaleVocabularyError):
        read_vocabulary(content)


def test_cache_is_made_once_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "vocabulary.bin"
    calls: list[int] = []

    def read_spec() -> TokenizerSpec:
        calls.append(1)
        return small_spec()

    for _ in range(3):
        assert cached_tokenizer(path, read_spec).encode("ab") == [2]
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
    assert cached_tokenizer(path, read_spec).encode("ab") == [2]
    assert len(calls) == 2 and Tokenizer.from_compiled(path).encode("ab") == [2]
    assert list(path.parent.iterdir()) == [path]


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cached_tokenizer(tmp_path / "file" / "vocabulary.bin", small_spec).encode("ab") == [2]


@pytest.mark.parametrize(
    ("traits", "what"),
    [
        ({"bos_id": 5}, "bos"),
        ({"unknown_id": -1}, "unknown"),
        ({"prefix_ids": (9,)}, "prefix"),
        ({"suffix_ids": (9,)}, "suffix"),
        ({"pad_id": 1 << 40}, "padding"),
    ],
)
def test_ids_out_of_range(traits: dict[str, object], what: str) -> None:
    with pytest.raises(ModelFileError, match=what):
        compile_vocabulary(small_spec(**traits))
