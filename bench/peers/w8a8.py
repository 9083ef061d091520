"""A bf16 checkpoint as int8 weights with dynamic int8 activations, in the compressed-tensors form that vLLM reads.

    python w8a8.py CHECKPOINT FOLDER

Every linear layer but the head: each row rounded to int8 with a scale of its own. Run by vLLM's environment.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
QUANTISATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**INT8, "strategy": "token", "dynamic": True},
        }
    },
}


def main(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        rows = tensor.float()
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-8).to(torch.bfloat16)
        tensors[name] = (rows / scale.float()).round().clamp(-127, 127).to(torch.int8)
        tensors[name.removesuffix("weight") + "weight_scale"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISATION}, indent=1))
    for path in source.iterdir():
        if path.name.startswith(("tokenizer", "vocab", "merges", "special", "generation", "chat")) and path.is_file():
            shutil.copy(path, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
