"""Opening the text side of a model from each kind of file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ridgeline.errors import ModelFileError, UserError
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.text.open import open_text
from tests.pure.text.test_gguf_tokenizer import CONTROL, bytes_metadata
from tests.pure.text.test_hf_tokenizer import PLAIN

MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass(kw_only=True)
class Files:
    path: Path
    kind: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        return str(self.path)


def gguf(tmp_path: Path, **metadata: Any) -> Files:
    return Files(path=tmp_path / "model.gguf", kind="gguf", metadata={**bytes_metadata(), **metadata})


def folder(tmp_path: Path, **files: Any) -> Files:
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    for name, content in files.items():
        stem, _, extension = name.rpartition("_")
        (tmp_path / f"{stem}.{extension}").write_text(content if isinstance(content, str) else json.dumps(content))
    return Files(path=tmp_path, kind="safetensors", metadata={"eos_token_id": 31})


def test_gguf_with_a_template(tmp_path: Path) -> None:
    key = "tokenizer.chat_template"
    model = gguf(tmp_path, **{key: "default{{ eos_token }}", f"{key}.tool_use": "tools", f"{key}s": ["tool_use"]})
    cache = tmp_path / "cache"
    for _ in range(2):
        tokenizer, template = open_text(model, cache)
        assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
        assert template.render(MESSAGES) == "default<|end|>"
        assert template.render(MESSAGES, tools=[{}]) == "tools"
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".tried", ".tried"]


def test_cached_vocabulary_spares_the_metadata(tmp_path: Path) -> None:
    open_text(gguf(tmp_path), tmp_path)
    bare = Files(path=tmp_path / "model.gguf", kind="gguf")
    assert open_text(bare, tmp_path)[0].encode("hello")


def test_chatml_only_where_its_tokens_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        open_text(gguf(tmp_path))[1].render(MESSAGES)
    model = gguf(tmp_path)
    for name in ("<|im_start|>", "<|im_end|>"):
        model.metadata["tokenizer.ggml.tokens"].append(name)
        model.metadata["tokenizer.ggml.token_type"].append(CONTROL)
    assert open_text(model)[1].render(MESSAGES).startswith("<|im_start|>user\nhi<|im_end|>")


def test_folder(tmp_path: Path) -> None:
    config = {"eos_token": "</s>", "chat_template": "old{{ eos_token }}"}
    tokenizer, template = open_text(folder(tmp_path, tokenizer_config_json=config))
    assert tokenizer.end_of_sequence_ids == {31} and template.render(MESSAGES) == "old</s>"
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    model = folder(
        tmp_path, tokenizer_config_json={"chat_template": listed}, generation_config_json={"eos_token_id": 5}
    )
    tokenizer, template = open_text(model)
    assert 5 in tokenizer.end_of_sequence_ids and template.render(MESSAGES, tools=[{}]) == "b"
    assert open_text(folder(tmp_path, chat_template_jinja="new"))[1].render(MESSAGES) == "new"


def test_changed_tokenizer_is_compiled_again(tmp_path: Path) -> None:
    model = folder(tmp_path)
    cache = tmp_path / "cache"
    assert open_text(model, cache)[0].token_id("<new>") is None
    changed = {**PLAIN, "added_tokens": [{"id": 40, "content": "<new>", "special": True}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    assert open_text(model, cache)[0].token_id("<new>") == 40


@pytest.mark.parametrize("config", [{"vocab_size": 64}, {"text_config": {"vocab_size": 64}}])
def test_head_with_more_rows_than_tokens(tmp_path: Path, config: dict[str, Any]) -> None:
    model = folder(tmp_path)
    model.metadata = config
    tokenizer, _ = open_text(model)
    assert tokenizer.num_tokens == 64 and tokenizer.decode([0, 63, 1]) == "ab"
    stream = tokenizer.sample_text(SamplingParams())
    assert [stream.push(token_id) for token_id in (0, 63, 9999, 1)] == ["a", "", "", "b"]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"tokenizer_config_json": "{"}, "tokenizer_config.json"),
        ({"tokenizer_config_json": "[]"}, "tokenizer_config.json"),
        ({"tokenizer_config_json": {"chat_template": [{"name": "x"}]}}, "chat_template"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, files: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFileError, match=named):
        open_text(folder(tmp_path, **files))


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        open_text(Files(path=tmp_path, kind="safetensors"))
    with pytest.raises(ModelFileError, match="must be a string"):
        open_text(gguf(tmp_path, **{"tokenizer.chat_template": 7}))
