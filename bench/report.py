"""The tables and plots of docs/performance.md, made from what `bench/peers.py` and `bench/startup.py` wrote.

    python bench/report.py [--results bench/results] [--page docs/performance.md]

Replaces what stands between the two marks of the page, and draws docs/plots/peers-NAME.svg. Only runs that count are
used: others took at most 8 % of the CPUs. Where a cell has none, it says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineup import CASES, ROWS
from machine import MAX_FOREIGN_SHARE
from report_plots import draw_rates, draw_rows

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- made by bench/report.py: begin -->", "<!-- made by bench/report.py: end -->"
OURS = "ridgeline"
_CASES = {case.name: case for case in CASES}

Run = dict[str, Any]
Figure = Callable[[Run], float]


def prefill(run: Run) -> float:
    case = _CASES[run["case"]]
    return case.num_prompts * case.prompt_tokens / float(run["first_seconds"])


def decode(run: Run) -> float:
    case = _CASES[run["case"]]
    return case.num_prompts * (case.new_tokens - 1) / (float(run["seconds"]) - float(run["first_seconds"]))


def output(run: Run) -> float:
    case = _CASES[run["case"]]
    return case.num_prompts * case.new_tokens / float(run["seconds"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A figure of a case."""

    title: str
    case: str
    figure: Figure
    is_time: bool = False
    """Less is better."""


SPEEDS = (
    Column(title="prefill 512", case="prefill 512", figure=prefill),
    Column(title="prefill 2048", case="decode @2048", figure=prefill),
    Column(title="decode @128", case="decode @128", figure=decode),
    Column(title="decode @2048", case="decode @2048", figure=decode),
    Column(title="batch 8 decode", case="batch 8", figure=decode),
    Column(title="batch 32 decode", case="batch 32", figure=decode),
)
SERVING = (
    Column(title="shared prefix, s", case="shared prefix", figure=lambda run: float(run["seconds"]), is_time=True),
    Column(title="server 8, output tokens/s", case="server 8", figure=output),
    Column(title="time to first token, s", case="server 8", figure=lambda r: float(r["first_seconds"]), is_time=True),
)
NARROW = (SPEEDS[0], SPEEDS[2], SPEEDS[4])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the rounds gave for one row and column."""

    values: Sequence[float]
    is_clean: bool

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def words(self) -> str:
        shown = [in_words(value) for value in (self.median, min(self.values), max(self.values))]
        mark = "" if self.is_clean else " contended"
        many = len(self.values) > 1
        return f"{shown[0]} [{shown[1]}-{shown[2]}] ×{len(self.values)}{mark}" if many else f"{shown[0]} ×1{mark}"


class Report:
    """What was measured with one model. Holds: the runs, read only."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.name = path.stem.removeprefix("peers-")
        self.machine: dict[str, Any] = content["machine"]
        self.model: dict[str, Any] = content["model"]
        self.versions: dict[str, list[str]] = content["versions"]
        self.perplexity: dict[str, dict[str, float]] = content.get("perplexity", {})
        self.runs: list[Run] = content["runs"]
        self.rows = [row.name for row in ROWS if any(run["row"] == row.name for run in self.runs)]

    def of(self, row: str, case: str, threads: int) -> tuple[list[Run], bool]:
        """The runs that count, or all of them where none does, and which it is."""
        runs = [run for run in self.runs if (run["row"], run["case"], run["threads"]) == (row, case, threads)]
        clean = [run for run in runs if run["foreign_share"] <= MAX_FOREIGN_SHARE]
        return clean or runs, bool(clean)

    def cell(self, row: str, column: Column, threads: int) -> Cell | None:
        runs, is_clean = self.of(row, column.case, threads)
        if not runs:
            return None
        return Cell(values=[column.figure(run) for run in runs], is_clean=is_clean)

    def clean(self, row: str, case: str, threads: int) -> dict[tuple[str, int], Run]:
        """The runs that count, by session and round."""
        runs, is_clean = self.of(row, case, threads)
        return {(run["session"], run["round"]): run for run in runs if is_clean}

    def ratio(self, column: Column, peer: str, threads: int, ours: str = OURS) -> float | None:
        """How many times better we are: the median over the rounds in which both count."""
        theirs = self.clean(peer, column.case, threads)
        pairs = []
        for key, run in self.clean(ours, column.case, threads).items():
            if key in theirs:
                ratio = column.figure(run) / column.figure(theirs[key])
                pairs.append(1 / ratio if column.is_time else ratio)
        return statistics.median(pairs) if pairs else None

    def share(self, row: str, column: Column, threads: int, limit: Callable[[Run], float]) -> float | None:
        """The median share that the row reached of a limit of the same round."""
        runs = self.clean(row, column.case, threads).values()
        return statistics.median(column.figure(run) / limit(run) for run in runs) if runs else None

    def kept(self, row: str, short: Column, long: Column, threads: int) -> float | None:
        """The speed with a long context over that with a short one: the median over the rounds that have both."""
        shorts = self.clean(row, short.case, threads)
        longs = self.clean(row, long.case, threads)
        ratios = [long.figure(longs[key]) / short.figure(shorts[key]) for key in shorts.keys() & longs.keys()]
        return statistics.median(ratios) if ratios else None

    def limit(self, column: Column) -> Callable[[Run], float]:
        """Tokens a second that the loop of the round allows: int8 products for prompts, bytes for one answer."""
        if column.figure is prefill:
            return lambda run: float(run["int8_operations_per_second"]) / (2 * self.model["layer_weights"])
        return lambda run: float(run["read_bytes_per_second"]) / self.model["touched_bytes"]


