"""Each way of splitting against the reference implementation's."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings

from ridgeline.errors import ModelFileError
from ridgeline.text.gguf_families import FAMILIES
from ridgeline.text.hf_steps import pre_tokenizer_steps
from ridgeline.text.pre_tokenization import PreTokenizer, byte_alphabet
from ridgeline.text.spec import Split
from tests.pure.text import samples

BEHAVIORS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def made() -> dict[str, Any]:
    samples.tokenizers_library()
    from tokenizers import Regex, pre_tokenizers

    return {
        "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "digits": pre_tokenizers.Digits(individual_digits=True),
        "numbers": pre_tokenizers.Digits(individual_digits=False),
        "whitespace": pre_tokenizers.Whitespace(),
        "whitespace split": pre_tokenizers.WhitespaceSplit(),
        "bert": pre_tokenizers.BertPreTokenizer(),
        "delimiter": pre_tokenizers.CharDelimiterSplit("a"),
        "metaspace": pre_tokenizers.Metaspace(),
        "metaspace first": pre_tokenizers.Metaspace(prepend_scheme="first"),
        "metaspace whole": pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
        **{f"punctuation {each}": pre_tokenizers.Punctuation(each) for each in BEHAVIORS},
        **{f"split {each}": pre_tokenizers.Split(Regex(r"\s+|\d"), each) for each in BEHAVIORS},
        **{f"split {each}, inverted": pre_tokenizers.Split(Regex(r"\p{L}+"), each, invert=True) for each in BEHAVIORS},
        **{f"split string {each}": pre_tokenizers.Split("  ", each) for each in BEHAVIORS},
        "llama 3": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        "cased words": pre_tokenizers.Split(Regex(CASED_WORDS), "isolated"),
        "line ends": pre_tokenizers.Split(Regex(r"\s+$"), "isolated"),
        "sequence": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "falcon": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        ),
    }


def description_of(pre_tokenizer: Any) -> Any:
    return json.loads(pre_tokenizer.__getstate__())


def assert_same(reference: Any, text: str) -> None:
    description = description_of(reference)
    pieces = PreTokenizer(pre_tokenizer_steps(description)).pieces(text, is_start=True)
    expected = [piece for piece, _ in reference.pre_tokenize_str(text)] if text else []
    if "ByteLevel" in json.dumps(description):
        alphabet = byte_alphabet()
        written = [
            "".join(alphabet[byte] for byte in (piece if isinstance(piece, bytes) else piece.encode()))
            for piece in pieces
        ]
    else:
        written = [str(piece) for piece in pieces]
    assert written == expected, text


@pytest.mark.parametrize("name", sorted(made()))
def test_tricky_texts(name: str) -> None:
    for text in [*samples.TRICKY, *samples.CORPUS, *samples.random_texts(100)]:
        assert_same(made()[name], text)


@pytest.mark.parametrize("name", ["byte level", "llama 3", "cased words", "falcon", "bert", "split contiguous"])
@given(text=samples.PROSE)
@settings(max_examples=60, deadline=None)
def test_any_text(name: str, text: str) -> None:
    assert_same(made()[name], text)


def test_contractions_fold_case_alike() -> None:
    """Characters that fold to ASCII letters (long s, Kelvin sign) are where libraries part."""
    reference = made()["llama 3"]
    for character in map(chr, [*range(0x20, 0x250), 0x17F, 0x212A, 0xFB05, 0xFB06]):
        for text in (f"x'{character}y", f"x'l{character}y", f"x'{character}ly", f"x'r{character} "):
            assert_same(reference, text)


@pytest.mark.parametrize("name", sorted(filter(None, FAMILIES)))
def test_family_keeps_all_text(name: str) -> None:
    """Splitting loses nothing and invents nothing."""
    splitter = PreTokenizer(FAMILIES[name].pre_tokenizer)
    for text in [*samples.TRICKY, *samples.CORPUS, *samples.random_texts(50)]:
        pieces = splitter.pieces(text, is_start=True)
        whole = b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)
        assert whole == text.encode()
        assert all(pieces)


def written_out(pattern: str) -> str:
    """The pattern with its characters themselves instead of escapes, which the reference's engine lacks."""
    escape = re.compile(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
    return escape.sub(lambda match: chr(int(match[1] or match[2], 16)), pattern)


@pytest.mark.parametrize("name", sorted(filter(None, FAMILIES)))
def test_family_patterns_against_the_reference_engine(name: str) -> None:
    samples.tokenizers_library()
    from tokenizers import Regex, pre_tokenizers

    for step in FAMILIES[name].pre_tokenizer:
        if isinstance(step, Split):
            reference = pre_tokenizers.Split(Regex(written_out(step.pattern)), "isolated")
            splitter = PreTokenizer([step])
            for text in filter(None, [*samples.TRICKY, *samples.CORPUS, *samples.random_texts(50)]):
                expected = [piece for piece, _ in reference.pre_tokenize_str(text)]
                assert splitter.pieces(text, is_start=True) == expected, text


def test_kimi_pattern_says_the_same_as_the_published_one() -> None:
    """Published with an intersection of classes, which is written as a look-ahead here."""
    samples.tokenizers_library()
    from tokenizers import Regex, pre_tokenizers

    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
    ending = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    published = (
        rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{ending}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{ending}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    reference = pre_tokenizers.Split(Regex(published), "isolated")
    split, _ = FAMILIES["kimi-k2"].pre_tokenizer
    for text in filter(None, [*samples.TRICKY, *samples.CORPUS, *samples.random_texts(200)]):
        expected = [piece for piece, _ in reference.pre_tokenize_str(text)]
        assert PreTokenizer([split]).pieces(text, is_start=True) == expected, text


def test_pattern_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ridgeline.text.patterns._MIN_SECONDS", 0.1)
    splitter = PreTokenizer([Split(pattern=r"(?:x|xx)+[yz]", is_regex=True, behavior="isolated")])
    with pytest.raises(ModelFileError, match="takes too long"):
        splitter.pieces("x" * 60, is_start=True)


def test_pattern_that_is_none() -> None:
    with pytest.raises(ModelFileError, match="not a regular expression"):
        PreTokenizer([Split(pattern="(", is_regex=True, behavior="isolated")])
