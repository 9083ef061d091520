"""`ridgeline`: the verbs, and how a mistake is told.

Only what `--help` needs is imported here; each verb imports the rest when it runs, so that help comes at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from ridgeline.cli.options import add_engine_options, add_model_argument, add_sampling_options
from ridgeline.cli.terminal import notes, tell_mistake
from ridgeline.errors import RidgelineError, UserError
from ridgeline.version import VERSION

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="ridgeline", description="Run large language models at the limit of the chip you have, and see how near."
    )
    parser.add_argument("--version", action="version", version=f"ridgeline {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    chat = _verb(verbs, "chat", "talk with a model in the terminal, or ask it one thing")
    add_model_argument(chat)
    chat.add_argument(
        "-p", "--prompt", help="ask this and end; without it, a terminal gets a conversation, a pipe is read"
    )
    chat.add_argument("-s", "--system", help="the system message")
    chat.add_argument("--quiet", action="store_true", help="no model card, no statistics")
    add_sampling_options(chat)
    add_engine_options(chat)

    serve = _verb(verbs, "serve", "serve a model over an OpenAI-compatible API")
    add_model_argument(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes any free one (default: 8000)")
    serve.add_argument("--api-key", action="append", default=[], metavar="KEY",
                       help="ask clients for this key; may be repeated (also: RIDGELINE_API_KEY)")  # fmt: skip
    serve.add_argument("--insecure-no-auth", action="store_true", help="listen beyond this machine without a key")
    serve.add_argument("--name", help="what the model is called in the API (default: the file's name)")
    serve.add_argument("--drain-seconds", type=float, default=30.0,
                       help="how long running requests may take to finish after SIGTERM (default: 30)")  # fmt: skip
    add_engine_options(serve)

    run = _verb(verbs, "run", "answer a file of requests: JSON lines in, JSON lines out, in order")
    run.add_argument("input", help='JSON lines with "prompt" or "messages" and sampling fields; - for stdin')
    run.add_argument("output", help="where answers go; if it exists, the lines that it has are not run again")
    run.add_argument("-m", "--model", help="the model (see: ridgeline pull --help)")
    add_sampling_options(run)
    add_engine_options(run)

    bench = _verb(verbs, "bench", "measure prefill, decode and batches, and the share of the roofline reached")
    add_model_argument(bench)
    bench.add_argument("--json", metavar="FILE", help="write every number with the machine's facts")
    bench.add_argument("--plot", metavar="FILE", help="draw the roofline with what was reached (needs ridgeline[plot])")
    bench.add_argument("--rounds", type=int, default=3, help="how often each case is measured (default: 3)")
    add_engine_options(bench)

    quantize = _verb(verbs, "quantize", "make a model file smaller, and measure what that costs and brings")
    quantize.add_argument(
        "source", help="a GGUF file of any format, a folder with safetensors, hf:ORG/NAME[:FILE], ..."
    )
    quantize.add_argument("-o", "--output", required=True, metavar="OUT.gguf", help="the file to write")
    quantize.add_argument("--format", default="q4", metavar="MIX",
                          help="q8, q5, q4-high, q4 (default), or one format of GGUF files such as Q5_K")  # fmt: skip
    quantize.add_argument("--text", metavar="FILE", help="measure quality on this text (default: one that comes along)")
    quantize.add_argument("--calibration", default="own", metavar="FILE",
                          help="round weights for the inputs that this text makes; own: for what the model itself "
                          "writes (default); none: to the nearest")  # fmt: skip
    quantize.add_argument("--force", action="store_true", help="replace the output if it exists")
    quantize.add_argument("--json", metavar="FILE", help="write every number with the machine's facts")
    quantize.add_argument("--threads", type=int, help="CPU threads (default: as many as this process may use)")

    pull = _verb(verbs, "pull", "bring a model here")
    add_model_argument(pull)

    _verb(verbs, "list", "list the models that are here")

    chips = _verb(verbs, "chips", "list the chips and their rooflines")
    chips.add_argument("--measure", action="store_true", help="measure this machine again")

    doctor = _verb(verbs, "doctor", "check this machine: instruction sets, memory, cache folder, packages")
    doctor.add_argument("model", nargs="?", help="also check whether this model would run here")
    return parser


def _verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter ends nothing
    try:
        with notes():
            status: int = import_module(f"ridgeline.cli.{options.verb}").run(options)
        return status
    except UserError as error:
        tell_mistake(error)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said, not even by the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RidgelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
