"""The plots of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "ridgeline", "svg.fonttype": "none", "font.size": 8})

from matplotlib import pyplot  # noqa: E402 - the backend is chosen first

OURS_COLOUR, PEER_COLOUR = "#1f5fa8", "#b8b8b8"


class Cell(Protocol):
    """What the rounds gave."""

    @property
    def values(self) -> Sequence[float]: ...

    @property
    def median(self) -> float: ...


def draw_rates(path: Path, title: str, columns: Mapping[str, Mapping[str, Cell]]) -> None:
    """A panel for each column: medians as bars, the least and the most as whiskers."""
    filled = {name: cells for name, cells in columns.items() if cells}
    across = 3
    down = -(-len(filled) // across)
    figure, panels = pyplot.subplots(down, across, figsize=(10, 0.6 + 2.1 * down), squeeze=False)
    for panel in panels.flat[len(filled) :]:
        panel.set_axis_off()
    for panel, (name, cells) in zip(panels.flat, filled.items(), strict=False):
        rows = list(cells)[::-1]
        medians = [cells[row].median for row in rows]
        spread = [
            [median - min(cells[row].values) for row, median in zip(rows, medians, strict=True)],
            [max(cells[row].values) - median for row, median in zip(rows, medians, strict=True)],
        ]
        colours = [OURS_COLOUR if row.startswith("ridgeline") else PEER_COLOUR for row in rows]
        panel.barh(rows, medians, xerr=spread, color=colours, ecolor="#444444", capsize=2)
        panel.set_title(f"{name}, tokens/s", loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left")
    _save(figure, path)


def draw_rows(path: Path, title: str, times: Mapping[str, Mapping[int, float]]) -> None:
    """A line for each engine: what a step of several rows costs."""
    figure, panel = pyplot.subplots(figsize=(6, 3.4))
    for row, steps in times.items():
        is_ours = row.startswith("ridgeline")
        panel.plot(list(steps), list(steps.values()), marker="o", markersize=3, label=row,
                   linewidth=2.2 if is_ours else 1.0, color=OURS_COLOUR if is_ours else None)  # fmt: skip
    panel.set_xlabel("rows in a step")
    panel.set_ylabel("time over that of one row")
    panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    panel.set_title(title, loc="left")
    _save(figure, path)


def _save(figure: pyplot.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
