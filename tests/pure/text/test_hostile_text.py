"""Texts made to be slow, or not to be text."""

from __future__ import annotations

import functools
import time

import pytest

from ridgeline.errors import RequestError
from ridgeline.text.gguf_families import FAMILIES
from ridgeline.text.normalization import Normalizer
from ridgeline.text.pre_tokenization import PreTokenizer
from ridgeline.text.spec import PreTokenizerStep, UnicodeForm
from ridgeline.text.tokenizer import Tokenizer
from tests.pure.text import samples
from tests.pure.text.test_tokenizer_oracle import ours

COUNT = 100_000
HOSTILE = {
    "one letter": "a" * COUNT,
    "one capital": "A" * COUNT,
    "two letters": "ab" * (COUNT // 2),
    "spaces": " " * COUNT,
    "spaces, letter": " " * COUNT + "a",
    "lines": "\n" * COUNT,
    "lines and spaces": " \n" * (COUNT // 2),
    "carriage returns": "\r" * COUNT + "x",
    "tabs": "\t " * (COUNT // 2) + "x",
    "signs": "=" * COUNT,
    "quotes": "'" * COUNT,
    "quoted letters": "'s" * (COUNT // 2),
    "digits": "1" * COUNT,
    "Han": "的" * COUNT,
    "letters and marks": "a\u0301" * (COUNT // 2),
    "marks": "\u0301" * COUNT,
    "marks out of order": "a" + "\u0301\u0327" * (COUNT // 2),
    "emoji": "😀" * COUNT,
    "half a special token": "<|en" * (COUNT // 4),
    "many special tokens": "<|end|>" * (COUNT // 7),
    "capital and small": "Aa" * (COUNT // 2),
    "words": "word " * (COUNT // 5),
    "slashes": "/" * COUNT,
    "nulls": "\x00" * COUNT,
}
# About a hundred times what it takes; quadratic time would be thousands of times.
ALLOWED_SECONDS = 5.0


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    makers = {
        "byte level": samples.byte_level,
        "one piece": lambda: samples.byte_level(use_regex=False),
        "llama": samples.llama_like,
        "unigram": lambda: samples.unigram(byte_fallback=True),
    }
    return ours(makers[kind]())


@pytest.mark.parametrize("kind", ["byte level", "one piece", "llama", "unigram"])
@pytest.mark.parametrize("name", HOSTILE)
def test_encoding_is_not_quadratic(kind: str, name: str) -> None:
    begin = time.thread_time()
    ids = tokenizer(kind).encode(HOSTILE[name])
    assert ids
    assert time.thread_time() - begin < ALLOWED_SECONDS


STEPS = {step for family in FAMILIES.values() for step in family.pre_tokenizer}


@pytest.mark.parametrize("step", sorted(STEPS, key=repr), ids=lambda step: repr(step)[:60])
def test_no_family_splits_in_quadratic_time(step: PreTokenizerStep) -> None:
    splitter = PreTokenizer([step])
    for name, text in HOSTILE.items():
        begin = time.thread_time()
        splitter.pieces(text[: COUNT // 2] + text[-1], is_start=True)
        assert time.thread_time() - begin < ALLOWED_SECONDS / 4, name


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalizing_is_not_quadratic(form: str) -> None:
    normalizer = Normalizer((UnicodeForm(form=form),))  # type: ignore[arg-type]
    for name in ("marks", "marks out of order", "letters and marks", "Han"):
        begin = time.thread_time()
        normalizer.normalized(HOSTILE[name])
        assert time.thread_time() - begin < ALLOWED_SECONDS, name


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_sorted_marks_normalize_alike(form: str) -> None:
    """The detour that long runs of marks take ends where the standard library's way ends."""
    import random
    import unicodedata

    draw = random.Random(1)
    marks = "\u0301\u0327\u0323\u0308\u0344\u0345\u05b0\u094d\u3099\u0f73\U0001d165\u20d0\u0489"
    normalizer = Normalizer((UnicodeForm(form=form),))  # type: ignore[arg-type]
    for _ in range(50):
        text = "".join(
            draw.choice(["a", "が", "क"]) + "".join(draw.choices(marks, k=draw.randint(60, 90))) for _ in "ab"
        )
        assert normalizer.normalized(text) == unicodedata.normalize(form, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "<|end|>\ud83d"])
def test_half_a_surrogate_pair_is_no_text(text: str) -> None:
    for kind in ("byte level", "llama"):
        with pytest.raises(RequestError, match="surrogate"):
            tokenizer(kind).encode(text)
    assert tokenizer("llama").token_id("\ud800") is None
