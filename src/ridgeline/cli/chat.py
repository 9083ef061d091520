"""`ridgeline chat`: a conversation in the terminal, or one question.

The answer goes to stdout as it is made; the model card and the statistics of each answer go to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ridgeline.cli.options import engine_settings, said_sampling
from ridgeline.cli.words import bytes_in_words, seconds_in_words
from ridgeline.errors import UserError
from ridgeline.llm import LLM
from ridgeline.request.output import TokenChunk
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.weights.cache_folder import default_cache_folder

HELP = """\
/help            this text
/clear           forget the conversation
/system TEXT     set the system message and forget the conversation
/set NAME VALUE  change a sampling option: max_tokens, temperature, top_p, top_k, min_p, seed
/quit            end (also: Ctrl-D); Ctrl-C stops an answer
\"\"\" begins and ends a message of several lines"""

SETTABLE: dict[str, type] = {
    "max_tokens": int, "temperature": float, "top_p": float, "top_k": int, "min_p": float, "seed": int,
}  # fmt: skip
HISTORY_LINES = 1000


def run(options: argparse.Namespace) -> int:
    """Talk."""
    settings = engine_settings(options, "")
    sampling = {"max_tokens": None, **said_sampling(options)}
    SamplingParams(**sampling)  # an impossible option is told before the model is loaded
    begin = time.monotonic()
    with LLM(
        options.model,
        chip=settings.chip,
        num_threads=settings.num_threads,
        context_tokens=settings.context_tokens,
        memory_bytes=settings.memory_bytes,
        kv_format=settings.kv_format,
    ) as llm:
        if not options.quiet:
            model = llm.model
            print(
                f"{model.name}: {model.family}, {model.format_name}, {bytes_in_words(model.weight_bytes)}; "
                f"context {model.context_tokens} tokens; opened in {seconds_in_words(time.monotonic() - begin)}",
                file=sys.stderr,
            )
        talk = _Talk(llm, sampling, options.system, is_quiet=options.quiet)
        if options.prompt is not None:
            piped = "" if sys.stdin.isatty() else _piped()
            talk.say(f"{options.prompt}\n\n{piped}" if piped.strip() else options.prompt)
        elif not sys.stdin.isatty():
            talk.say(_piped())
        else:
            talk.converse()
    return 0


def _piped() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "replace")


class _Talk:
    """A conversation. Holds: the messages so far, the sampling options. Changed by: `say` and the commands."""

    def __init__(self, llm: LLM, sampling: dict[str, Any], system: str | None, *, is_quiet: bool) -> None:
        self._llm = llm
        self._sampling = sampling
        self._is_quiet = is_quiet
        self._messages: list[dict[str, str]] = []
        self._start_over(system)

    def say(self, text: str) -> None:
        """Ask, and print the answer as it is made."""
        self._messages.append({"role": "user", "content": text})
        begin = time.monotonic()
        pieces: list[str] = []
        num_tokens = 0
        last: TokenChunk | None = None
        first_seconds = 0.0
        chunks = self._llm.stream_chat(self._messages, SamplingParams(**self._sampling))
        with contextlib.closing(chunks), contextlib.suppress(KeyboardInterrupt):  # type: ignore[type-var]
            for chunk in chunks:
                first_seconds = first_seconds or time.monotonic() - begin
                pieces.append(chunk.text)
                num_tokens += len(chunk.token_ids)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
                last = chunk
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
        if not self._is_quiet:
            self._tell(num_tokens, first_seconds, time.monotonic() - begin, last)

    def converse(self) -> None:
        """Read lines until the person ends it."""
        print("/help lists the commands", file=sys.stderr)
        with _history():
            while True:
                try:
                    text = _read_message()
                except EOFError:
                    print(file=sys.stderr)
                    return
                except KeyboardInterrupt:
                    print(file=sys.stderr)
                    continue
                if text.strip() in ("/quit", "/exit", "/bye"):
                    return
                try:
                    if text.startswith("/"):
                        self._obey(text)
                    elif text.strip():
                        self.say(text)
                except UserError as error:
                    # The question that could not be asked is not part of the conversation.
                    if self._messages and self._messages[-1]["role"] == "user":
                        self._messages.pop()
                    print(f"error: {error}", file=sys.stderr)

    def _obey(self, line: str) -> None:
        verb, _, rest = line.strip().partition(" ")
        match verb:
            case "/help":
                print(HELP, file=sys.stderr)
            case "/clear":
                self._start_over(self._messages[0]["content"] if self._has_system() else None)
            case "/system":
                self._start_over(rest or None)
            case "/set":
                name, _, value = rest.partition(" ")
                self._set(name, value)
            case _:
                raise UserError(f"there is no command {verb}", hint="/help lists them")

    def _set(self, name: str, value: str) -> None:
        if name not in SETTABLE:
            raise UserError(f"{name!r} cannot be set", hint=f"there are {', '.join(SETTABLE)}")
        try:
            changed = {**self._sampling, name: SETTABLE[name](value)}
        except ValueError:
            raise UserError(f"{value!r} is not a number") from None
        SamplingParams(**changed)
        self._sampling = changed

    def _has_system(self) -> bool:
        return bool(self._messages) and self._messages[0]["role"] == "system"

    def _start_over(self, system: str | None) -> None:
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def _tell(self, num_tokens: int, first_seconds: float, seconds: float, last: TokenChunk | None) -> None:
        rate = (num_tokens - 1) / (seconds - first_seconds) if num_tokens > 1 and seconds > first_seconds else 0.0
        parts = [f"{num_tokens} tokens", f"first after {seconds_in_words(first_seconds)}", f"{rate:.1f} tokens/s"]
        if last is not None and last.timing is not None and last.timing.num_cached_tokens:
            parts.append(f"{last.timing.num_cached_tokens} prompt tokens from cache")
        share = self._llm.statistics().roofline_share
        if share:
            parts.append(f"{share:.0%} of the roofline")
        text = "; ".join(parts)
        print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr)


def _read_message() -> str:
    line = input("> ")
    if not line.startswith('"""'):
        return line
    lines = [line[3:]]
    while not lines[-1].rstrip().endswith('"""'):
        lines.append(input("... "))
    lines[-1] = lines[-1].rstrip()[:-3]
    return "\n".join(lines)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Arrow keys and a history that is kept between conversations, where the terminal library is there."""
    try:
        import readline
    except ImportError:
        yield
        return
    path: Path = default_cache_folder() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
