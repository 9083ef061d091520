"""Trying a new chat template where it can do no harm: in a process of its own, short of memory and time.

The sandbox counts what a template does; the probe is there for what nobody thought of, and for what happens before
anything can be counted (a source that brings down the parser). What was found is remembered by the template's hash, so
that a template is tried once, not at every start.

Knows: processes and their limits. Does not know: messages that people send.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ridgeline.errors import ModelFileError, UserError
from ridgeline.text.template_run import compiled, rendered

if TYPE_CHECKING:
    from jinja2 import Template

VERSION = b"1"
"""Raise it when the sandbox or the probe changes; what was found before is then tried again."""
MAX_SECONDS = 15.0
MAX_MEMORY_BYTES = 1 << 30
_HARMFUL = 3

_CONVERSATIONS: tuple[dict[str, object], ...] = (
    {"messages": [{"role": "user", "content": "Hi"}], "tools": None},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "What is the time?"},
        ],
        "tools": None,
    },
    {
        "messages": [
            {"role": "user", "content": "What is the time?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "call00001", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
                ],
            },
            {"role": "tool", "content": "12:00", "tool_call_id": "call00001", "name": "clock"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "clock",
                    "description": "The time.",
                    "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
                },
            }
        ],
    },
)


def probed(source: str, cache_folder: Path | None) -> Template:
    """The compiled template, after it was tried in a process of its own, if it was not before.

    Raises:
        ModelFileError: it is broken or harmful.
    """
    digest = hashlib.sha256(VERSION + source.encode("utf-8", "surrogatepass")).hexdigest()
    note = None if cache_folder is None else cache_folder / f"template-{digest[:32]}.tried"
    if note is None or not note.exists():
        _probe(source)
        if note is not None:
            # A folder that cannot be written to costs a second trial, nothing else.
            with contextlib.suppress(OSError):
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()
    return compiled(source)


def _probe(source: str) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "ridgeline.text.template_probe"]
    try:
        result = subprocess.run(
            command,
            input=source.encode("utf-8", "surrogatepass"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=MAX_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _harmful(f"it does not end within {MAX_SECONDS:g} seconds") from error
    if result.returncode == _HARMFUL:
        raise _harmful(result.stderr.decode("utf-8", "replace")[-500:].strip())
    if result.returncode != 0:
        raise _harmful(f"trying it brought down the process that did (status {result.returncode})")


def _harmful(reason: str) -> ModelFileError:
    return ModelFileError(
        f"the model's chat template was tried and refused: {reason}",
        hint="it comes with the model file; use another conversion of the model, or report it to its maker",
    )


def _limit_process() -> None:
    """Take from this process what a template does not need."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit of the parent remains
        return
    with contextlib.suppress(ValueError, OSError):  # a stricter limit is in force already
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    seconds = int(MAX_SECONDS)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Try the template on standard input; 0 if it is harmless, even where it does not accept a conversation."""
    _limit_process()
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    try:
        template = compiled(source)
        for conversation in _CONVERSATIONS:
            for adds_prompt in (True, False):
                variables = {
                    **conversation,
                    "add_generation_prompt": adds_prompt,
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                }
                try:
                    rendered(template, variables)
                except ModelFileError:
                    raise
                except UserError:
                    pass  # it does not accept this conversation, and says so
    except ModelFileError as error:
        print(error.message, file=sys.stderr)
        return _HARMFUL
    return 0


if __name__ == "__main__":
    sys.exit(main())
