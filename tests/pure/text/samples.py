"""Texts that tokenizers have tripped over, and small tokenizers to trip."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
from hypothesis import strategies as st

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what they'd do, isn't it?",
    "def main(argv: list[str]) -> int:\n    for i in range(10):\n        print(f'{i:>3}')\n    return 0\n",
    "你好，世界！今天天气很好。我们去公园散步吧。人工智能的发展历史",
    "こんにちは世界。東京は日本の首都です。カタカナ",
    "Привет, мир! Съешь ещё этих мягких французских булок",
    "مرحبا بالعالم 123 ٤٥٦",
    "😀😀👍🏽👩‍💻🇫🇷 emoji ❤️ 1️⃣",
    "a  b   c    d\t\te\n\n\nf\r\n  g",
    "12345 67890 3.14159 1,000,000 2024-11-22",
    "café naïve résumé Zürich Ångström",
    "{'a': [1, 2, {'b': None}], \"c\": \"d\\n\"} => != === //",
] * 4

TRICKY = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t\t", "\r\n", "a", " a", "a ", "  a  b  ", "Hello, world!",
    "don't DON'T I'll we'Ve 'S 's''s", "x" * 300, " " * 100, "\n" * 50, "ab" * 100, "1234567890", "a1b2 c3",
    "½²³Ⅻ１２٣",
    "你好，世界！", "你 好\n", "こんにちは", "ㅋㅋㅋ ㅠㅠ", "สวัสดี", "नमस्ते", "😀", "👩‍💻👨‍👩‍👧‍👦", "🇫🇷🇩🇪",
    "e\u0301", "é", "\u212b", "ﬁ",
    "\u00a0x\u3000y\u2003", "\u200b\u200d\ufeff", "\x00\x01\x7f", "\u2028", "\u0085", "\ufffd", "\U0010ffff", "\ue000",
    "<s>", "</s>", "<|end|>", "a<|end|>b", "<|end|> x", "  <|end|>  y", "<|end", "|end|>", "<mark>", "x <mark> y",
    "<mark><mark>", "foo<mark>bar", "\u2581", "\u2581\u2581 a", "a\u2581b", "<0x41>", "<unk>", "_", "__init__",
    "== != === -> => //", "f(x)=x**2;", "http://a.b/c?d=e&f", "if x:\n        return y\n", "ﾊﾟ", "ǅ Ǆ", "ß ẞ",
    "İ ı", "K K",
    "A\u030a\u0327", "\u0301", "क़", "각", "\u1100\u1161\u11a8",
]  # fmt: skip

# Characters that this Python's Unicode knows: libraries of other ages may disagree on those assigned later.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cn"))
PROSE = st.lists(
    st.one_of(st.sampled_from(TRICKY), st.text(CHARACTERS, max_size=8), st.sampled_from([" ", "'s", "12", "a", "\n"])),
    max_size=12,
).map("".join)


def random_texts(count: int, seed: int = 1) -> list[str]:
    """Reproducible mixtures of the tricky texts."""
    draw = random.Random(seed)
    return ["".join(draw.choice(TRICKY[1:]) for _ in range(draw.randint(1, 8))) for _ in range(count)]


@functools.cache
def tokenizers_library() -> Any:
    """The reference implementation; the test is skipped where it is not installed."""
    return pytest.importorskip("tokenizers", reason="the reference tokenizer is not installed")


def byte_level(**pre: Any) -> Any:
    """A trained byte-level BPE, as GPT-2's descendants have it."""
    library = tokenizers_library()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = library.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **pre})
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama_like() -> Any:
    """A trained BPE over characters with byte fall-back, as Llama 2 and Mistral have it."""
    library = tokenizers_library()
    from tokenizers import decoders, models, normalizers, processors, trainers

    tokenizer = library.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=150, show_progress=False)
    tokenizer.train_from_iterator(CORPUS[:-8], trainer)
    # The trainer marks the bytes as special tokens; a published file has only the first three so.
    description = _json(tokenizer)
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < 3]
    tokenizer = library.Tokenizer.from_str(_dumped(description))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def metaspace(scheme: str = "always", split: bool = True) -> Any:
    """A trained BPE behind a Metaspace pre-tokenizer."""
    library = tokenizers_library()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = library.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigram(byte_fallback: bool = False) -> Any:
    """A trained Unigram model, as SentencePiece's descendants have it."""
    library = tokenizers_library()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = library.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace(split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS[:-6], trainer)
    if byte_fallback:
        description = _json(tokenizer)
        description["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
        description["model"]["byte_fallback"] = True
        description["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        }
        tokenizer = library.Tokenizer.from_str(_dumped(description))
    return tokenizer


def _json(tokenizer: Any) -> Any:
    import json

    return json.loads(tokenizer.to_str())


def _dumped(description: Any) -> str:
    import json

    return json.dumps(description)
