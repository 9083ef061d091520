"""One job: a source file to a smaller one, and the report about both.

Knows: the order in which it is done, and what is refused before anything takes long. Does not know: terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ridgeline.chips.registry import open_chip
from ridgeline.errors import UserError
from ridgeline.model.load import load_model, plan_model
from ridgeline.ops.chip import AnyChip
from ridgeline.quant import formats
from ridgeline.quant.formats import Format
from ridgeline.shrink.as_gguf import AsGguf
from ridgeline.shrink.calibration import calibrated_tensors
from ridgeline.shrink.distance import Summary
from ridgeline.shrink.measure import (
    SPEED_ROUNDS,
    WINDOW_TOKENS,
    Facts,
    Measured,
    check_text,
    quality,
    speeds,
    windows_of,
)
from ridgeline.shrink.own_text import continued, openings
from ridgeline.shrink.recipe import Choice, Mix, bytes_by_format, choices, mix_named
from ridgeline.shrink.rewrite import rounded_tensors
from ridgeline.text.chat_template import ChatTemplate
from ridgeline.text.open import open_text
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.version import VERSION
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.disk import require_free
from ridgeline.weights.gguf import part_paths
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""(what is done, in how many pieces) -> a context whose value is told of each piece that is done."""

CALIBRATION_TOKENS = 16384
"""Several times the width of any matrix of a small model: fewer, and the rounding fits the sample."""
SEQUENCE_TOKENS = 512
FILE_TYPES: Mapping[str, int] = MappingProxyType({
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "BF16": 32, "MXFP4": 38,
})  # fmt: skip
"""The number that `general.file_type` has for a file that is mostly of a format. Source: llama.cpp's `llama.h`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a person asks for."""

    source: Path
    output: Path
    format_name: str
    text: Path | None = None
    """What quality is measured on; None: the text that comes with the package."""
    calibration: Path | Literal["own", "none"] = "own"
    """Whose inputs weights are rounded for: a text; what the model writes itself; or none, rounding to the nearest."""
    may_replace: bool = False
    num_threads: int | None = None
    cache_folder: Path | None = None
    """Where the machine's roofline is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was made, and what it is worth."""

    source: str
    output: str
    mix: str
    text: str
    chip: str
    source_file_bytes: int
    output_file_bytes: int
    choices: tuple[Choice, ...]
    quality: Summary
    source_facts: Facts
    output_facts: Facts

    @property
    def bytes_by_format(self) -> Mapping[str, int]:
        """Of the weights of the smaller file, largest first."""
        return bytes_by_format(self.choices)

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """What did not fit, one sentence each pair of formats."""
        found: dict[tuple[str, int, str], int] = {}
        for choice in self.choices:
            if choice.stands_in:
                key = (choice.wanted.name, choice.shape[-1], choice.chosen.name)
                found[key] = found.get(key, 0) + 1
        return tuple(
            f"{chosen} instead of {wanted} for {count} matrices: rows of {width} values are no whole blocks of {wanted}"
            for (wanted, width, chosen), count in found.items()
        )


def run_job(settings: Settings, stage: Stage) -> Report:
    """Make the smaller file and measure it.

    Nothing is left behind when it ends early. Raises UserError for what is wrong with the settings, ModelFileError for
    what is wrong with the source, CapacityError where disk or memory do not suffice.
    """
    mix = mix_named(settings.format_name)
    _check_output(settings)
    with ExitStack() as stack:
        checkpoint = open_checkpoint(settings.source)
        stack.callback(checkpoint.close)
        if checkpoint.kind != "gguf":
            checkpoint = AsGguf(checkpoint)
        plan_model(checkpoint)
        tokenizer, template = open_text(checkpoint)
        text_name, text = _text(settings)
        token_ids = tokenizer.encode(text)
        check_text(token_ids, text_name)
        calibration = _calibration_text(settings, text, tokenizer)
        chosen = choices(mix, _listed(checkpoint))
        _check_gain(settings, mix, chosen)
        num_bytes = sum(choice.chosen_bytes for choice in chosen)
        require_free(settings.output.parent, num_bytes, what="the smaller file", hint="free some space")
        chip = open_chip("cpu", cache_folder=settings.cache_folder, num_threads=settings.num_threads)
        stack.callback(chip.close)
        if calibration is None and settings.calibration == "own" and _is_coarse(chosen):
            calibration = _own_text(checkpoint, chip, tokenizer, template, stage)
        with stage("rounding", len(chosen)) as on_progress:
            if calibration is None:
                tensors = rounded_tensors(checkpoint, chosen, on_progress)
            else:
                tensors = calibrated_tensors(checkpoint, chosen, calibration, on_progress)
        write_gguf(settings.output, _metadata(checkpoint, mix, chosen), tensors)
        result = open_checkpoint(settings.output)
        stack.callback(result.close)
        return _report(settings, mix, chosen, text_name, token_ids, checkpoint, result, chip, stage)


