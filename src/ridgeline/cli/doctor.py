"""`ridgeline doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ridgeline.chips.cpu import _native, instruction_set, machine
from ridgeline.cli.words import bytes_in_words
from ridgeline.errors import UserError
from ridgeline.model.load import plan_model
from ridgeline.text.open import open_text
from ridgeline.version import VERSION
from ridgeline.weights.cache_folder import default_cache_folder, made_folder
from ridgeline.weights.facts import memory_bytes
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.pull import resolve_model

MIN_FREE_DISK_BYTES = 1 << 30
PAGES_SHARE = 0.25
"""Room for pages and the program itself, beside the weights, that is called comfortable."""

EXTRAS = (
    ("huggingface_hub", "hf", "models from hf: repositories"),
    ("modelscope", "modelscope", "models from modelscope: repositories"),
    ("matplotlib", "plot", "bench --plot"),
    ("torch", "torch", "the torch chip"),
    ("jax", "jax", "the jax chip"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `is_fault` makes the exit status 1."""

    mark: str
    text: str
    hint: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether something must be mended."""
        return self.mark == "FAIL"


def run(options: argparse.Namespace) -> int:
    """Print every finding; 1 if something must be mended."""
    findings = [finding for check in _checks(options.model) for finding in check()]
    for finding in findings:
        print(f"{finding.mark:<4} {finding.text}")
        if finding.hint:
            print(f"     hint: {finding.hint}")
    return int(any(finding.is_fault for finding in findings))


def _checks(model: str | None) -> Iterator[Callable[[], Iterator[Finding]]]:
    yield _machine
    yield _cache_folder
    yield _extras
    if model is not None:
        yield lambda: _model(model)


def _machine() -> Iterator[Finding]:
    yield Finding("ok", f"ridgeline {VERSION}, Python {platform.python_version()}, {platform.platform()}")
    usable, present = machine.usable_cpus(), os.cpu_count() or 1
    yield Finding("ok", f"{machine.cpu_model()}: {usable} of {present} CPUs may be used")
    try:
        notice = instruction_set.use_wanted()
    except UserError as error:
        yield Finding("FAIL", error.message, error.hint)
    else:
        others = ", ".join(_native.instruction_sets())
        text = f"kernels: {_native.instruction_set()} (of {others}; {instruction_set.VARIABLE} chooses another)"
        yield Finding("note" if notice else "ok", text, notice or "")
    yield Finding("ok", f"memory available: {bytes_in_words(machine.available_memory_bytes())}")


def _cache_folder() -> Iterator[Finding]:
    try:
        folder = made_folder(default_cache_folder())
    except UserError as error:
        yield Finding("FAIL", error.message, error.hint)
        return
    free_bytes = shutil.disk_usage(folder).free
    text = f"cache folder {folder}: {bytes_in_words(free_bytes)} free"
    if free_bytes < MIN_FREE_DISK_BYTES:
        yield Finding("FAIL", text, "free some space, or set RIDGELINE_CACHE to a folder on another disk")
    else:
        yield Finding("ok", text)


def _extras() -> Iterator[Finding]:
    for module, extra, purpose in EXTRAS:
        if find_spec(module) is not None:
            yield Finding("ok", f"{module}: {purpose}")
        else:
            yield Finding("-", f"{module} is not installed ({purpose})", f"pip install 'ridgeline[{extra}]' if wanted")


def _model(argument: str) -> Iterator[Finding]:
    try:
        path: Path = resolve_model(argument)
        checkpoint = open_checkpoint(path)
    except UserError as error:
        yield Finding("FAIL", error.message, error.hint)
        return
    try:
        plan_model(checkpoint)
        open_text(checkpoint, default_cache_folder() / "text")
        by_format = memory_bytes(checkpoint)
    except UserError as error:
        yield Finding("FAIL", error.message, error.hint)
        return
    finally:
        checkpoint.close()
    total = sum(by_format.values())
    shares = ", ".join(f"{name} {bytes_in_words(count)}" for name, count in by_format.items())
    yield Finding("ok", f"{path.name}: {bytes_in_words(total)} of weights ({shares})")
    available = machine.available_memory_bytes()
    if total > available:
        yield Finding("FAIL", f"the weights do not fit into the {bytes_in_words(available)} that are available",
                      "choose a smaller format, or end other programs")  # fmt: skip
    elif total * (1 + PAGES_SHARE) > available:
        yield Finding("note", "the weights fit, with little room for long contexts", "choose a smaller format")
    else:
        yield Finding("ok", "the weights fit")
