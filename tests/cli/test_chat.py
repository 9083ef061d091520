"""`ridgeline chat`: one question, a pipe, a conversation, and what may go wrong meanwhile."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ridgeline.chips.cpu import roofline
from ridgeline.cli import terminal

GREEDY = ("--temperature", "0", "--max-tokens", "6")
SLOW = ("--chip", "reference", "--kv", "f32", "--temperature", "0")
"""So that the endless model takes seconds to fill its context."""
WAIT_SECONDS = 30


def test_one_question(call, tiny) -> None:
    outcome = call("chat", tiny, "-p", "Hello", *GREEDY)
    assert outcome.status == 0 and outcome.out.endswith("\n") and len(outcome.out) > 1
    card, numbers = outcome.err.splitlines()
    assert card.startswith("tiny: llama, F32, 1.5 MB; context 2048 tokens")
    assert numbers.startswith("6 tokens; first after") and numbers.endswith("cut off at max_tokens")


def test_the_folder_answers_as_the_file_does(call, tiny, models) -> None:
    answers = {call("chat", model, "-p", "Hello", *GREEDY).out for model in (tiny, str(models / "tiny"))}
    assert len(answers) == 1


def test_quiet(call, tiny) -> None:
    outcome = call("chat", tiny, "-p", "Hello", "--quiet", *GREEDY)
    assert outcome.status == 0 and outcome.out and outcome.err == ""


def test_a_pipe_is_the_question_or_follows_it(call, tiny) -> None:
    def tokens_in(*arguments: str, stdin: bytes = b"") -> str:
        return call("chat", tiny, *arguments, "--quiet", *GREEDY, stdin=stdin).out

    assert tokens_in(stdin=b"Hello") == tokens_in("-p", "Hello") == tokens_in("-p", "Hello", stdin=b" \n")
    assert tokens_in("-p", "Read", stdin=b"Hello") == tokens_in("-p", "Read\n\nHello") != tokens_in("-p", "Read")


def test_a_pipe_of_any_bytes(call, tiny) -> None:
    assert call("chat", tiny, *GREEDY, stdin=bytes(range(256))).status == 0


def test_the_system_message_and_the_seed_count(call, tiny) -> None:
    def answer(*arguments: str) -> str:
        return call("chat", tiny, "-p", "Hello", "--quiet", "--max-tokens", "12", *arguments).out

    assert answer("--seed", "1") == answer("--seed", "1") != answer("--seed", "2")
    assert answer("--seed", "1") != answer("--seed", "1", "-s", "Be brief.")


def test_a_question_longer_than_the_context(call, tiny) -> None:
    outcome = call("chat", tiny, "-p", "a b " * 2000)
    assert outcome.is_mistake("2048", "tokens") and outcome.hint and outcome.out == ""


def test_an_answer_longer_than_the_context_says_so(call, endless) -> None:
    outcome = call("chat", endless, "-p", "Hello", "--context", "64", "--temperature", "0")
    assert outcome.status == 0 and outcome.err.endswith("cut off, for the context is full\n")


@contextmanager
def nowhere(folder: Path) -> Iterator[Path]:
    (folder / "file").touch()
    yield folder / "file" / "cache"


@contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """64 kB, which the packed weights do not fit into."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def read_only_disk(folder: Path) -> Iterator[Path]:
    with tiny_disk(folder) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield disk


@pytest.mark.parametrize("place", [nowhere, tiny_disk, read_only_disk], ids=lambda place: place.__name__)
def test_a_cache_folder_that_takes_nothing(
    call, tiny, tmp_path, monkeypatch, place: Callable[[Path], contextmanager]
) -> None:
    expected = call("chat", tiny, "-p", "Hello", "--quiet", *GREEDY).out
    monkeypatch.setattr(roofline, "SECONDS_EACH", 0.005)
    with place(tmp_path) as folder:
        monkeypatch.setenv("RIDGELINE_CACHE", str(folder))
        outcome = call("chat", tiny, "-p", "Hello", "--quiet", *GREEDY)
        left = [path.name for path in folder.rglob("*.partial")] if place is tiny_disk else []
    assert outcome.status == 0 and outcome.out == expected and left == []
    # A slow machine is also told that the model is being opened.
    (note,) = (line for line in outcome.err.splitlines() if "note:" in line)
    assert note.partition("note: ")[2].startswith("packed weights stay in memory")


