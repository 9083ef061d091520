"""`ridgeline chat`: a conversation in the terminal, or one question.

The answer goes to stdout as it is made; the model card and the statistics of each answer go to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

from ridgeline.cli.options import engine_settings, open_llm, said_sampling
from ridgeline.cli.terminal import faint, for_terminal, history, read_message, tell_mistake, told_if_slow
from ridgeline.cli.words import bytes_in_words, seconds_in_words
from ridgeline.errors import UserError
from ridgeline.llm import LLM
from ridgeline.request.output import FinishReason, TokenChunk
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.weights.cache_folder import default_cache_folder

HELP = """\
/help            this text
/clear           forget the conversation
/system TEXT     set the system message and forget the conversation; without TEXT, have none
/set NAME VALUE  change max_tokens, temperature, top_p, top_k, min_p or seed; without NAME, show what is set
/quit            end (also: Ctrl-D); Ctrl-C stops an answer
\"\"\" begins and ends a message of several lines"""

SETTABLE: dict[str, type] = {
    "max_tokens": int, "temperature": float, "top_p": float, "top_k": int, "min_p": float, "seed": int,
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Talk. Raises KeyboardInterrupt if the one answer that was asked for is stopped."""
    settings = engine_settings(options, "")
    sampling = {"max_tokens": None, **said_sampling(options)}
    SamplingParams(**sampling)  # an impossible option is told before the model is loaded
    begin = time.monotonic()
    with told_if_slow("opening; the first time, the weights are packed for this machine ..."):
        llm = open_llm(options, settings)
    with llm:
        if not options.quiet:
            model = llm.model
            print(
                f"{model.name}: {model.family}, {model.format_name}, {bytes_in_words(model.weight_bytes)}; "
                f"context {model.context_tokens} tokens; opened in {seconds_in_words(time.monotonic() - begin)}",
                file=sys.stderr,
            )
        talk = _Talk(llm, sampling, options.system, is_quiet=options.quiet)
        if options.prompt is None and sys.stdin.isatty():
            talk.converse()
        elif not talk.say(_question(options.prompt)):
            raise KeyboardInterrupt
    return 0


def _question(prompt: str | None) -> str:
    """What was asked on the command line, through a pipe, or both: the prompt then comes first."""
    piped = "" if sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", "replace")
    if prompt is None:
        return piped
    return f"{prompt}\n\n{piped}" if piped.strip() else prompt


class _Talk:
    """A conversation. Holds: the messages so far, the sampling options. Changed by: `say` and the commands."""

    def __init__(self, llm: LLM, sampling: dict[str, Any], system: str | None, *, is_quiet: bool) -> None:
        self._llm = llm
        self._sampling = sampling
        self._is_quiet = is_quiet
        self._system = system
        self._messages: list[dict[str, str]] = []

    def say(self, text: str) -> bool:
        """Ask, and print the answer as it is made; whether it came to its end, before which Ctrl-C stops it."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        question = {"role": "user", "content": text}
        begin = time.monotonic()
        pieces: list[str] = []
        num_tokens = 0
        last: TokenChunk | None = None
        first_seconds = 0.0
        is_for_terminal = sys.stdout.isatty()
        chunks = self._llm.stream_chat([*system, *self._messages, question], SamplingParams(**self._sampling))
        with contextlib.closing(chunks), contextlib.suppress(KeyboardInterrupt):  # type: ignore[type-var]
            for chunk in chunks:
                first_seconds = first_seconds or time.monotonic() - begin
                pieces.append(chunk.text)
                num_tokens += len(chunk.token_ids)
                sys.stdout.write(for_terminal(chunk.text) if is_for_terminal else chunk.text)
                sys.stdout.flush()
                last = chunk
        sys.stdout.write("\n")
        sys.stdout.flush()
        if last is not None:
            self._messages += [question, {"role": "assistant", "content": "".join(pieces)}]
        if not self._is_quiet:
            self._tell(num_tokens, first_seconds, time.monotonic() - begin, last)
        return last is not None and last.finish_reason is not None

    def converse(self) -> None:
        """Read messages until the person ends it."""
        self._note("/help lists the commands")
        with history(default_cache_folder() / "chat_history"):
            while True:
                try:
                    text = read_message()
                    if text.strip() in ("/quit", "/exit", "/bye"):
                        return
                    if text.startswith("/"):
                        self._obey(text)
                    elif text.strip():
                        self.say(text)
                except EOFError:
                    print(file=sys.stderr)
                    return
                except KeyboardInterrupt:
                    print(file=sys.stderr)
                except UserError as error:
                    tell_mistake(error)

    def _obey(self, line: str) -> None:
        verb, _, rest = line.strip().partition(" ")
        match verb:
            case "/help":
                print(HELP, file=sys.stderr)
            case "/clear":
                self._messages.clear()
                self._note("the conversation is forgotten")
            case "/system":
                self._messages.clear()
                self._system = rest or None
                self._note("no system message" if self._system is None else "system message set; the rest is forgotten")
            case "/set":
                name, _, value = rest.partition(" ")
                if name:
                    self._set(name, value.strip())
                set_now = [f"{key} {value}" for key, value in self._sampling.items() if value is not None]
                self._note(", ".join(set_now) or "nothing is set")
            case _:
                raise UserError(f"there is no command {verb}", hint="/help lists them")

    def _set(self, name: str, value: str) -> None:
        if name not in SETTABLE:
            raise UserError(f"{name!r} cannot be set", hint=f"there are {', '.join(SETTABLE)}")
        try:
            changed = {**self._sampling, name: SETTABLE[name](value)}
        except ValueError:
            kind = "a whole number" if SETTABLE[name] is int else "a number"
            raise UserError(f"{name} is {value!r}; it must be {kind}") from None
        SamplingParams(**changed)
        self._sampling = changed

    def _tell(self, num_tokens: int, first_seconds: float, seconds: float, last: TokenChunk | None) -> None:
        parts = [f"{num_tokens} token{'s' * (num_tokens != 1)}", f"first after {seconds_in_words(first_seconds)}"]
        if num_tokens > 1 and seconds > first_seconds:
            parts.append(f"{(num_tokens - 1) / (seconds - first_seconds):.1f} tokens/s")
        if last is not None and last.timing is not None and last.timing.num_cached_tokens:
            parts.append(f"{last.timing.num_cached_tokens} prompt tokens from cache")
        if last is not None and last.timing is not None and last.timing.num_accepted_tokens:
            parts.append(f"{last.timing.num_accepted_tokens} tokens from speculation")
        share = self._llm.statistics().roofline_share
        if share:
            parts.append(f"{share:.0%} of the roofline")
        if last is None or last.finish_reason is None:
            parts.append("stopped")
        elif last.finish_reason is FinishReason.LENGTH:
            is_by_option = num_tokens == self._sampling["max_tokens"]
            parts.append("cut off at max_tokens" if is_by_option else "cut off, for the context is full")
        self._note("; ".join(parts))

    def _note(self, text: str) -> None:
        print(faint(text, sys.stderr), file=sys.stderr)
