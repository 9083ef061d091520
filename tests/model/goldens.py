"""The golden checkpoints of `tests/golden/families`, as they are and as the GGUF files that conversion would make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.quant.reference import dequantize
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf
from tests.tiny_models import gguf_name, host_tensor, paired_rows

FOLDER = Path(__file__).parent.parent / "golden" / "families"
NAMES = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())


@dataclass(frozen=True)
class Golden:
    """One family's files and what transformers computed."""

    folder: Path
    token_ids: list[int]
    rows: np.ndarray
    logits: np.ndarray
    short_rows: np.ndarray | None
    short_logits: np.ndarray | None

    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.folder)


def golden(name: str) -> Golden:
    with np.load(FOLDER / name / "expected.npz") as arrays:
        return Golden(
            folder=FOLDER / name,
            token_ids=arrays["token_ids"].tolist(),
            rows=arrays["rows"],
            logits=arrays["logits"],
            short_rows=arrays.get("short_rows"),
            short_logits=arrays.get("short_logits"),
        )


def weights_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """All tensors as float32 arrays, by the names in the file."""
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    return {tensor.name: dequantize(tensor.data, tensor.format, tensor.shape) for tensor in tensors}


LLAMA_LIKE = {"llama", "smollm3", "granite"}
"""GGUF architectures whose queries and keys are kept in pairs."""
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
MORE_NAMES = {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}


def write_as_gguf(folder: Path, path: Path) -> Path:
    """Write what the usual conversion of a golden folder would, and return its path."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.metadata
    architecture = {"gemma3_text": "gemma3", "mistral": "llama"}.get(config["model_type"], config["model_type"])
    tensors = []
    for name, given in weights_of(checkpoint).items():
        values = given
        if architecture in LLAMA_LIKE and "q_proj" in name:
            values = paired_rows(values, config["num_attention_heads"])
        if architecture in LLAMA_LIKE and "k_proj" in name:
            values = paired_rows(values, config["num_key_value_heads"])
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        tensors.append(host_tensor(_gguf_name(name, architecture), values))
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        tensors.append(host_tensor("rope_freqs.weight", llama3_factors(rope, config["head_dim"])))
    if rope.get("rope_type") == "longrope":
        for kind in ("short", "long"):
            factors = np.array(rope[f"{kind}_factor"], dtype=np.float32)
            tensors.append(host_tensor(f"rope_factors_{kind}.weight", factors))
    metadata = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in _figures(config, architecture).items()}
    write_gguf(path, metadata, tensors)
    return path


def _gguf_name(name: str, architecture: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, rest = stem.removeprefix("model.layers.").split(".", 1)
        more = MORE_NAMES | (GEMMA_NORMS if architecture in ("gemma2", "gemma3") else {})
        if rest in more:
            return f"blk.{layer}.{more[rest]}.{kind}"
    return gguf_name(name)


def llama3_factors(rope: dict[str, Any], head_width: int) -> np.ndarray:
    """What a conversion writes into `rope_freqs.weight`."""
    factors = []
    for pair in range(head_width // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * pair / head_width)
        waves = rope["original_max_position_embeddings"] / wavelength
        if waves > rope["high_freq_factor"]:
            factors.append(1.0)
        elif waves < rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (waves - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def _figures(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The hyper-parameters under GGUF keys."""
    rope = config["rope_parameters"]
    whole = rope.get("full_attention", rope)
    head_width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    figures = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_width,
        "attention.value_length": head_width,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": whole["rope_theta"],
        "rope.dimension_count": int(head_width * whole.get("partial_rotary_factor", 1)),
    }
    if config.get("sliding_window") and architecture != "qwen2":
        figures["attention.sliding_window"] = config["sliding_window"]
    if whole.get("rope_type") in ("linear", "yarn"):
        figures |= {"rope.scaling.type": whole["rope_type"], "rope.scaling.factor": whole["factor"]}
    if "original_max_position_embeddings" in whole:
        figures["rope.scaling.original_context_length"] = whole["original_max_position_embeddings"]
    if architecture == "phi3":
        ratio = config["max_position_embeddings"] / whole["original_max_position_embeddings"]
        magnitude = (1 + np.log(ratio) / np.log(whole["original_max_position_embeddings"])) ** 0.5
        figures["rope.scaling.attn_factor"] = float(magnitude)
    if architecture == "granite":
        names = {
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        }
        figures |= {key: config[name] for key, name in names.items()}
    if architecture == "gemma2":
        figures |= {
            "attn_logit_softcapping": config["attn_logit_softcapping"],
            "final_logit_softcapping": config["final_logit_softcapping"],
        }
    return figures
