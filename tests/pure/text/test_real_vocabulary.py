"""The default model's tokenizer: token for token what the reference implementation gives with its published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ridgeline.text.open import open_text
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.weights.open import open_checkpoint
from tests.pure.text import samples

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def opened(default_model_path: Path) -> tuple[Any, Tokenizer, str]:
    """The reference, ours, and the chat template's own text of a conversation."""
    library = samples.tokenizers_library()
    checkpoint = open_checkpoint(default_model_path)
    try:
        metadata = dict(checkpoint.metadata)
        tokens = list(metadata["tokenizer.ggml.tokens"])
        kinds = list(metadata["tokenizer.ggml.token_type"])
        merges = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
        tokenizer, template = open_text(checkpoint)
    finally:
        checkpoint.close()
    # SmolLM2's tokenizer.json: single digits, then GPT-2's pattern; no normalizer.
    description = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": tokens[index], "special": True, "normalized": False, "single_word": False,
             "lstrip": False, "rstrip": False}
            for index, kind in enumerate(kinds) if kind == 3
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges},
    }  # fmt: skip
    chat = template.render([{"role": "user", "content": "Hi"}])
    return library.Tokenizer.from_str(json.dumps(description)), tokenizer, chat


def test_tricky_texts(opened: tuple[Any, Tokenizer, str]) -> None:
    reference, tokenizer, _ = opened
    for text in [*samples.TRICKY, *samples.CORPUS, *samples.random_texts(500), "<|im_start|>user\nx<|im_end|>"]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text).ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(text=samples.PROSE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text(opened: tuple[Any, Tokenizer, str], text: str) -> None:
    reference, tokenizer, _ = opened
    assert tokenizer.encode(text) == reference.encode(text).ids


def test_the_repository_itself(opened: tuple[Any, Tokenizer, str]) -> None:
    reference, tokenizer, _ = opened
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text("utf-8")
        assert tokenizer.encode(text) == reference.encode(text).ids, path


def test_chat(opened: tuple[Any, Tokenizer, str]) -> None:
    _, tokenizer, chat = opened
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.end_of_sequence_ids == {0, 2} and tokenizer.bos_token_id == 1
    assert tokenizer.encode(chat, add_special_tokens=True)[0] == tokenizer.token_id("<|im_start|>")
