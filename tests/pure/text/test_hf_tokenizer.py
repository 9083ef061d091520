"""`tokenizer.json` and the files beside it: what they say is obeyed, what they lie about is named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ridgeline.errors import ModelFileError
from ridgeline.text.hf_tokenizer import spec_of_tokenizer_json
from ridgeline.text.tokenizer import Tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz<>/"
PLAIN: dict[str, Any] = {
    "added_tokens": [{"id": 40, "content": "<s>", "special": True, "normalized": False}],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "BPE",
        "vocab": {**{letter: index for index, letter in enumerate(ALPHABET)}, "ab": 30, "</s>": 31, "<unk>": 32},
        "merges": ["a b"],
        "unk_token": "<unk>",
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(PLAIN)
    inner = whole
    *parents, last = path.split(".")
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return whole


def opened(whole: dict[str, Any], **files: Any) -> Tokenizer:
    return Tokenizer.from_spec(spec_of_tokenizer_json(json.dumps(whole).encode(), **files))


def test_ids_may_have_holes() -> None:
    tokenizer = opened(PLAIN)
    assert tokenizer.num_tokens == 41
    assert tokenizer.encode("ab<s>c!") == [30, 40, 2, 32]
    assert tokenizer.token_bytes(35) == b"" and tokenizer.token_id("") is None
    assert tokenizer.decode([30, 40, 35, 2], skip_special_tokens=False) == "ab<s>c"


def test_both_ways_of_writing_merges() -> None:
    assert opened(changed("model.merges", [["a", "b"]])).encode("ab") == [30]


def test_what_the_configuration_names() -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": None, "add_bos_token": True}
    tokenizer = opened(PLAIN, tokenizer_config=config, generation_config={"eos_token_id": [5, 31]})
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (40, 31)
    assert tokenizer.end_of_sequence_ids == {5, 31}
    assert tokenizer.encode("a", add_special_tokens=True) == [40, 0]
    assert tokenizer.encode("a</s>") == [0, 31] and tokenizer.is_special(31)
    assert 31 not in tokenizer.encode("a</s>", parse_special=False)


def test_added_tokens_of_the_configuration() -> None:
    config = {"added_tokens_decoder": {"41": {"content": "<new>", "special": True}, "30": {"content": "ab"}}}
    tokenizer = opened(PLAIN, tokenizer_config=config)
    assert tokenizer.encode("a<new>b") == [0, 41, 1] and tokenizer.is_special(41)


@pytest.mark.parametrize("says", [True, False])
def test_post_processor_and_configuration(says: bool) -> None:
    processor = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "trim_offsets": True, "add_prefix_space": False, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [40], "tokens": ["<s>"]}},
            },
        ],
    }  # fmt: skip
    config = {"bos_token": "<s>", "add_bos_token": says}
    tokenizer = opened(changed("post_processor", processor), tokenizer_config=config)
    assert tokenizer.encode("a", add_special_tokens=True) == ([40, 0, 31] if says else [0, 31])


LIES: list[tuple[str, str, Any]] = [
    ("model", "model", 7),
    ("model.type", "model.type", "WordPiece"),
    ("model.type", "model.type", "Unigram"),
    ("model.dropout", "model.dropout", 0.1),
    ("continuing_subword_prefix", "model.continuing_subword_prefix", "##"),
    ("model.merges", "model.merges", None),
    ("merge 0", "model.merges", ["a"]),
    ("merge 0", "model.merges", ["a q!"]),
    ("merge 0", "model.merges", [["b", "c"]]),
    ("model", "model.merges", [["a", "b", "c"]]),
    ("model", "model.vocab", "x"),
    ("model.vocab", "model.vocab", {"a": -1}),
    ("model.vocab", "model.vocab", {"a": 1 << 30}),
    ("model.vocab", "model.vocab", {"a": 0, "b": 0, "ab": 1, "<unk>": 2}),
    ("model.unk_token", "model.unk_token", "nothing"),
    ("added_tokens", "added_tokens", [{"id": 7, "content": "ab"}]),
    ("added_tokens", "added_tokens", [{"id": "x", "content": "ab"}]),
    ("an added token", "added_tokens", [{"id": 41, "content": "x" * 5000}]),
    ("normalizer", "normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
    ("normalizer", "normalizer", {"kind": "NFC"}),
    ("pre_tokenizer", "pre_tokenizer", {"type": "UnicodeScripts"}),
    ("pre_tokenizer", "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
    ("pre_tokenizer", "pre_tokenizer", {"type": "Split", "pattern": {}, "behavior": "Isolated"}),
    ("behavior", "pre_tokenizer", {"type": "Split", "pattern": {"String": "a"}, "behavior": "Sideways"}),
    ("pre_tokenizer", "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 100}),
    ("length", "pre_tokenizer", {"type": "FixedLength", "length": 0}),
    ("post_processor", "post_processor", {"type": "Surprise"}),
    ("post_processor", "post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "?"}}]}),
    ("decoder", "decoder", {"type": "WordPiece"}),
    ("decoder", "decoder", {"type": "ByteLevel"}),
    ("decoder", "decoder", {"type": "Strip", "content": " ", "start": 7, "stop": 0}),
    ("decoder", "decoder", {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}),
]


@pytest.mark.parametrize(("named", "path", "value"), LIES, ids=lambda value: str(value)[:40])
def test_lies_are_named(named: str, path: str, value: Any) -> None:
    with pytest.raises(ModelFileError, match=named):
        opened(changed(path, value))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"model": {}}', b"[" * 100_000])
def test_no_json(content: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        spec_of_tokenizer_json(content)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"generation_config": {"eos_token_id": "x"}}, "eos_token_id"),
        ({"generation_config": {"eos_token_id": [999]}}, "token is 999"),
        ({"tokenizer_config": {"eos_token": 7}}, "eos_token"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": 7}}}, "added_tokens_decoder"),
    ],
)
def test_lies_in_the_files_beside_it(files: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFileError, match=named):
        opened(PLAIN, **files)
