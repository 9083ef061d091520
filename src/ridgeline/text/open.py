"""Opening the text side of a model: its tokenizer and its chat template, from whichever files it has.

Knows: which files and keys hold them. Does not know: weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ridgeline.errors import ModelFileError
from ridgeline.text.chat_template import CHATML, ChatTemplate
from ridgeline.text.compiled import MAX_TOKENS, VERSION
from ridgeline.text.spec import TokenizerSpec, padded
from ridgeline.text.tokenizer import Tokenizer, cached_tokenizer

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
TEMPLATE = "chat_template.jinja"
OLD_TEMPLATE = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"
_MAX_FILE_BYTES = 1 << 28
_TEMPLATE_KEY = "tokenizer.chat_template"


class ModelFiles(Protocol):
    """What this room needs of an opened model."""

    @property
    def path(self) -> Path:
        """The file or folder it was opened from."""

    @property
    def kind(self) -> str:
        """Which it is: "gguf" or "safetensors"."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF: the key-value pairs. safetensors: the content of `config.json`."""

    def fingerprint(self) -> str:
        """A digest that changes when the files do."""


def open_text(model: ModelFiles, cache_folder: Path | None = None) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer and the chat template of a model.

    Args:
        model: the opened model; it may be closed afterwards.
        cache_folder: where the compiled vocabulary and the template's trial are kept; None: nowhere, and both are
            made anew each time.

    Raises:
        ModelFileError: the tokenizer is missing, damaged or of a kind that is not supported.
    """
    if cache_folder is None:
        tokenizer = Tokenizer.from_spec(spec_of(model))
    else:
        tokenizer = cached_tokenizer(cache_folder / f"vocabulary-{_digest(model)}.bin", lambda: spec_of(model))
    sources = _gguf_templates(model.metadata) if model.kind == "gguf" else _folder_templates(model.path)
    if not sources and None not in (tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")):
        sources = {"default": CHATML}
    special_tokens = {
        name: tokenizer.token_bytes(token_id).decode(errors="replace")
        for name, token_id in (
            ("bos_token", tokenizer.bos_token_id),
            ("eos_token", tokenizer.eos_token_id),
            ("pad_token", tokenizer.pad_token_id),
        )
        if token_id is not None
    }
    return tokenizer, ChatTemplate(sources, special_tokens=special_tokens, cache_folder=cache_folder)


def spec_of(model: ModelFiles) -> TokenizerSpec:
    """The description of a model's tokenizer, a token for each row of its head. Raises what `open_text` does."""
    return padded(_spec_of_gguf(model) if model.kind == "gguf" else _spec_of_folder(model), _head_rows(model))


def _head_rows(model: ModelFiles) -> int:
    """How many tokens the model's head tells apart, as far as its metadata say; 0 if they do not."""
    key = "vocab_size" if model.kind != "gguf" else f"{model.metadata.get('general.architecture')}.vocab_size"
    text_config = model.metadata.get("text_config")
    said = model.metadata.get(key, text_config.get(key) if isinstance(text_config, Mapping) else None)
    return said if isinstance(said, int) and 0 < said <= MAX_TOKENS else 0


def _digest(model: ModelFiles) -> str:
    digest = hashlib.sha256(f"{VERSION} {model.fingerprint()}".encode())
    if model.kind != "gguf":
        for name in (TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG):
            path = model.path / name
            if path.is_file():
                facts = path.stat()
                digest.update(f"{name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _spec_of_gguf(model: ModelFiles) -> TokenizerSpec:
    from ridgeline.text.gguf_tokenizer import spec_of_gguf  # not needed where a compiled vocabulary is at hand

    return spec_of_gguf(model.metadata)


def _spec_of_folder(model: ModelFiles) -> TokenizerSpec:
    from ridgeline.text.hf_tokenizer import spec_of_tokenizer_json

    path = model.path / TOKENIZER
    if not path.is_file():
        raise ModelFileError(
            f"{model.path}: there is no {TOKENIZER}, so the model's tokens are unknown",
            hint=f"fetch {TOKENIZER} of the model into the folder; a tokenizer.model alone is not supported",
        )
    generation = _json_object(model.path / GENERATION_CONFIG)
    if generation.get("eos_token_id") is None:
        generation = model.metadata
    return spec_of_tokenizer_json(
        _content(path), tokenizer_config=_json_object(model.path / TOKENIZER_CONFIG), generation_config=generation
    )


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ModelFileError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None


def _json_object(path: Path) -> Mapping[str, Any]:
    """The object in a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value: dict[str, Any] = msgspec.json.decode(_content(path), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"{path}: is no JSON object: {error}", hint="fetch the file again") from None
    return value


def _gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The default template and the named ones, which have keys of their own."""
    sources = {}
    for key, value in metadata.items():
        if key == _TEMPLATE_KEY or key.startswith(_TEMPLATE_KEY + "."):
            if not isinstance(value, str):
                raise ModelFileError(f"{key} is a {type(value).__name__}; it must be a string")
            sources[key.removeprefix(_TEMPLATE_KEY).removeprefix(".") or "default"] = value
    return sources


def _folder_templates(folder: Path) -> dict[str, str]:
    """From the newest way of keeping templates to the oldest; the first that is there counts."""
    sources = {path.stem: _text(path) for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        return {**sources, "default": _text(folder / TEMPLATE)}
    for name in (OLD_TEMPLATE, TOKENIZER_CONFIG):
        value = _json_object(folder / name).get("chat_template")
        if isinstance(value, str):
            return {**sources, "default": value}
        if isinstance(value, list):
            return {**sources, **_named_templates(folder / name, value)}
    return sources


def _named_templates(path: Path, entries: list[Any]) -> dict[str, str]:
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in entries}
    except (TypeError, KeyError) as error:
        raise ModelFileError(f"{path}: chat_template has an entry without name and template") from error


def _text(path: Path) -> str:
    try:
        return _content(path).decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: is not UTF-8 text") from error