def test_letters_that_the_terminal_has_not(environment, tiny) -> None:
    command = [sys.executable, "-m", "ridgeline", "chat", tiny, "-p", "Hello", *GREEDY]
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, env={**environment, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0 and done.stdout.isascii() and b"Traceback" not in done.stderr


def _heed_interrupts() -> None:
    """As at a terminal: what a shell runs in the background inherits that they are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def answering(environment: dict[str, str], model: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that was asked one question and has begun to answer."""
    command = [sys.executable, "-m", "ridgeline", "chat", model, "-p", "Hello", *SLOW]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=_heed_interrupts,
    ) as process:
        os.read(process.stdout.fileno(), 1)
        yield process


def test_a_reader_that_goes_away(environment, endless) -> None:
    with answering(environment, endless) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 1


def test_an_interrupt_ends_the_one_answer(environment, endless) -> None:
    with answering(environment, endless) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in said and said.rstrip().endswith(b"stopped")


class Terminal:
    """A person at a terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str, *, count: int = 1) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while len(re.findall(pattern, self.seen)) < count:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._ours, 4096).decode("utf-8", "replace")
                except OSError:
                    pytest.fail(f"the conversation ended: {self.seen}")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.mark.parametrize("has_colours", [True, False], ids=["colours", "no colours"])
def test_a_conversation(environment, endless, tmp_path, has_colours) -> None:
    environment |= {"RIDGELINE_CACHE": str(tmp_path), "TERM": "xterm"} | ({} if has_colours else {"NO_COLOR": "1"})
    command = [sys.executable, "-m", "ridgeline", "chat", endless, *SLOW]
    with Terminal(command, environment) as person:
        person.wait_for("> $")
        person.type("/help\n")
        person.wait_for("Ctrl-D")
        person.type("/nonsense\n")
        person.wait_for("error: there is no command /nonsense\r\nhint: /help")
        person.type("/set top_p high\n")
        person.wait_for("error: top_p is 'high'; it must be a number")
        person.type("/set max_tokens 5\n")
        person.wait_for("max_tokens 5")
        person.type("Hello\n")
        person.wait_for("5 tokens; .*cut off at max_tokens")
        person.type('"""\nof several\nlines"""\n')
        person.wait_for(r"\.\.\. ", count=2)
        person.wait_for("5 tokens; ", count=2)
        person.type("/clear\n")
        person.wait_for("forgotten")
        person.type("/set max_tokens 2000\n")
        person.wait_for("max_tokens 2000, temperature")
        person.type("Go on and on\n")
        # What is typed ahead of the prompt is echoed twice: the answer follows the second.
        person.wait_for("> Go on and on\r\n(.|\n){20}")
        person.process.send_signal(signal.SIGINT)
        person.wait_for("tokens?; .*stopped")
        person.type("x" * 3000 + "\n")
        person.wait_for("error: the prompt has")
        person.type("/quit\n")
        assert person.process.wait(WAIT_SECONDS) == 0
    assert "Traceback" not in person.seen
    assert ("\x1b[2m" in person.seen) is has_colours
    assert "Go on and on" in (tmp_path / "chat_history").read_text()


def test_the_end_of_input_ends_a_conversation(environment, tiny) -> None:
    with Terminal([sys.executable, "-m", "ridgeline", "chat", tiny], environment) as person:
        person.wait_for("> $")
        person.type("\x04")
        assert person.process.wait(WAIT_SECONDS) == 0


def test_what_a_model_writes_is_shown_and_not_obeyed() -> None:
    shown = terminal.for_terminal("a\x1b]0;title\x07\x9b2J\x00\x08b\x7f\ttab\r\nline \u00e9\u4f60")
    assert shown == "a\ufffd]0;title\ufffd\ufffd2J\ufffd\ufffdb\ufffd\ttab\nline \u00e9\u4f60"
