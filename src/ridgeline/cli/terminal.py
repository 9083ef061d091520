"""The person's terminal: what may be written to it, and how a message is read from it.

Knows: terminals, line editing. Does not know: models, conversations.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ridgeline.errors import UserError

HISTORY_LINES = 1000
SLOW_SECONDS = 1.5
QUOTES = '"""'

# A model can be made to write what moves the cursor, renames the window or answers in the person's place.
_SHOWN = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\ufffd") | {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def for_terminal(text: str) -> str:
    """The text without what a terminal would obey instead of show."""
    return text.translate(_SHOWN)


def faint(text: str, stream: TextIO) -> str:
    """The text, paler than its surroundings where `stream` is a terminal and nobody asked for no colours."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if is_plain else f"\033[2m{text}\033[0m"


def tell_mistake(error: UserError) -> None:
    """What is wrong, and what to do about it."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Warnings that are meant for the person (UserWarning) are told as notes, without the place in the code, once."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if str(message) not in told:
            told.add(str(message))
            print(f"note: {message}", file=sys.stderr)

    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def told_if_slow(text: str) -> Iterator[None]:
    """Say what is being waited for, if it takes long."""
    timer = threading.Timer(SLOW_SECONDS, lambda: print(faint(text, sys.stderr), file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_message() -> str:
    """The next message: a line, or several between triple quotes. Raises EOFError, KeyboardInterrupt."""
    line = _read_line("> ")
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(_read_line("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    # Answers go to a file: the prompt is no part of them.
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


@contextlib.contextmanager
def history(path: Path) -> Iterator[None]:
    """Arrow keys and lines that are kept between conversations, where the terminal library is there."""
    try:
        import readline
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
