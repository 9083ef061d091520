"""Ridgeline and its peers on the same weights, in turns, with the machine's own loops in every round.

    python bench/peers.py setup NAME --folder FOLDER          make one peer's environment (see bench/setup_peers.py)
    python bench/peers.py weights MODEL.gguf --folder FOLDER  write the weights of the peers that do not read GGUF
    python bench/peers.py run MODEL.gguf --folder FOLDER --json bench/results/peers-NAME.json
        [--rows "ridgeline,llama.cpp,..."] [--cases "decode @128,batch 8,..."] [--rounds 5] [--threads 2]
    python bench/report.py                                    the tables and plots of docs/performance.md

`run` uses what is there in FOLDER and says what it leaves out. A round of a case asks every row once, one after
another, the order reversed every other time; the loops that read memory and multiply int8 run before it. A run during
which other processes took more than 8 % of the CPUs is repeated, and what is written down says how often that was so.

The runs of `--json` are kept and added to, so a whole measurement can be made in pieces. Prompts are random tokens, the
same for all rows of a round; ends of sequences are ignored. `run --score` measures each row's perplexity of one text
instead, for the rows of `--json` that have none yet.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import setup_peers
from driver import Driver, PeerError, Place, load
from http_streams import Server, free_port
from lineup import CASES, CONTEXT_TOKENS, NUM_SEQUENCES, ROWS, Case, Row
from machine import MAX_FOREIGN_SHARE, facts, foreign_share, int8_operations_per_second, read_bytes_per_second
from ridgeline.text.open import open_text
from ridgeline.weights.open import open_checkpoint

TEXT = Path(__file__).parent / "data" / "varied.txt"
WINDOW_TOKENS, NUM_WINDOWS = 1024, 8
MAX_TOKEN = 100_000
"""Random prompts keep below it: every vocabulary here is larger, and its control tokens are above."""
TURN_SECONDS = 60.0
"""After so long a lock that others wait for is given up between two rounds."""
SLOW_SECONDS, SLOW_ROUNDS = 15.0, 3
"""A row that takes longer over a case is asked in this many rounds only."""

Record = dict[str, Any]


def model_facts(model: Path) -> Record:
    """What the limits are counted from."""
    checkpoint = open_checkpoint(model)
    layer_weights, touched_bytes = 0, 0
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        if name.startswith("blk.") and len(tensor.shape) > 1:
            layer_weights += tensor.num_values
        if name != "token_embd.weight" or "output.weight" not in checkpoint.names:
            touched_bytes += tensor.data.nbytes
    checkpoint.close()
    return {"file": model.name, "layer_weights": layer_weights, "touched_bytes": touched_bytes}


def prompts_of(case: Case, random: np.random.Generator) -> list[list[int]]:
    shared = random.integers(0, MAX_TOKEN, case.shared_tokens).tolist()
    own = case.prompt_tokens - case.shared_tokens
    return [shared + random.integers(0, MAX_TOKEN, own).tolist() for _ in range(case.num_prompts)]


def generated(driver: Driver, case: Case, seed: Sequence[int]) -> Record:
    """Ask once; a second time for one new token where the first answer does not tell that time."""
    random = np.random.default_rng(seed)
    answer = driver.ask("generate", prompts=prompts_of(case, random), new_tokens=case.new_tokens)
    if answer["first_seconds"] is None and case.new_tokens > 1 and not case.shared_tokens:
        answer["first_seconds"] = driver.ask("generate", prompts=prompts_of(case, random), new_tokens=1)["seconds"]
    return answer


def served(row: Row, place: Place, model: Path, case: Case, seed: Sequence[int]) -> Record:
    """All prompts at once over HTTP, after one short answer that warms the server."""
    port = free_port()
    words = {
        "environment": place.environment(row), "python": place.python(row), "port": port,
        "model": place.weights(row, model), "threads": place.num_threads,
    }  # fmt: skip
    command = [word.format(**words) for word in row.server]
    prompts = prompts_of(case, np.random.default_rng(seed))
    with Server(command, port, place.variables(row), place.pin) as server:
        server.streams([prompts[0][:64]], 4)
        with foreign_share() as foreign:
            times = server.streams(prompts, case.new_tokens)
    return {
        "seconds": times.seconds,
        "first_seconds": float(np.median(times.first_seconds)),
        "foreign_share": foreign.share,
    }


class Measurement:
    """Rounds of cases. Holds: the drivers that are loaded, and the runs so far."""

    def __init__(self, options: argparse.Namespace, place: Place, report: Record) -> None:
        self._options = options
        self._place = place
        self._report = report
        self._drivers: dict[str, Driver] = {}
        self._given_up: set[str] = set()
        self._stack = ExitStack()
        self._began = int(time.time())

    def run(self, rows: Sequence[Row], cases: Sequence[Case]) -> None:
        """Every case in every round; what was measured is written down after each round."""
        session = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lock = Lock(self._options.lock)
        with self._stack:
            self._stack.callback(lock.release)
            for row in rows:
                self._driver(row)
            for case in cases:
                slow: dict[str, int] = {}
                for number in range(self._options.rounds):
                    lock.hold()
                    self._round(rows if number % 2 == 0 else rows[::-1], case, number, session, slow)
                    self._write()

    def score(self, rows: Sequence[Row]) -> None:
        """The perplexity of the shipped text under every row that has none yet."""
        known = self._report.setdefault("perplexity", {})
        lock = Lock(self._options.lock)
        with self._stack:
            self._stack.callback(lock.release)
            windows = text_windows(self._options.model)
            for row in rows:
                driver = None if row.name in known else self._driver(row)
                if driver is None:
                    continue
                try:
                    lock.hold()
                    answer = driver.ask("loss", windows=windows)
                except PeerError as error:
                    note(str(error))
                    continue
                known[row.name] = {**answer, "perplexity": math.exp(answer["nats"] / answer["tokens"])}
                note(f"perplexity of {row.name}: {known[row.name]['perplexity']:.4f}")
                self._write()

    def _round(self, rows: Sequence[Row], case: Case, number: int, session: str, slow: dict[str, int]) -> None:
        threads = self._place.num_threads
        loops = {
            "read_bytes_per_second": read_bytes_per_second(threads),
            "int8_operations_per_second": int8_operations_per_second(threads),
        }
        for row in rows:
            if slow.get(row.name, 0) >= SLOW_ROUNDS:
                continue
            try:
                figures = self._clean(row, case, number)
            except (PeerError, ValueError) as error:
                note(f"{row.name}, {case.name}: {error}")
                self._give_up(row)
                continue
            if figures is None:
                continue
            if figures["seconds"] > SLOW_SECONDS:
                slow[row.name] = slow.get(row.name, 0) + 1
            record = {"session": session, "round": number, "row": row.name, "case": case.name, "threads": threads}
            self._report["runs"].append({**record, **figures, **loops})
            first = figures["first_seconds"] or 0.0
            note(f"{case.name} #{number} {row.name}: {figures['seconds']:.3f} s, first after {first:.3f} s, "
                 f"others {figures['foreign_share']:.1%}, {figures['num_contended']} contended")  # fmt: skip

    def _clean(self, row: Row, case: Case, number: int) -> Record | None:
        """A run that counts, or the last of too many that did not; None if the row has no part in the case."""
        is_served = case.name.startswith("server")
        driver = None if is_served else self._driver(row)
        if driver is None and not (is_served and row.server):
            return None
        if driver is not None and number == 0 and not row.warms_itself:  # whatever the first use of a shape makes
            warm = Case(name="", num_prompts=case.num_prompts, prompt_tokens=16, new_tokens=2)
            generated(driver, warm, [0])
        figures: Record = {}
        for num_contended in range(self._options.tries):
            # No prompt comes twice, or an engine that keeps prefixes would not read it again.
            seed = [self._began, CASES.index(case), number, num_contended]
            if driver is None:
                figures = served(row, self._place, self._options.model, case, seed)
            else:
                with foreign_share() as foreign:
                    figures = generated(driver, case, seed)
                figures["foreign_share"] = foreign.share
                figures["peak_resident_bytes"] = driver.resident_bytes()
            figures["num_contended"] = num_contended + (figures["foreign_share"] > MAX_FOREIGN_SHARE)
            if figures["num_contended"] == num_contended:
                break
        return figures

    def _driver(self, row: Row) -> Driver | None:
        """The row's engine, loaded; None if it cannot be had."""
        if row.name in self._given_up:
            return None
        if row.name not in self._drivers:
            try:
                sizes = {"context_tokens": CONTEXT_TOKENS, "num_sequences": NUM_SEQUENCES}
                driver = load(row, self._place, self._options.model, sizes)
            except PeerError as error:
                note(f"{row.name} is left out: {error}")
                self._given_up.add(row.name)
                return None
            self._drivers[row.name] = self._stack.enter_context(driver)
        return self._drivers[row.name]

    def _give_up(self, row: Row) -> None:
        self._given_up.add(row.name)
        if row.name in self._drivers:
            self._drivers.pop(row.name).__exit__()

    def _write(self) -> None:
        self._options.json.parent.mkdir(parents=True, exist_ok=True)
        self._options.json.write_text(lines_of(self._report))


