"""Tokenizers in GGUF metadata: the same tokens as from `tokenizer.json`, and errors that name the key."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import ModelFileError
from ridgeline.text.gguf_tokenizer import spec_of_gguf
from ridgeline.text.tokenizer import Tokenizer
from tests.pure.text import samples

NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def bytes_metadata(**changes: Any) -> dict[str, Any]:
    """A small byte-level tokenizer as GGUF has it; a change of None takes the key away."""
    reference = json.loads(samples.byte_level().to_str())
    ids = reference["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in reference["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token == "<|end|>" else NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return {key: value for key, value in metadata.items() if value is not None}


def pieces_metadata(**changes: Any) -> dict[str, Any]:
    """A small SentencePiece vocabulary as GGUF has it."""
    words = [
        "▁a",
        "ab",
        "▁ab",
        "abc",
        "▁abc",
        "bc",
        "▁the",
        "th",
        "he",
        "the",
        "▁t",
        "▁▁",
        "▁▁▁▁",
        "é",
        "你好",
        "in",
        "ing",
    ]
    letters = list("▁abcdefghijklmnopqrstuvwxyz.,!你好é<>/")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokens += [letter for letter in letters if letter not in tokens]
    tokens += ["<tool>", "<s", "[unused]"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    kinds += [NORMAL] * (len(tokens) - len(kinds))
    kinds[tokens.index("<tool>")] = ADDED
    kinds[tokens.index("[unused]")] = UNUSED
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [-float(index % 7) for index in range(len(tokens))],
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return {key: value for key, value in metadata.items() if value is not None}


def plain_sentencepiece(metadata: dict[str, Any], text: str) -> list[int]:
    """The definition: join the neighbours whose union scores best, leftmost first, until nothing joins."""
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata["tokenizer.ggml.scores"]
    kinds = metadata["tokenizer.ggml.token_type"]
    ids = {token: index for index, token in enumerate(tokens) if kinds[index] in (NORMAL, ADDED)}
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joins = [
            (-scores[ids[left + right]], place)
            for place, (left, right) in enumerate(itertools.pairwise(symbols))
            if left in ids and right in ids and left + right in ids
        ]
        if not joins:
            break
        _, place = min(joins)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    encoded: list[int] = []
    for symbol in symbols:
        encoded += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return encoded


def test_byte_level_as_the_reference_has_it() -> None:
    reference = samples.byte_level()
    tokenizer = Tokenizer.from_spec(spec_of_gguf(bytes_metadata()))
    for text in [*samples.TRICKY, *samples.CORPUS, *samples.random_texts(100)]:
        assert tokenizer.encode(text) == reference.encode(text).ids
    assert tokenizer.end_of_sequence_ids == {0}
    assert tokenizer.token_id("<|end|>") == 0 and tokenizer.token_id("nothing") is None


@given(text=st.text(st.sampled_from("  abcthein<s/>.é你好x"), max_size=40))
@settings(max_examples=300, deadline=None)
def test_sentencepiece_as_defined(text: str) -> None:
    metadata = pieces_metadata()
    tokenizer = Tokenizer.from_spec(spec_of_gguf(metadata))
    assert tokenizer.encode(text, parse_special=False) == plain_sentencepiece(metadata, text)
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


def test_sentencepiece_flags() -> None:
    tokenizer = Tokenizer.from_spec(spec_of_gguf(pieces_metadata()))
    assert tokenizer.encode("ab", add_special_tokens=True) == [1, *tokenizer.encode("ab")]
    assert tokenizer.encode("a</s>ab")[1:] == [2, *tokenizer.encode("ab")]
    assert 2 not in tokenizer.encode("a</s>", parse_special=False)
    assert tokenizer.token_id("<tool>") in tokenizer.encode("a<tool>", parse_special=False)
    assert tokenizer.token_id("[unused]") not in tokenizer.encode("[unused]")
    flags = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    bare = Tokenizer.from_spec(spec_of_gguf(pieces_metadata(**flags)))
    assert bare.encode("ab", add_special_tokens=True) == [bare.token_id("ab"), 2]
    assert bare.decode(bare.encode(" ab")) == " ab"


def test_phi3_swallows_white_space_after_its_marks() -> None:
    metadata = pieces_metadata()
    metadata["tokenizer.ggml.token_type"][metadata["tokenizer.ggml.tokens"].index("<tool>")] = CONTROL
    plain = Tokenizer.from_spec(spec_of_gguf(metadata))
    phi3 = Tokenizer.from_spec(spec_of_gguf({**metadata, "general.architecture": "phi3"}))
    assert phi3.encode("<tool> \n a") == plain.encode("<tool>a") != plain.encode("<tool> \n a")


def test_end_tokens_by_name_and_key() -> None:
    metadata = bytes_metadata()
    for name in ("<|im_end|>", "<|eot_id|>", "<|x|>"):
        metadata["tokenizer.ggml.tokens"].append(name)
        metadata["tokenizer.ggml.token_type"].append(CONTROL)
    count = len(metadata["tokenizer.ggml.tokens"])
    assert Tokenizer.from_spec(spec_of_gguf(metadata)).end_of_sequence_ids == {0, count - 3, count - 2}
    metadata["tokenizer.ggml.eot_token_id"] = np.uint32(count - 1)
    assert count - 1 in Tokenizer.from_spec(spec_of_gguf(metadata)).end_of_sequence_ids


TWICE = ["<|end|>", "a", "b", "a"]
HOSTILE: list[tuple[str, Any, dict[str, Any]]] = [
    ("tokenizer.ggml.model", bytes_metadata, {"model": None}),
    ("tokenizer.ggml.model", bytes_metadata, {"model": 7}),
    ("tokenizer.ggml.model", bytes_metadata, {"model": "x" * 1000}),
    ("tokenizer.ggml.pre", bytes_metadata, {"pre": "nobody"}),
    ("tokenizer.ggml.merges", bytes_metadata, {"merges": None}),
    ("tokenizer.ggml.merges", bytes_metadata, {"merges": "a b"}),
    ("tokenizer.ggml.merges", bytes_metadata, {"merges": [1, 2]}),
    ("merge 0", bytes_metadata, {"merges": ["ab"]}),
    ("merge 0", bytes_metadata, {"merges": [""]}),
    ("merge 0", bytes_metadata, {"merges": ["a nothing"]}),
    ("merge 0", bytes_metadata, {"merges": ["z Q"]}),
    ("tokenizer.ggml.tokens", bytes_metadata, {"tokens": None}),
    ("tokenizer.ggml.tokens", bytes_metadata, {"tokens": []}),
    ("tokenizer.ggml.tokens", bytes_metadata, {"tokens": [1]}),
    ("tokenizer.ggml.tokens", bytes_metadata, {"tokens": TWICE, "token_type": [1] * 4}),
    ("tokenizer.ggml.token_type", bytes_metadata, {"token_type": [1]}),
    ("tokenizer.ggml.token_type", bytes_metadata, {"token_type": "abc"}),
    ("tokenizer.ggml.token_type", pieces_metadata, {"token_type": [[1]] * 9}),
    ("tokenizer.ggml.eos_token_id", bytes_metadata, {"eos_token_id": 1 << 31}),
    ("tokenizer.ggml.eos_token_id", bytes_metadata, {"eos_token_id": -1}),
    ("tokenizer.ggml.bos_token_id", bytes_metadata, {"bos_token_id": "1"}),
    ("tokenizer.ggml.bos_token_id", bytes_metadata, {"bos_token_id": True}),
    ("tokenizer.ggml.eot_token_id", bytes_metadata, {"eot_token_id": 2.5}),
    ("tokenizer.ggml.add_bos_token", bytes_metadata, {"add_bos_token": "yes"}),
    ("tokenizer.ggml.scores", pieces_metadata, {"scores": None}),
    ("tokenizer.ggml.scores", pieces_metadata, {"scores": [1.0]}),
    ("tokenizer.ggml.scores", pieces_metadata, {"scores": ["x"]}),
]


@pytest.mark.parametrize(("key", "make", "changes"), HOSTILE, ids=lambda value: str(value)[:40])
def test_lies_are_named(key: str, make: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=key.replace(".", r"\.")):
        Tokenizer.from_spec(spec_of_gguf(make(**changes)))


@pytest.mark.parametrize("token", ["<0x-1>", "<0x1>", "<0xGG>", "<0x+1>", "<0x 1>", "0x41", "", "<0x0041>", "<0x٤١>"])
def test_malformed_byte_tokens(token: str) -> None:
    metadata = pieces_metadata()
    metadata["tokenizer.ggml.tokens"][10] = token
    with pytest.raises(ModelFileError, match="token 10"):
        Tokenizer.from_spec(spec_of_gguf(metadata))


def test_huge_and_odd_numbers() -> None:
    metadata = pieces_metadata()
    metadata["tokenizer.ggml.scores"][5] = float("nan")
    with pytest.raises(ModelFileError, match="scores"):
        spec_of_gguf(metadata)
    metadata = pieces_metadata()
    metadata["tokenizer.ggml.token_type"][5] = 77
    with pytest.raises(ModelFileError, match="token 5"):
        spec_of_gguf(metadata)
    metadata = pieces_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = "x" * 70_000
    with pytest.raises(ModelFileError, match="longest token"):
        Tokenizer.from_spec(spec_of_gguf(metadata))


def test_empty_tokens_are_tolerated() -> None:
    """Some conversions have padding tokens without a text."""
    metadata = bytes_metadata()
    metadata["tokenizer.ggml.tokens"] += ["", ""]
    metadata["tokenizer.ggml.token_type"] += [UNUSED, UNUSED]
    tokenizer = Tokenizer.from_spec(spec_of_gguf(metadata))
    assert tokenizer.encode("a") and tokenizer.token_bytes(tokenizer.num_tokens - 1) == b""


@given(
    key=st.sampled_from(sorted(bytes_metadata())),
    value=st.one_of(st.none(), st.integers(), st.text(), st.floats(), st.lists(st.integers()), st.lists(st.text())),
)
@settings(max_examples=200, deadline=None)
def test_any_lie_ends_in_an_error_or_a_tokenizer(key: str, value: Any) -> None:
    try:
        tokenizer = Tokenizer.from_spec(spec_of_gguf({**bytes_metadata_once(), key: value}))
    except ModelFileError:
        return
    tokenizer.encode("hello")


_ONCE: list[dict[str, Any]] = []


def bytes_metadata_once() -> dict[str, Any]:
    if not _ONCE:
        _ONCE.append(bytes_metadata())
    return _ONCE[0]
