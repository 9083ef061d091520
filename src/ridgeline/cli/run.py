"""`ridgeline run`: JSON lines in, JSON lines out, in order; resumable; a bad line is reported and skipped."""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ridgeline.cli.options import engine_settings, open_llm, said_sampling
from ridgeline.errors import RequestError, UserError
from ridgeline.llm import LLM
from ridgeline.request.output import FinishReason, RequestOutput
from ridgeline.request.sampling_params import SamplingParams

EXIT_SOME_FAILED = 3
_SAMPLING_FIELDS = frozenset(SamplingParams.__dataclass_fields__)
_ALIASES = {"max_completion_tokens": "max_tokens"}
_OTHER_FIELDS = frozenset(
    {"prompt", "prompt_token_ids", "messages", "id", "custom_id", "model", "method", "url", "body"}
)


def run(options: argparse.Namespace) -> int:
    """Answer every line of the input."""
    settings = engine_settings(options, "")
    defaults = {"max_tokens": None, **said_sampling(options)}
    SamplingParams(**defaults)
    lines = _read_lines(options.input)
    output = Path(options.output)
    num_done = _num_done(output)
    if num_done > len(lines):
        raise UserError(
            f"{output} has {num_done} answers but {options.input} has {len(lines)} lines",
            hint="the output belongs to another input; name another output file",
        )
    if num_done:
        print(f"{num_done} of {len(lines)} lines are answered already", file=sys.stderr)
    if num_done == len(lines):
        return 0
    with _Answers(output) as answers, open_llm(options, settings) as llm:
        num_failed = _answer_all(llm, lines, num_done, defaults, answers)
    if num_failed:
        print(f'{num_failed} lines could not be answered; their answers have an "error"', file=sys.stderr)
    return EXIT_SOME_FAILED if num_failed else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the input that is not blank."""

    number: int
    """As an editor counts, from 1."""
    content: bytes


class _Answers:
    """The output: each answer is appended whole before the next one. Holds: the file, unbuffered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", field="output") from None

    def append(self, answer: dict[str, Any]) -> None:
        """Write an answer. Raises UserError when the disk takes no more; what it has is cut whole at the next start."""
        # Half of a surrogate pair, which JSON can say and UTF-8 cannot, becomes JSON's own escape.
        rest = (json.dumps(answer, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror}",
                hint="the answers until here are kept; make room and give the same command again",
                field="output",
            ) from None

    def __enter__(self) -> _Answers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _answer_all(llm: LLM, lines: Sequence[Line], start: int, defaults: dict[str, Any], answers: _Answers) -> int:
    identities: dict[int, Any] = {}
    mistakes: dict[int, UserError] = {}

    def jobs() -> Iterator[tuple[Any, SamplingParams]]:
        for index in range(start, len(lines)):
            try:
                prompt, sampling, identities[index] = parsed_line(lines[index].content, defaults)
            except UserError as error:
                mistakes[index] = error
                continue
            yield prompt, sampling

    num_failed = num_tokens = 0
    index = start
    with tqdm(total=len(lines), initial=start, unit="line", file=sys.stderr, disable=None) as bar:

        def write(answer: dict[str, Any]) -> None:
            nonlocal index
            answers.append(answer)
            index += 1
            bar.update()

        def write_failure(message: str, identity: Any = None) -> None:
            nonlocal num_failed
            tqdm.write(f"line {lines[index].number}: {message}", file=sys.stderr)
            num_failed += 1
            write({"index": index, **_id(identity), "error": message})

        def write_mistakes() -> None:
            while index in mistakes:
                write_failure(mistakes.pop(index).message)

        for result in llm.map(jobs()):
            write_mistakes()
            identity = identities.pop(index, None)
            if isinstance(result, UserError):
                write_failure(result.message, identity)
                continue
            failed = [sample for sample in result.outputs if sample.finish_reason == FinishReason.ERROR.value]
            if failed:
                write_failure(str(failed[0].stop_reason), identity)
                continue
            num_tokens += sum(len(sample.token_ids) for sample in result.outputs)
            bar.set_postfix_str(f"{num_tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s", refresh=False)
            write({"index": index, **_id(identity), **_told(result)})
        write_mistakes()
    return num_failed


def parsed_line(line: bytes, defaults: dict[str, Any]) -> tuple[Any, SamplingParams, Any]:
    """(prompt or messages, sampling, the line's own id). Raises RequestError.

    A line is an object with "prompt" (text or token ids) or "messages", sampling fields by the names of
    `SamplingParams`, and "id" if wanted; or a line of an OpenAI batch file ("custom_id", "body"). A field that is null
    counts as not given.
    """
    try:
        fields = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError("not a JSON object")
    identity = fields.get("id", fields.get("custom_id"))
    if isinstance(fields.get("body"), dict):
        fields = fields["body"]
    unknown = fields.keys() - _SAMPLING_FIELDS - _OTHER_FIELDS - _ALIASES.keys()
    if unknown:
        raise RequestError(f"unknown field {min(unknown)!r}")
    given = [name for name in ("prompt", "messages", "prompt_token_ids") if fields.get(name) is not None]
    if len(given) != 1:
        raise RequestError('give one of "prompt", "prompt_token_ids" and "messages"')
    messages = fields.get("messages")
    if messages is not None and not (isinstance(messages, list) and all(isinstance(each, dict) for each in messages)):
        raise RequestError("messages is not a list of objects")
    sampling = {
        _ALIASES.get(name, name): value
        for name, value in fields.items()
        if name not in _OTHER_FIELDS and value is not None
    }
    if isinstance(sampling.get("logit_bias"), dict):
        sampling["logit_bias"] = {_token_id(token): bias for token, bias in sampling["logit_bias"].items()}
    return fields[given[0]], SamplingParams(**{**defaults, **sampling}), identity


def _token_id(text: str) -> int:
    if not text.isdecimal() or len(text) > 10:
        raise RequestError(f"logit_bias has the key {text[:40]!r}; keys must be token ids")
    return int(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _id(identity: Any) -> dict[str, Any]:
    return {} if identity is None else {"id": identity}


def _told(result: RequestOutput) -> dict[str, Any]:
    samples = [
        {
            "text": sample.text,
            "finish_reason": sample.finish_reason,
            **({} if sample.logprobs is None else {"logprobs": [asdict(entry) for entry in sample.logprobs]}),
        }
        for sample in result.outputs
    ]
    usage = {
        "prompt_tokens": len(result.prompt_token_ids),
        "completion_tokens": sum(len(sample.token_ids) for sample in result.outputs),
        "cached_tokens": 0 if result.timing is None else result.timing.num_cached_tokens,
    }
    told: dict[str, Any] = samples[0] if len(samples) == 1 else {"samples": samples}
    return {**told, "usage": usage, "seed": result.seed}


def _read_lines(name: str) -> list[Line]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}", field="input") from None
    # Only a line feed ends a line: others that text knows, such as U+2028, may stand inside JSON strings.
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [Line(number=number, content=line) for number, line in enumerate(lines, 1) if line.strip()]


def _num_done(output: Path) -> int:
    """How many whole answers the output has; a last line that was cut off is removed."""
    try:
        content = output.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise UserError(f"cannot read {output}: {error.strerror}", field="output") from None
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines()):
        try:
            is_ours = json.loads(line)["index"] == number
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise UserError(
                f"{output}, line {number + 1}: is not an answer of this program",
                hint="nothing was changed; name another output file",
                field="output",
            )
    if len(whole) < len(content):
        os.truncate(output, len(whole))
    return whole.count(b"\n")