def in_words(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def speeds(report: Report, columns: Sequence[Column], rows: Sequence[str], threads: int, *, scored: bool) -> str:
    """A line for each row that took part, and under it how many times faster we are."""
    lines = []
    for row in rows:
        cells = [report.cell(row, column, threads) for column in columns]
        if not any(cells):
            continue
        facts = []
        if scored:
            facts.append(f"{report.perplexity[row]['perplexity']:.3f}" if row in report.perplexity else "-")
            runs, _ = report.of(row, "prefill 512", threads)
            facts.append(f"{min(run['peak_resident_bytes'] for run in runs) / 1e6:,.0f}" if runs else "-")
        lines.append([row, *facts, *(cell.words() if cell else "-" for cell in cells)])
    heads = ["perplexity", "resident MB"] if scored else []
    return markdown(["", *heads, *(column.title for column in columns)], lines)


def ratios(report: Report, columns: Sequence[Column], pairs: Sequence[tuple[str, str]], threads: int) -> str:
    lines = []
    for ours, peer in pairs:
        found = [report.ratio(column, peer, threads, ours) for column in columns]
        if any(found):
            lines.append([f"{ours} over {peer}", *(f"{ratio:.2f}" if ratio else "-" for ratio in found)])
    return markdown(["", *(column.title for column in columns)], lines)


def shares(report: Report, rows: Sequence[str], threads: int) -> str:
    """Prefill over the int8 loop, decode over the read loop, of the same rounds; and what a long context leaves."""
    columns = SPEEDS[:4]
    lines = []
    for row in rows:
        found = [report.share(row, column, threads, report.limit(column)) for column in columns]
        found += [report.kept(row, short, long, threads) for short, long in (columns[:2], columns[2:])]
        lines.append([row, *(f"{share:.0%}" if share else "-" for share in found)])
    heads = [f"{c.title} of {'int8' if c.figure is prefill else 'read'} loop" for c in columns]
    return markdown(["", *heads, "prefill 2048 of 512", "decode @2048 of @128"], lines)


def row_times(report: Report, threads: int) -> dict[str, dict[int, float]]:
    """Seconds of a step by the number of rows in it, over those of one row: the median over the rounds with both."""
    cases = sorted((case for case in CASES if case.name.startswith("rows ")), key=lambda case: case.num_prompts)
    found: dict[str, dict[int, float]] = {}
    for row in report.rows:
        ones = report.clean(row, "rows 1", threads)
        steps: dict[int, float] = {}
        for case in cases:
            runs = report.clean(row, case.name, threads)
            # A step writes a token after each prompt.
            ratios = [case.num_prompts * decode(ones[key]) / decode(runs[key]) for key in ones.keys() & runs.keys()]
            if ratios:
                steps[case.num_prompts] = statistics.median(ratios)
        if steps:
            found[row] = steps
    return found


def row_table(times: dict[str, dict[int, float]]) -> str:
    numbers = sorted({number for steps in times.values() for number in steps})
    lines = [[row, *(f"{steps[n]:.2f}" if n in steps else "-" for n in numbers)] for row, steps in times.items()]
    return markdown(["rows in a step", *map(str, numbers)], lines)


def loops(report: Report) -> str:
    read = [run["read_bytes_per_second"] / 1e9 for run in report.runs if run["threads"] == 2]
    int8 = [run["int8_operations_per_second"] / 1e12 for run in report.runs if run["threads"] == 2]
    contended = sum(run["num_contended"] for run in report.runs)
    return (
        f"Read loop {statistics.median(read):.1f} GB/s [{min(read):.1f}-{max(read):.1f}], int8 loop "
        f"{statistics.median(int8):.2f} TOPS [{min(int8):.2f}-{max(int8):.2f}]; {len(report.runs)} runs, "
        f"{contended} more were contended and made again."
    )


def section(report: Report, plots: Path) -> str:
    """All of one model."""
    rows = [row for row in report.rows if "avx2" not in row]
    pairs = [(OURS, row) for row in rows if row != OURS]
    title = report.name.replace("qwen2.5-coder-", "Qwen2.5-Coder-").replace("b", "B")
    parts = [f"### {title}", loops(report)]
    parts += [
        "Tokens a second, median [least-most] × how many runs count:",
        speeds(report, SPEEDS, rows, 2, scored=True),
    ]
    parts += ["How many times faster, median over the rounds:", ratios(report, SPEEDS, pairs, 2)]
    parts.append(
        "Share of the loops of the same round, at the file's bytes, and what a long context leaves of a speed "
        "(two cases, minutes apart, so the last two columns are not proven):"
    )
    parts.append(shares(report, rows, 2))
    draw_rates(
        plots / f"peers-{report.name}.svg",
        title,
        {c.title: {r: cell for r in rows if (cell := report.cell(r, c, 2))} for c in SPEEDS},
    )
    parts.append(f"![speeds](plots/peers-{report.name}.svg)")
    if times := row_times(report, 2):
        draw_rows(plots / f"rows-{report.name}.svg", title, times)
        parts += [
            "Time of a step with several rows over that of one row (minutes apart, so not proven):",
            row_table(times),
        ]
        parts.append(f"![rows](plots/rows-{report.name}.svg)")
    if any(report.cell(row, column, 2) for row in rows for column in SERVING):
        parts += ["Requests at once:", speeds(report, SERVING, rows, 2, scored=False)]
        parts.append(ratios(report, SERVING, pairs, 2))
    if any(run["threads"] == 1 for run in report.runs):
        parts += ["One core:", speeds(report, NARROW, rows, 1, scored=False), ratios(report, NARROW, pairs, 1)]
    if narrow := [row for row in report.rows if "avx2" in row]:
        parts += ["AVX2 only:", speeds(report, NARROW, narrow, 2, scored=False)]
        parts.append(ratios(report, NARROW, [("ridgeline avx2", row) for row in narrow[1:]], 2))
    versions = "; ".join(f"{row}: {', '.join(report.versions[row])}" for row in report.rows if row in report.versions)
    return "\n\n".join([*parts, f"Versions: {versions}."])


def startup(path: Path) -> str:
    """From the start of a process to its first token, and its memory."""
    content = json.loads(path.read_text())
    lines = []
    for name, entries in content["rounds"].items():
        figure = "answer_seconds" if "answer_seconds" in entries[0] else "first_byte_seconds"
        if name == "llama-completion":
            figure = "end_seconds"  # it echoes the prompt, so its first byte says nothing
        seconds = [entry[figure] for entry in entries]
        lines.append([name, f"{statistics.median(seconds):.2f} [{min(seconds):.2f}-{max(seconds):.2f}]"])
    memory = content["memory"]
    return "\n\n".join(
        [
            f"{content['model']}, {len(entries)} rounds:",
            markdown(["", "seconds to the first token"], lines),
            f"Most resident while {memory['prompt_tokens']:.0f} tokens were read and 64 written: "
            f"{memory['resident_bytes'] / 1e6:.0f} MB, {memory['ratio']:.2f} times weights, keys and values.",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    plots = options.page.parent / "plots"
    plots.mkdir(exist_ok=True)
    parts = [section(Report(path), plots) for path in sorted(options.results.glob("peers-*.json"))]
    starts = [startup(path) for path in sorted(options.results.glob("startup-*.json"))]
    text = "\n\n".join(
        [BEGIN, *parts, *(["### From process start to the first token", *starts] if starts else []), END]
    )
    page = options.page.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{options.page} lacks the marks {BEGIN} and {END}")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    options.page.write_text(before + text + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
