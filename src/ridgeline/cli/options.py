"""Options that several verbs share, and what they turn into."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ridgeline.errors import UserError

if TYPE_CHECKING:
    from ridgeline.engine.settings import EngineSettings
    from ridgeline.llm import LLM

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_SIZE_LETTERS = " kmgt"

_SAMPLING_OPTIONS = (
    ("--max-tokens", int, "at most this many new tokens"),
    ("--temperature", float, "0 always takes the likeliest token"),
    ("--top-p", float, "keep the likeliest tokens up to this share of probability"),
    ("--top-k", int, "keep this many of the likeliest tokens"),
    ("--min-p", float, "drop tokens below this share of the likeliest one's probability"),
    ("--repetition-penalty", float, "above 1 makes repeated tokens less likely"),
    ("--seed", int, "draw the same random numbers again"),
)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL, optional."""
    parser.add_argument(
        "model",
        nargs="?",
        help="a GGUF file, a folder with safetensors, hf:ORG/NAME[:FILE], modelscope:ORG/NAME, or nothing for the "
        "small default (SmolLM2-135M-Instruct)",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen."""
    group = parser.add_argument_group("sampling")
    for flag, kind, text in _SAMPLING_OPTIONS:
        group.add_argument(flag, type=kind, help=text)
    group.add_argument("--stop", action="append", help="end before this text; may be given several times")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Limits; everything else is decided from the machine."""
    group = parser.add_argument_group("limits")
    group.add_argument("--chip", default="cpu", help="which chip to run on (see: ridgeline chips)")
    group.add_argument("--threads", type=int, help="CPU threads (default: as many as this process may use)")
    group.add_argument("--context", type=int, help="the longest prompt plus answer, in tokens")
    group.add_argument("--memory", type=parse_bytes, metavar="SIZE", help="memory for weights and pages, such as 8GB")
    group.add_argument("--kv", choices=("bf16", "int8", "f32"), default="bf16", help="format of keys and values")
    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="a small model of the same vocabulary that guesses next tokens: the same answers, sooner",
    )
    group.add_argument(
        "--no-speculation",
        action="store_true",
        help="guess no tokens; answers are the same, so this is for measurements alone",
    )


def parse_bytes(text: str) -> int:
    """'8GB', '512MiB', '1000000' as bytes; units are powers of 1000, with an i powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it like 8GB or 512MiB")
    power = _SIZE_LETTERS.index(found[2].lower() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def engine_settings(options: argparse.Namespace, model: str) -> EngineSettings:
    """What the limits say. Raises UserError."""
    from ridgeline.engine.settings import EngineSettings

    for flag in ("threads", "context", "memory"):
        value = getattr(options, flag)
        if value is not None and value <= 0:
            raise UserError(f"--{flag} is {value}; it must be above 0", field=flag)
    return EngineSettings(
        model=model,
        name=getattr(options, "name", None),
        chip=options.chip,
        num_threads=options.threads,
        context_tokens=options.context,
        memory_bytes=options.memory,
        kv_format=options.kv,
        draft_model=_draft_model(options),
        speculation=not options.no_speculation,
    )


def open_llm(options: argparse.Namespace, settings: EngineSettings) -> LLM:
    """The model that was named, opened as `settings` (of `engine_settings`) say. Raises UserError."""
    from ridgeline.llm import LLM

    return LLM(
        options.model,
        chip=settings.chip,
        num_threads=settings.num_threads,
        context_tokens=settings.context_tokens,
        memory_bytes=settings.memory_bytes,
        kv_format=settings.kv_format,
        draft_model=settings.draft_model,
        speculation=settings.speculation,
    )


def _draft_model(options: argparse.Namespace) -> str | None:
    from ridgeline.weights.pull import resolve_model

    if options.draft_model is None:
        return None
    if options.no_speculation:
        raise UserError(
            "--draft-model and --no-speculation were given; the first is of no use with the second", field="draft_model"
        )
    return str(resolve_model(options.draft_model))


def said_sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, by the names of SamplingParams."""
    names = [flag.removeprefix("--").replace("-", "_") for flag, _, _ in _SAMPLING_OPTIONS] + ["stop"]
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
