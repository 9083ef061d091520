"""What is wrong with a command is told in one line with a hint, status 2, before anything costs time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from ridgeline.cli.main import make_parser
from ridgeline.version import VERSION

VERBS = ("chat", "serve", "run", "bench", "quantize", "pull", "list", "chips", "doctor")
HELP_SECONDS = 0.2


def test_help_comes_at_once() -> None:
    """Processor seconds, the least of some runs: other programs on the machine can only make them more."""
    seconds = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "ridgeline", "--help"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as out:
            text = out.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0 and all(verb in text for verb in VERBS)
        seconds.append(usage.ru_utime)
    assert min(seconds) < HELP_SECONDS


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, ridgeline.cli.main as m; m.make_parser(); print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["numpy", "jinja2", "msgspec", "regex", "asyncio", "uvicorn", "starlette", "tqdm", "prometheus_client"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(call, verb) -> None:
    outcome = call(verb, "--help")
    assert outcome.status == 0 and f"usage: ridgeline {verb}" in outcome.out and outcome.err == ""


def test_every_option_says_what_it_does() -> None:
    (verbs,) = [action for action in make_parser()._actions if action.dest == "verb"]
    for parser in verbs.choices.values():
        assert [action.dest for action in parser._actions if not action.help] == []


def test_version(call) -> None:
    assert call("--version").out == f"ridgeline {VERSION}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "VERB"),
        (("frobnicate",), "frobnicate"),
        (("chat", "--temprature", "1"), "temprature"),
        (("chat", "--temperature", "warm"), "warm"),
        (("chat", "--memory", "lots"), "write it like 8GB"),
        (("chat", "--memory", "-1"), "--memory"),
        (("chat", "--kv", "int4"), "bf16"),
        (("run", "only-an-input"), "output"),
    ],
)
def test_what_cannot_be_parsed(call, arguments, words) -> None:
    outcome = call(*arguments)
    assert outcome.status == 2 and words in outcome.err and outcome.out == ""


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--threads", "0", "--threads"),
        ("--threads", "-3", "--threads"),
        ("--threads", "100000", "1 to 1024"),
        ("--threads", "9" * 30, "1 to 1024"),
        ("--memory", "0", "--memory"),
        ("--memory", "1kB", "1.0 kB were allowed"),
        ("--memory", "9000TB", "are available"),
        ("--context", "0", "--context"),
        ("--context", "1", "2 to 2048"),
        ("--context", "1000000", "2 to 2048"),
        ("--chip", "gpu", "cpu, reference"),
        ("--chip", "cpus", "did you mean cpu?"),
        ("--chip", "simulated", "simulated:h100"),
        ("--chip", "simulated:h101", "h100"),
        ("--chip", "", "cpu, reference"),
        ("--temperature", "-1", "temperature is -1.0"),
        ("--temperature", "nan", "temperature is nan"),
        ("--top-p", "0", "top_p is 0.0"),
        ("--top-k", "-2", "top_k is -2"),
        ("--min-p", "2", "min_p is 2.0"),
        ("--max-tokens", "0", "max_tokens is 0"),
        ("--max-tokens", "9" * 30, "max_tokens"),
        ("--seed", "9" * 30, "seed"),
        ("--repetition-penalty", "0", "repetition_penalty is 0.0"),
        ("--stop", "", "stop"),
    ],
)
def test_what_cannot_be(call, tiny, option, value, words) -> None:
    outcome = call("chat", tiny, "-p", "Hi", option, value)
    assert outcome.is_mistake(words) and outcome.out == "", outcome


def test_an_impossible_sampling_option_is_told_before_the_model_is_looked_for(call) -> None:
    assert call("chat", "no-such-file.gguf", "-p", "Hi", "--top-p", "7").is_mistake("top_p is 7.0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "--api-key"),
        (("--host", "203.0.113.7", "--insecure-no-auth"), "cannot listen"),
        (("--port", "70000"), "port"),
        (("--port", "-1"), "port"),
        (("--threads", "0"), "--threads"),
        (("--chip", "gpu"), "cpu, reference"),
    ],
)
def test_a_server_that_cannot_be(call, tiny, arguments, words) -> None:
    begin = time.monotonic()
    assert call("serve", tiny, *arguments).is_mistake(words)
    assert time.monotonic() - begin < 20


def test_a_server_of_no_model(call, tmp_path) -> None:
    assert call("serve", str(tmp_path / "none.gguf"), "--port", "0").is_mistake("no such file")


def test_no_output_has_escape_codes(call, tiny) -> None:
    for arguments in (("doctor",), ("list",), ("chat", tiny, "-p", "Hi", "--max-tokens", "2")):
        outcome = call(*arguments)
        assert outcome.status == 0 and not re.search(r"\x1b", outcome.err)
