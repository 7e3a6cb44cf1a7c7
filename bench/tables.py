"""Tables for terminals and in Markdown, and where reports go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


def hand_over(text: str, value: Any, report: Path | None, json_to: Path | None) -> None:
    """Print a report, and write it and what it is made of to the files that are given."""
    if report is not None:
        report.write_text(text)
    if json_to is not None:
        json_to.write_text(json.dumps(value, indent=2) + "\n")
    print(text)


def write_columns(
    headings: Sequence[str], rows: Sequence[Sequence[str]], sides: str, line: Callable[[str], None]
) -> None:
    """sides: "<" or ">" per column. The last cell of a row that is shorter than others may be of any length."""
    whole = [row for row in [headings, *rows] if len(row) == len(headings)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(headings))]
    for row in [headings, *rows]:
        cells = [
            text.ljust(width) if side == "<" or (text is row[-1] and len(row) < len(headings)) else text.rjust(width)
            for text, width, side in zip(row, widths, sides, strict=False)
        ]
        line("  ".join(cells).rstrip())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| " + " | ".join(headings) + " |"
    yield "|---" * len(headings) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def maybe(value: float | None, times: float = 1.0) -> str:
    return "" if value is None else short(times * value)


def short(value: float) -> str:
    """Three digits or so."""
    if value == 0:
        return "0"
    if value < 0.01:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
