"""What reports are made of: sections, tables and pairs, and how they become text.

Pinned by tests/report/test_tables.py.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

Report = list[RenderableType]

_WIDTH = 120


def render(report: Report, *, plain: bool = False, width: int | None = None) -> str:
    """Text of a report: coloured and as wide as the terminal on one, plain and 120 columns in a pipe or a file."""
    terminal = sys.stdout.isatty() and not plain
    if width is None:
        width = shutil.get_terminal_size((_WIDTH, 24)).columns if terminal else _WIDTH
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_terminal=terminal,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in report:
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


class Fitted:
    """What is drawn for the width at hand."""

    def __init__(self, draw: Callable[[Console, ConsoleOptions], RenderableType]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._draw(console, options)


def table(*columns: str) -> Table:
    """A table without lines: the first column is text, the others are numbers that do not wrap."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="left" if position == 0 else "right", header_style="dim", no_wrap=True)
    return drawn


def section(title: str, *content: RenderableType) -> Report:
    """A title, what belongs under it, and a blank line."""
    return [Text(title, style="bold"), *content, Text("")]


def pairs(title: str, rows: Sequence[tuple[str, str]]) -> Report:
    """Names with what is to be said about each."""
    drawn = table("", "")
    drawn.show_header = False
    drawn.columns[1].justify, drawn.columns[1].no_wrap = "left", False
    for row in rows:
        drawn.add_row(*row)
    return section(title, drawn)


def heading(name: str, description: str) -> Report:
    """Name and description of a scenario."""
    parts: Report = [Text(name, style="bold underline")]
    if description:
        parts.append(Text(" ".join(description.split())))
    return [*parts, Text("")]


def _warnings(warnings: Sequence[str]) -> Report:
    return [Text(f"warning: {warning}", style="yellow") for warning in warnings]


def finished(report: Report, warnings: Sequence[str]) -> Report:
    """Warnings last, and no blank line at the end."""
    return [*report, *_warnings(warnings)] if warnings else report[:-1]
