"""The tokenizer of a folder in the keys of GGUF files.

Knows: tokenizers' descriptions, the families that GGUF files name. Does not know: how text is cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ridgeline.errors import ModelFileError
from ridgeline.text.gguf_families import FAMILIES, GPT2_PATTERN
from ridgeline.text.open import open_text, spec_of
from ridgeline.text.spec import ByteLevel, PreTokenizerStep, Split, TokenizerSpec, TokenizerTraits, TokenKind
from ridgeline.weights.checkpoint import Checkpoint

_HINT = "convert the model to GGUF with another program first"


def tokenizer_keys(checkpoint: Checkpoint) -> dict[str, Any]:
    """`tokenizer.ggml.*` and the chat template. Raises ModelFileError for tokenizers that are not written yet."""
    spec = spec_of(checkpoint)
    traits = spec.traits
    if not traits.is_byte_level or spec.merges is None:
        raise ModelFileError(
            f"{checkpoint.path}: its tokenizer is no byte-level BPE, and others are not written to GGUF files yet",
            hint=_HINT,
        )
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _family_name(checkpoint, traits),
        "tokenizer.ggml.tokens": [token or f"[PAD{number}]" for number, token in enumerate(spec.tokens)],
        "tokenizer.ggml.token_type": _kinds(spec),
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in spec.merges],
        "tokenizer.ggml.add_bos_token": bool(traits.prefix_ids),
        "tokenizer.ggml.add_eos_token": bool(traits.suffix_ids),
    }
    ids = {
        "bos_token_id": traits.bos_id,
        "eos_token_id": traits.eos_id,
        "unknown_token_id": traits.unknown_id,
        "padding_token_id": traits.pad_id,
    }
    keys |= {f"tokenizer.ggml.{name}": token_id for name, token_id in ids.items() if token_id is not None}
    _, template = open_text(checkpoint)
    for name, source in template.sources.items():
        keys["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = source
    return keys


def _kinds(spec: TokenizerSpec) -> np.ndarray[Any, Any]:
    kinds = np.array(spec.kinds, dtype=np.int32)
    kinds[kinds == TokenKind.ABSENT] = TokenKind.UNUSED
    return kinds


def _family_name(checkpoint: Checkpoint, traits: TokenizerTraits) -> str:
    """The first family that splits text in the same way."""
    for name, family in FAMILIES.items():
        is_same = (
            _spelled_out(family.pre_tokenizer) == _spelled_out(traits.pre_tokenizer)
            and family.normalizer == traits.normalizer
            and family.ignores_merges == traits.ignores_merges
            and family.is_byte_level
        )
        if is_same and name:
            return name
    raise ModelFileError(
        f"{checkpoint.path}: its tokenizer splits text in a way that no family of GGUF files has", hint=_HINT
    )


def _spelled_out(steps: tuple[PreTokenizerStep, ...]) -> tuple[PreTokenizerStep, ...]:
    """The steps with GPT-2's pattern as a step of its own where the bytes' step has it built in."""
    made: list[PreTokenizerStep] = []
    for step in steps:
        if isinstance(step, ByteLevel) and step.splits:
            made.append(Split(pattern=GPT2_PATTERN, is_regex=True, behavior="isolated"))
            made.append(ByteLevel(adds_prefix_space=step.adds_prefix_space, splits=False))
        else:
            made.append(step)
    return tuple(made)
