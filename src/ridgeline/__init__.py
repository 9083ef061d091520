"""Ridgeline: large language models at the limit of the chip, measured."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ridgeline.version import VERSION

if TYPE_CHECKING:
    from ridgeline.llm import LLM
    from ridgeline.request import RequestOutput, SamplingParams

__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]

__version__ = VERSION

_HOMES = {"LLM": "ridgeline.llm", "RequestOutput": "ridgeline.request", "SamplingParams": "ridgeline.request"}
"""Where each name lives; it is imported when it is first asked for, so that `import ridgeline` costs nothing."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ridgeline' has no attribute {name!r}")
