"""Which files of a repository make up the model: a table of repositories as they are."""

import pytest

from ridgeline.errors import DownloadError
from ridgeline.weights.hub_choice import chosen_files

QWEN_GGUF = [
    ".gitattributes", "README.md", "LICENSE",
    *(f"qwen2.5-0.5b-instruct-{quant}.gguf" for quant in ("fp16", "q2_k", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0")),
]  # fmt: skip
SAFETENSORS = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "vocab.json",
]
SHARDED = [
    "config.json", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json",
    "model.safetensors.index.json", "consolidated.safetensors", "original/consolidated.00.pth",
]  # fmt: skip
PARTS = [f"Q8_0/big-Q8_0-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
SMALL = ["Q4_K_M/big-Q4_K_M.gguf", "mmproj-big-F16.gguf", "imatrix.gguf"]


@pytest.mark.parametrize(
    ("names", "selection", "expected"),
    [
        (QWEN_GGUF, "Q4_K_M", ["qwen2.5-0.5b-instruct-q4_k_m.gguf"]),
        (QWEN_GGUF, "q8_0", ["qwen2.5-0.5b-instruct-q8_0.gguf"]),
        (QWEN_GGUF, "fp16", ["qwen2.5-0.5b-instruct-fp16.gguf"]),
        (QWEN_GGUF, "qwen2.5-0.5b-instruct-q6_k.gguf", ["qwen2.5-0.5b-instruct-q6_k.gguf"]),
        (QWEN_GGUF, None, ["qwen2.5-0.5b-instruct-q4_k_m.gguf"]),
        (
            SAFETENSORS,
            None,
            ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "vocab.json"],
        ),
        (
            SHARDED,
            None,
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "tokenizer.json",
            ],
        ),
        ([*SAFETENSORS, *QWEN_GGUF], "Q4_0", ["qwen2.5-0.5b-instruct-q4_0.gguf"]),
        (
            [*SAFETENSORS, *QWEN_GGUF],
            None,
            ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "vocab.json"],
        ),
        ([*PARTS, *SMALL], "Q8_0", PARTS),
        ([*PARTS, *SMALL], PARTS[1], PARTS),
        ([*PARTS, *SMALL], None, SMALL[:1]),
        (["only-IQ3_M.gguf", "README.md"], None, ["only-IQ3_M.gguf"]),
        (["model.gguf"], None, ["model.gguf"]),
    ],
)
def test_chosen(names, selection, expected):
    assert chosen_files(names, selection, "hf:a/b") == expected


@pytest.mark.parametrize(
    ("names", "selection", "message"),
    [
        (QWEN_GGUF, "Q3_K", "hf:a/b: Q3_K: there is no such file .*: FP16, Q2_K, Q4_0, Q4_K_M, Q5_K_M, Q6_K, Q8_0"),
        (QWEN_GGUF, "Q4_K", "there is no such file"),
        (QWEN_GGUF, "nowhere.gguf", "there is no such file"),
        (["x-q4_0.gguf", "y-q4_0.gguf"], "Q4_0", "2 files are of that quantisation: x-q4_0.gguf, y-q4_0.gguf"),
        (["x-q4_0.gguf", "y-q4_0.gguf"], None, "holds 2 GGUF models: x-q4_0.gguf, y-q4_0.gguf"),
        (SAFETENSORS, "Q4_0", "there are no GGUF files to choose from"),
        (["config.json", "pytorch_model.bin"], None, "only as pickles"),
        (["README.md"], None, "neither safetensors with a config.json nor GGUF"),
        (["model.safetensors"], None, "neither safetensors with a config.json"),
        ([], None, "neither"),
        (["../../evil.gguf", "/etc/evil.gguf", "a\\..\\evil.gguf", "a//b.gguf"], None, "neither"),
        (["../../evil.gguf"], "../../evil.gguf", "there are no GGUF files"),
    ],
)  # fmt: skip
def test_refused(names, selection, message):
    with pytest.raises(DownloadError, match=message):
        chosen_files(names, selection, "hf:a/b")
