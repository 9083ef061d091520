"""Token for token what the reference implementation gives, for small tokenizers of every kind."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings

from ridgeline.text.hf_tokenizer import spec_of_tokenizer_json
from ridgeline.text.tokenizer import Tokenizer
from tests.pure.text import samples

KINDS = {
    "byte level": samples.byte_level,
    "byte level, space first": lambda: samples.byte_level(add_prefix_space=True),
    "byte level, no pattern": lambda: samples.byte_level(use_regex=False),
    "llama": samples.llama_like,
    "metaspace always": samples.metaspace,
    "metaspace first": lambda: samples.metaspace("first"),
    "metaspace never": lambda: samples.metaspace("never"),
    "metaspace whole": lambda: samples.metaspace("first", split=False),
    "unigram": samples.unigram,
    "unigram bytes": lambda: samples.unigram(byte_fallback=True),
}

CONTROLS = ("<s>", "</s>", "<unk>", "<|end|>")


@functools.cache
def pair(kind: str) -> tuple[Any, Tokenizer]:
    reference = KINDS[kind]()
    return reference, ours(reference)


def ours(reference: Any) -> Tokenizer:
    return Tokenizer.from_spec(spec_of_tokenizer_json(reference.to_str().encode()))


def assert_same(reference: Any, tokenizer: Tokenizer, text: str) -> None:
    for adds in (False, True):
        expected = reference.encode(text, add_special_tokens=adds).ids
        assert tokenizer.encode(text, add_special_tokens=adds) == expected, text
    if "Unigram" in type(reference.model).__name__ and any(control in text for control in CONTROLS):
        return  # the reference's Unigram finds control tokens even so; ours never does, which a test of its own holds
    reference.encode_special_tokens = True
    try:
        expected = reference.encode(text, add_special_tokens=False).ids
    finally:
        reference.encode_special_tokens = False
    assert tokenizer.encode(text, parse_special=False) == expected, text


def assert_same_text(reference: Any, tokenizer: Tokenizer, ids: list[int]) -> None:
    for skips in (False, True):
        expected = reference.decode(ids, skip_special_tokens=skips)
        assert tokenizer.decode(ids, skip_special_tokens=skips) == expected, ids


@pytest.mark.parametrize("kind", KINDS)
def test_tricky_texts(kind: str) -> None:
    reference, tokenizer = pair(kind)
    for text in [*samples.TRICKY, *samples.CORPUS, *samples.random_texts(300)]:
        assert_same(reference, tokenizer, text)
        assert_same_text(reference, tokenizer, reference.encode(text).ids)


@pytest.mark.parametrize("kind", KINDS)
@given(text=samples.PROSE)
@settings(max_examples=60, deadline=None)
def test_any_text(kind: str, text: str) -> None:
    reference, tokenizer = pair(kind)
    assert_same(reference, tokenizer, text)


@pytest.mark.parametrize("kind", ["byte level", "llama"])
def test_any_text_comes_back(kind: str) -> None:
    _, tokenizer = pair(kind)
    for text in [*samples.TRICKY, *samples.random_texts(300)]:
        if "\u2581" not in text and "<" not in text:  # the mark is read back as a space, special tokens are left out
            assert tokenizer.decode(tokenizer.encode(text)) == text


FLAGS = [
    {"lstrip": True},
    {"rstrip": True},
    {"lstrip": True, "rstrip": True},
    {"single_word": True},
    {"normalized": False},
    {"normalized": True},
    {"normalized": True, "lstrip": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", ["byte level", "llama", "metaspace first"])
def test_added_tokens(kind: str, flags: dict[str, bool]) -> None:
    from tokenizers import AddedToken

    reference = KINDS[kind]()
    reference.add_tokens([AddedToken("<mark>", **flags), AddedToken("mark>x", **flags), AddedToken("  ", **flags)])
    reference.add_special_tokens([AddedToken("[STOP]", **flags)])
    tokenizer = ours(reference)
    texts = [
        *samples.TRICKY,
        "a<mark>b",
        "a <mark> b",
        "<mark>x",
        "x[STOP]y",
        "  [STOP]  z",
        "a    b",
        "_<mark>_",
        "é<mark>",
    ]
    for text in [*texts, *("".join(each) for each in zip(texts, reversed(texts)))]:
        assert_same(reference, tokenizer, text)


def test_ignored_merges() -> None:
    import json

    reference = samples.byte_level()
    description = json.loads(reference.to_str())
    description["model"]["ignore_merges"] = True
    unreachable = max(description["model"]["vocab"].values()) + 1
    description["model"]["vocab"]["Ġlazyx"] = unreachable
    reference = samples.tokenizers_library().Tokenizer.from_str(json.dumps(description))
    tokenizer = ours(reference)
    assert unreachable in tokenizer.encode("a lazyx")
    for text in [*samples.TRICKY, *samples.CORPUS, " lazyx lazyx"]:
        assert_same(reference, tokenizer, text)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"])
def test_normalizers(form: str) -> None:
    from tokenizers import normalizers

    reference = samples.byte_level()
    reference.normalizer = getattr(normalizers, form)()
    tokenizer = ours(reference)
    for text in [*samples.TRICKY, *samples.CORPUS]:
        assert_same(reference, tokenizer, text)


def test_plain_text_never_becomes_a_control_token() -> None:
    for kind in KINDS:
        _, tokenizer = pair(kind)
        for text in ["<s></s><unk><|end|>", "x<s>", *samples.random_texts(100)]:
            controls = {
                token_id
                for token_id in tokenizer.encode(text, parse_special=False)
                if tokenizer.is_special(token_id) and tokenizer.token_bytes(token_id) != b"<unk>"
            }
            assert not controls, (kind, text)