def _report(
    settings: Settings,
    mix: Mix,
    chosen: tuple[Choice, ...],
    text_name: str,
    token_ids: Sequence[int],
    checkpoint: Checkpoint,
    result: Checkpoint,
    chip: AnyChip,
    stage: Stage,
) -> Report:
    models = [Measured(checkpoint, chip), Measured(result, chip)]
    windows = windows_of(token_ids, min(WINDOW_TOKENS, models[0].max_tokens))
    with stage("measuring quality", len(windows)) as on_progress:
        found = quality(models[0], models[1], windows, on_progress)
    with stage("measuring speed", SPEED_ROUNDS * len(models)) as on_progress:
        source_facts, output_facts = speeds(models, token_ids, on_progress)
    return Report(
        source=str(settings.source),
        output=str(settings.output),
        mix=mix.name,
        text=text_name,
        chip=chip.facts().description,
        source_file_bytes=_file_bytes(settings.source),
        output_file_bytes=_file_bytes(settings.output),
        choices=chosen,
        quality=found,
        source_facts=source_facts,
        output_facts=output_facts,
    )


def _check_output(settings: Settings) -> None:
    output = settings.output
    if output.suffix != ".gguf":
        raise UserError(f"{output}: what is written is a GGUF file; its name must end in .gguf", field="output")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: there is no such folder", hint="make it first", field="output")
    if output.exists() and not settings.may_replace:
        raise UserError(f"{output}: exists already", hint="give another name, or --force to replace it", field="output")
    if output.exists() and settings.source.exists() and output.samefile(settings.source):
        raise UserError(f"{output}: is the source itself", hint="give another name", field="output")


def _calibration_text(settings: Settings, evaluation_text: str, tokenizer: Tokenizer) -> list[list[int]] | None:
    """The calibration text that a person gave, in sequences; None where there is none."""
    if not isinstance(settings.calibration, Path):
        return None
    text = _content(settings.calibration, "calibration")
    if text == evaluation_text:
        raise UserError(
            f"{settings.calibration}: is the text that quality is measured on, which would measure nothing then",
            hint="give another text for one of the two",
            field="calibration",
        )
    token_ids = tokenizer.encode(text)[:CALIBRATION_TOKENS]
    check_text(token_ids, str(settings.calibration))
    return windows_of(token_ids, SEQUENCE_TOKENS)


def _is_coarse(chosen: Sequence[Choice]) -> bool:
    """Whether any tensor gets so few bits that it matters how they are chosen."""
    return any(choice.is_changed and choice.chosen.bits_per_weight < formats.Q8_0.bits_per_weight for choice in chosen)


def _own_text(
    checkpoint: Checkpoint, chip: AnyChip, tokenizer: Tokenizer, template: ChatTemplate, stage: Stage
) -> list[list[int]]:
    model = load_model(checkpoint, chip)
    prompts = openings(tokenizer, template)
    num_tokens = min(CALIBRATION_TOKENS // len(prompts), model.spec.context_tokens)
    with stage("letting the model write", num_tokens - min(map(len, prompts)) + 1) as on_progress:
        return continued(chip, model, prompts, num_tokens, sorted(tokenizer.end_of_sequence_ids), on_progress)


def _text(settings: Settings) -> tuple[str, str]:
    """(what it is called, the text that quality is measured on)."""
    if settings.text is None:
        return "the text that comes with Ridgeline", (files(__package__) / "texts" / "evaluation.txt").read_text(
            "utf-8"
        )
    return settings.text.name, _content(settings.text, "text")


def _content(path: Path, field: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text", field=field) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", field=field) from None


def _listed(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...], Format]]:
    for name in checkpoint.names:
        yield name, checkpoint.shape(name), checkpoint.format(name)


def _check_gain(settings: Settings, mix: Mix, chosen: Sequence[Choice]) -> None:
    """UserError where no tensor would get smaller."""
    if any(choice.is_changed for choice in chosen):
        return
    by_format: dict[str, int] = {}
    for choice in chosen:
        if len(choice.shape) > 1:
            by_format[choice.source.name] = by_format.get(choice.source.name, 0) + 1
    found = ", ".join(f"{count} {name}" for name, count in by_format.items())
    raise UserError(
        f"{settings.source}: nothing would get smaller as {mix.name}: its matrices are {found}",
        hint="ask for a smaller format",
        field="format",
    )


def _metadata(checkpoint: Checkpoint, mix: Mix, chosen: Sequence[Choice]) -> dict[str, Any]:
    """The source's keys, with what they say of formats brought up to date."""
    kept = {key: value for key, value in checkpoint.metadata.items() if not key.startswith("split.")}
    kept["general.file_type"] = FILE_TYPES[next(iter(bytes_by_format(chosen)))]
    kept["general.quantization_version"] = 2
    kept["general.quantized_by"] = f"Ridgeline {VERSION}, {mix.name}"
    return kept


def _file_bytes(path: Path) -> int:
    """Of a file, of all parts of a model in parts, or of the weights in a folder."""
    if path.is_dir():
        return sum(part.stat().st_size for part in path.iterdir() if part.suffix in (".safetensors", ".gguf"))
    return sum(part.stat().st_size for part in part_paths(path))
