"""A pipeline schedule in the terminal: its bubble, its activations in flight and the grid over time.

Pinned by tests/report/test_schedules.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from simulator.physics.schedules.grids import wrap_grid
from simulator.report.formats import percent
from simulator.report.tables import Report
from simulator.studies.schedules import ScheduleView

_COLOURS = {"F": "cyan", "B": "blue", "I": "magenta", "W": "green"}
_MEANING = {"F": "forward", "B": "backward", "I": "backward for the input", "W": "backward for the weights"}


def schedule_report(view: ScheduleView) -> Report:
    """Figures of a schedule above its grid."""
    chunks = f", {view.vpp} chunks per rank" if view.vpp > 1 else ""
    title = f"{view.kind}: {view.pp} pipeline ranks{chunks}, {view.num_microbatches} microbatches"
    report: Report = [Text(title, style="bold underline"), _figures(view), Text(""), _legend(view)]
    return [*report, _Grid(view)]


def _figures(view: ScheduleView) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    run = view.run
    together = run.makespan - run.longest_rank > 1e-9 * run.makespan
    table.add_row(
        "bubble", _against(run.own_bubble_fraction, view.theory) + (", each rank's own time" if together else "")
    )
    if together:
        note = ", where ranks begin and end together"
        table.add_row("", _against(run.bubble_fraction, view.synchronous_theory) + note)
    table.add_row("time", f"{run.makespan:g}" + (f", {run.longest_rank:g} on the longest rank" if together else ""))
    unit = "in flight" if view.vpp == 1 else "stages in flight"
    half = "" if view.kept == 1 else f", {view.kept:g} between I and W"
    table.add_row(f"most {unit}", f"{_by_rank(view.activations)}  (promised {_by_rank(view.bounds)}){half}")
    return table


def _against(fraction: float, theory: float | None) -> str:
    return percent(fraction) + (f"  (theory {percent(theory)})" if theory is not None else "  (no closed form)")


def _by_rank(counts: Sequence[float]) -> str:
    """Counts of the ranks; one number where all have as many."""
    shown = [f"{count:g}" for count in counts]
    return shown[0] if len(set(shown)) == 1 else " ".join(shown)


def _legend(view: ScheduleView) -> Text:
    used = {action.kind for row in view.run.table for action in row}
    legend = Text()
    for kind, colour in _COLOURS.items():
        if kind in used:
            legend.append(kind, style=colour)
            legend.append(f" {_MEANING[kind]} {view.times.by_kind[kind]:g}   ")
    several = any(len({action.stage for action in row}) > 1 for row in view.run.table)
    legend.append("before the letter the stage, after it the microbatch" if several else "with the microbatch")
    return legend


class _Grid:
    """The grid, wrapped by time to the width at hand."""

    def __init__(self, view: ScheduleView) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(wrap_grid(self._view.run, width=options.max_width), no_wrap=True)
        for kind, colour in _COLOURS.items():
            text.highlight_regex(rf"\d*{kind}\d+-*", colour)
        text.highlight_regex(r"(?<!\d)\.+(?!\d)", "dim")
        yield text
