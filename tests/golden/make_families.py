"""Make the golden files of `families/`: tiny checkpoints of each family, and the logits that transformers computes.

Run by hand where torch and transformers are installed (`python tests/golden/make_families.py`); tests read what it
wrote. Weights are random, spread so that attention is far from uniform, and rounded to bfloat16, as they are stored.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "families"
VOCABULARY = 96
NUM_TOKENS = 150
"""Two full pages and a part; beyond all windows and original contexts below."""
SHORT_TOKENS = 60
"""Within the original context of the LongRoPE case."""
ROW_STRIDE = 7

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "llama_llama3": {
        "model_type": "llama",
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "llama_linear_tied_biased": {
        "model_type": "llama",
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "mistral": {
        "model_type": "mistral",
        "head_dim": 16,
        "sliding_window": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "smollm3": {
        "model_type": "smollm3",
        "num_hidden_layers": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 2e6},
    },
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.22,
        "logits_scaling": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "qwen2": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 40,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen3_yarn": {
        "model_type": "qwen3",
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
        },
    },
    "gemma": {
        "model_type": "gemma",
        "head_dim": 16,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 20,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 4.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "intermediate_size": 32,
        "head_dim": 8,
        "sliding_window": 16,
        "query_pre_attn_scalar": 12,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "phi3_longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "sliding_window": 100,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64, "short_factor": [1.0, 1.1], "long_factor": [1.5, 6.0],
        },
    },
}  # fmt: skip


def main() -> None:
    """Write every case that is not there yet."""
    for name, changed in CASES.items():
        if not (FOLDER / name).exists():
            make_case(FOLDER / name, {**SIZES, **changed}, seed=zlib.crc32(name.encode()))


def make_case(folder: Path, config: dict[str, Any], seed: int) -> None:
    """Write one folder: config.json and model.safetensors as transformers saves them, expected.npz."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        randomise(name, parameter, adds_one=config.model_type.startswith("gemma"))
    model.eval()
    token_ids = torch.randint(3, VOCABULARY, (NUM_TOKENS,))
    rows = np.arange(NUM_TOKENS - 1, -1, -ROW_STRIDE)[::-1].copy()
    expected = {"token_ids": token_ids.numpy().astype(np.int32), "rows": rows, "logits": logits(model, token_ids)[rows]}
    if getattr(config, "rope_parameters", {}).get("rope_type") == "longrope":
        short_rows = rows[rows < SHORT_TOKENS]
        expected |= {"short_rows": short_rows, "short_logits": logits(model, token_ids[:SHORT_TOKENS])[short_rows]}
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(folder / "expected.npz", **expected)
    print(folder.name, sum(file.stat().st_size for file in folder.iterdir()), expected["logits"].std())


def randomise(name: str, parameter: torch.Tensor, *, adds_one: bool) -> None:
    """Fill a parameter in place with values that bfloat16 holds exactly."""
    noise = torch.randn(parameter.shape)
    if name.endswith("norm.weight"):
        values = 0.2 * noise + (0 if adds_one else 1)
    elif name.endswith("bias"):
        values = 0.5 * noise
    elif "embed_tokens" in name:
        values = noise / parameter.shape[-1] ** 0.5
    else:
        values = 1.5 * noise / parameter.shape[-1] ** 0.5
    with torch.no_grad():
        parameter.copy_(values.to(torch.bfloat16).to(torch.float32))


def logits(model: Any, token_ids: torch.Tensor) -> np.ndarray:
    """logits_TV of a prompt."""
    with torch.no_grad():
        return model(token_ids[None], use_cache=False).logits[0].numpy().astype(np.float32)


if __name__ == "__main__":
    main()
