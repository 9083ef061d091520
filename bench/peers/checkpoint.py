"""A GGUF file as a bf16 checkpoint, so that peers that do not read GGUF hold the same dequantised weights.

    python checkpoint.py MODEL.gguf FOLDER

Run by an environment with torch, transformers and gguf; it knows nothing of Ridgeline. The tokenizer that transformers
reads from a GGUF file is kept for programs that refuse a folder without one; prompts here are token ids.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model: Path, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(str(model.parent), gguf_file=model.name, dtype=torch.float32)
    dropped = ("quantization_config", "_name_or_path", "_model_name_or_path")
    config = type(loaded.config)(**{key: value for key, value in loaded.config.to_dict().items() if key not in dropped})
    config.architectures = [type(loaded).__name__]
    config.dtype = torch.bfloat16
    # Built anew: transformers refuses to save a model that it read from a quantised file.
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.to(torch.bfloat16).save_pretrained(str(folder), max_shard_size="20GB")
    AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name).save_pretrained(str(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
