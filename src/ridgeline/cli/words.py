"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ridgeline.engine.sizes import bytes_in_words

__all__ = ["bytes_in_words", "seconds_in_words", "table"]


def seconds_in_words(seconds: float) -> str:
    """0.0123 -> '12.3 ms'."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their heads, two spaces apart; columns of numbers are set to the right."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    is_number = [all(cell[:1].isdigit() or cell == "-" for cell in column[1:]) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, is_number)
        ).rstrip()
        for line in lines
    )
