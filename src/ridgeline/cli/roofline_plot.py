"""A picture of a benchmark: for each case, the share of the chip's roofline that was reached."""

from __future__ import annotations

import statistics
from typing import Any

from ridgeline.errors import UserError


def draw(report: dict[str, Any], name: str) -> None:
    """Write the picture; its kind follows from the file's name. Raises UserError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--plot needs matplotlib, which is not installed", hint="pip install 'ridgeline[plot]'", field="plot"
        ) from None
    cases = report["cases"][::-1]
    shares = [statistics.median(entry["roofline_share"] for entry in case["rounds"]) for case in cases]
    rates = [statistics.median(entry["tokens_per_second"] for entry in case["rounds"]) for case in cases]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([case["name"] for case in cases], [100 * share for share in shares], color="#2f6f9f", height=0.6)
    axes.axvline(100, color="#b03030", linewidth=1.5)
    for place, (share, rate) in enumerate(zip(shares, rates, strict=True)):
        axes.text(100 * share + 1, place, f"{rate:,.0f} tokens/s", va="center", fontsize=9)
    axes.set_xlim(0, max(125.0, 100 * max(shares) + 25))
    axes.set_xlabel("share of the measured roofline, %")
    axes.set_title(f"{report['model']['name']} on {report['machine']['chip']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(name, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {name}: {error}", field="plot") from None