def lines_of(report: Record) -> str:
    """JSON with a line for each entry of each part, so that two versions of a file can be compared by eye."""
    parts = []
    for name, part in report.items():
        is_list = isinstance(part, list)
        lines = [("" if is_list else f"{json.dumps(key)}: ") + json.dumps(value) for key, value in entries_of(part)]
        parts.append(
            f"{json.dumps(name)}: {'[' if is_list else '{'}\n" + ",\n".join(lines) + ("\n]" if is_list else "\n}")
        )
    return "{\n" + ",\n".join(parts) + "\n}\n"


def entries_of(part: Any) -> list[tuple[str, Any]]:
    return [("", value) for value in part] if isinstance(part, list) else list(part.items())


def text_windows(model: Path) -> list[list[int]]:
    """The shipped text as contexts of WINDOW_TOKENS, by the file's own vocabulary."""
    checkpoint = open_checkpoint(model)
    tokenizer, _ = open_text(checkpoint)
    token_ids = list(tokenizer.encode(TEXT.read_text()))
    checkpoint.close()
    starts = range(0, len(token_ids) - WINDOW_TOKENS + 1, WINDOW_TOKENS)
    return [token_ids[start : start + WINDOW_TOKENS] for start in starts][:NUM_WINDOWS]


class Lock:
    """A file's lock, so that timed work of several people takes turns. Holds: the open file while it has its turn."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._since = 0.0

    def hold(self) -> None:
        """Have the turn; give it up first, and wait for another, if it has lasted long enough."""
        if self._path is None:
            return
        if self._file is not None and time.perf_counter() - self._since > TURN_SECONDS:
            self.release()
        if self._file is None:
            self._file = self._path.open("a")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._since = time.perf_counter()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="make a peer's environment")
    setup.add_argument("name", choices=sorted(setup_peers.ENVIRONMENTS))
    setup.add_argument("--torch-from", type=Path, help="take torch from this interpreter instead of another copy")
    weights = commands.add_parser("weights", help="write the weights of the peers that do not read GGUF")
    weights.add_argument("model", type=Path)
    weights.add_argument("--torch-from", type=Path, help="the interpreter that has torch, transformers and gguf")
    run = commands.add_parser("run", help="measure")
    run.add_argument("model", type=Path)
    run.add_argument("--rows", help="names, with commas; default: all that are there, but for those held to AVX2")
    run.add_argument("--cases", help="names, with commas; default: all")
    run.add_argument("--rounds", type=int, default=5)
    run.add_argument("--tries", type=int, default=4, help="how often a contended run is made at most")
    run.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    run.add_argument("--ridgeline", default=sys.executable, help="the interpreter that has Ridgeline")
    run.add_argument("--json", type=Path, required=True)
    run.add_argument("--lock", type=Path, help="a file whose lock is held during rounds")
    run.add_argument("--score", action="store_true", help="measure perplexity and nothing else")
    for command in (setup, weights, run):
        command.add_argument("--folder", type=Path, required=True, help="where the peers' environments are")
    return parser.parse_args()


def chosen(names: str | None, known: Sequence[Any], default: Sequence[Any]) -> list[Any]:
    """Those of the names; SystemExit for one that nobody has."""
    if names is None:
        return list(default)
    by_name = {entry.name: entry for entry in known}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in by_name:
            raise SystemExit(f"there is no {name!r}; there are: {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


def main() -> int:
    options = parsed()
    options.folder = options.folder.absolute()
    if options.command == "setup":
        return setup_peers.environment(options.name, options.folder, options.torch_from)
    if options.command == "weights":
        return setup_peers.weights(options.model.absolute(), options.folder, options.torch_from)
    options.model = options.model.absolute()
    place = Place(
        folder=options.folder,
        ridgeline=options.ridgeline,
        num_threads=options.threads,
        cache_folder=options.folder / "cache",
    )
    rows: list[Row] = chosen(options.rows, ROWS, [row for row in ROWS if "avx2" not in row.name])
    for row in rows:
        if why := place.missing(row, options.model):
            note(f"{row.name} is left out: {why}")
    rows = [row for row in rows if place.missing(row, options.model) is None]
    cases: list[Case] = chosen(options.cases, CASES, CASES)
    report: Record = json.loads(options.json.read_text()) if options.json.exists() else {"runs": []}
    report.update(machine=facts(), model=model_facts(options.model))
    report["versions"] = {**report.get("versions", {}), **setup_peers.versions(rows, place)}
    place.pin()
    measurement = Measurement(options, place, report)
    if options.score:
        measurement.score(rows)
    else:
        measurement.run(rows, cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
