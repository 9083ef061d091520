"""Tiny models with random weights and a real byte-level tokenizer, made in milliseconds, for tests above a chip.

`write_tiny_gguf(path)` and `write_tiny_safetensors(folder)` write the same Llama decoder (same seed, same logits) with
the same vocabulary of 304 tokens and the same ChatML template. Nothing here needs more than the package itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ridgeline.quant.formats import F32, Format
from ridgeline.quant.reference import quantize
from ridgeline.quant.tensor import HostTensor
from ridgeline.weights.write import write_gguf, write_safetensors

MERGES = (
    "t h", "th e", "Ġ the", "i n", "a n", "e r", "o n", "Ġ a", "Ġ t", "Ġ w", "Ġ s", "Ġ o", "r e", "e n", "Ġ c", "i s",
    "o r", "e s", "Ġ in", "a t", "i t", "e d", "Ġ b", "Ġ f", "Ġ p", "in g", "l l", "o u", "Ġ m", "a l", "Ġ d", "a r",
    "Ġ h", "l o", "h e", "he l", "hel lo", "w or", "wor l", "worl d",
)  # fmt: skip
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<tool_call>", "</tool_call>", "<think>", "</think>",
)  # fmt: skip
CONTROL = SPECIALS[:4]
END_OF_TEXT, START_OF_TURN, END_OF_TURN, PADDING = range(296, 300)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySizes:
    """Of the decoder; what the kernels of every chip can take."""

    width: int = 128
    num_layers: int = 2
    num_query_heads: int = 4
    num_kv_heads: int = 2
    head_width: int = 32
    mlp_width: int = 256


SIZES = TinySizes()


def tokens() -> list[str]:
    """The vocabulary, in GPT-2's letters for bytes: 256 bytes, the merges, the specials."""
    return [*_byte_letters(), *(merge.replace(" ", "") for merge in MERGES), *SPECIALS]


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it prints, else the letters from 256 on."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in prints]
    return [chr(byte) if byte in prints else chr(256 + hidden.index(byte)) for byte in range(256)]


def tiny_weights(sizes: TinySizes, seed: int) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face names, spread so that logits differ clearly from token to token."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, width: int, spread: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, width)) * spread / np.sqrt(width)).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(sizes.width)).astype(np.float32)

    queries, keys = sizes.num_query_heads * sizes.head_width, sizes.num_kv_heads * sizes.head_width
    weights = {"model.embed_tokens.weight": matrix(len(tokens()), sizes.width, sizes.width**0.5)}
    for layer in range(sizes.num_layers):
        here = f"model.layers.{layer}."
        weights |= {
            here + "input_layernorm.weight": norm(),
            here + "self_attn.q_proj.weight": matrix(queries, sizes.width, 2.0),
            here + "self_attn.k_proj.weight": matrix(keys, sizes.width, 2.0),
            here + "self_attn.v_proj.weight": matrix(keys, sizes.width),
            here + "self_attn.o_proj.weight": matrix(sizes.width, queries, 3.0),
            here + "post_attention_layernorm.weight": norm(),
            here + "mlp.gate_proj.weight": matrix(sizes.mlp_width, sizes.width, 2.0),
            here + "mlp.up_proj.weight": matrix(sizes.mlp_width, sizes.width, 2.0),
            here + "mlp.down_proj.weight": matrix(sizes.width, sizes.mlp_width, 2.0),
        }
    weights["model.norm.weight"] = norm()
    weights["lm_head.weight"] = matrix(len(tokens()), sizes.width, 3.0)
    return weights


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """A Llama tensor's name in GGUF files, from the one in Hugging Face files."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.{kind}"
    layer, rest = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"


def paired_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Queries' or keys' rows as GGUF files of the llama architecture keep them: those of a turned pair side by side."""
    heads = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return heads.swapaxes(1, 2).reshape(weight.shape)


def host_tensor(name: str, values: np.ndarray, entry: Format = F32) -> HostTensor:
    """These values as a tensor of a format; vectors stay F32."""
    if values.ndim < 2 or entry is F32:
        data = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8)
        return HostTensor(name=name, shape=values.shape, format=F32, data=data)
    data = quantize(values.astype(np.float32), entry).reshape(-1)
    return HostTensor(name=name, shape=values.shape, format=entry, data=data)


def write_tiny_gguf(path: Path, *, seed: int = 0, entry: Format = F32, sizes: TinySizes = SIZES) -> Path:
    """Write the tiny Llama as a GGUF file, its matrices in this format, and return its path."""
    metadata = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.block_count": sizes.num_layers,
        "llama.context_length": CONTEXT_TOKENS,
        "llama.embedding_length": sizes.width,
        "llama.feed_forward_length": sizes.mlp_width,
        "llama.attention.head_count": sizes.num_query_heads,
        "llama.attention.head_count_kv": sizes.num_kv_heads,
        "llama.attention.key_length": sizes.head_width,
        "llama.attention.value_length": sizes.head_width,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": sizes.head_width,
        "llama.vocab_size": len(tokens()),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens(),
        "tokenizer.ggml.token_type": np.array(
            [3 if token in CONTROL else 4 if token in SPECIALS else 1 for token in tokens()], dtype=np.int32
        ),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": END_OF_TEXT,
        "tokenizer.ggml.eos_token_id": END_OF_TURN,
        "tokenizer.ggml.padding_token_id": PADDING,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    heads = {"q_proj.weight": sizes.num_query_heads, "k_proj.weight": sizes.num_kv_heads}
    tensors = []
    for name, values in tiny_weights(sizes, seed).items():
        num_heads = next((count for tail, count in heads.items() if name.endswith(tail)), None)
        tensors.append(
            host_tensor(gguf_name(name), values if num_heads is None else paired_rows(values, num_heads), entry)
        )
    write_gguf(path, metadata, tensors)
    return path


def write_tiny_safetensors(folder: Path, *, seed: int = 0, sizes: TinySizes = SIZES) -> Path:
    """Write the tiny Llama as a Hugging Face folder with its tokenizer, and return the folder."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp_width,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_query_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_TOKENS,
        "vocab_size": len(tokens()),
        "tie_word_embeddings": False,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TURN,
    }
    write_safetensors(folder, config, [[host_tensor(*item) for item in tiny_weights(sizes, seed).items()]])
    ids = {token: index for index, token in enumerate(tokens())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [
        {
            "id": ids[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": token in CONTROL,
        }
        for token in SPECIALS
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: index for token, index in ids.items() if token not in SPECIALS}, "merges": list(MERGES),
        },
    }  # fmt: skip
    settings = {
        "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>",
        "model_max_length": CONTEXT_TOKENS, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
