"""The model families: one entry of this table is all that a family is."""

from __future__ import annotations

from ridgeline.model.families.family import Family
from ridgeline.model.families.gemma import GEMMA1, GEMMA2, GEMMA3
from ridgeline.model.families.granite import GRANITE
from ridgeline.model.families.llama import LLAMA
from ridgeline.model.families.mistral import MISTRAL
from ridgeline.model.families.phi import PHI3
from ridgeline.model.families.qwen import QWEN2, QWEN3
from ridgeline.model.families.smollm import SMOLLM3

__all__ = ["FAMILIES", "Family"]

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    SMOLLM3,
    GRANITE,
    QWEN2,
    QWEN3,
    GEMMA1,
    GEMMA2,
    GEMMA3,
    PHI3,
)
