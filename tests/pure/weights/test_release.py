"""What a checkpoint has read can be given back to the system, and read again."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from ridgeline.weights.open import open_checkpoint
from tests.tiny_models import TinySizes, write_tiny_gguf, write_tiny_safetensors

SIZES = TinySizes(width=512, mlp_width=2048)


def resident_kilobytes(file: Path) -> int:
    """How much of the mapped file this process holds."""
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    found = [text for text in mappings if f" {file}\n" in text]
    assert found, f"{file} is not mapped"
    return sum(int(size) for text in found for size in re.findall(r"^Rss: +(\d+) kB", text, re.MULTILINE))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_memory_comes_back_and_bytes_stay(kind: str, tmp_path: Path) -> None:
    if kind == "gguf":
        opened = file = write_tiny_gguf(tmp_path / "tiny.gguf", sizes=SIZES)
    else:
        opened = write_tiny_safetensors(tmp_path, sizes=SIZES)
        file = opened / "model.safetensors"
    checkpoint = open_checkpoint(opened)
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    before = [tensor.data.tobytes() for tensor in tensors]
    if sys.platform == "linux":
        assert resident_kilobytes(file) * 1024 > 0.8 * file.stat().st_size
    checkpoint.release()
    if sys.platform == "linux":
        assert resident_kilobytes(file) == 0
    assert [tensor.data.tobytes() for tensor in tensors] == before
    assert all(np.shares_memory(checkpoint.tensor(t.name).data, t.data) for t in tensors)
    checkpoint.close()
    checkpoint.release()
