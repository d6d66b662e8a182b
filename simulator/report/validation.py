"""Validation against measured runs for people: errors by group, what was refused and why, every row as CSV, a picture.

Pinned by tests/report/test_validation.py.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.table import Table
from rich.text import Text

from simulator.report.tables import Report
from simulator.studies.runs.score import Outcome, by_group
from simulator.studies.validate_runs import Validation

_SHOWN = 12  # reasons for refusing; the others are counted


def validation_report(found: Validation) -> Report:
    """Errors by group and overall, and what was refused."""
    figures = found.figures()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("group")  # a long name takes two lines of a narrow terminal, figures are never cut
    for header in ("rows", "refused", "MAPE", "bias", "worst", "rank corr."):
        table.add_column(header, justify="right", no_wrap=True)
    for group in figures["groups"]:
        worst = group["worst"] or {"id": "", "error": None}
        correlation = group["rank_correlation"]
        table.add_row(
            group["group"],
            str(group["rows"]),
            str(group["refused"]),
            _percent(group["mape"]),
            _percent(group["bias"], signed=True),
            _percent(worst["error"], signed=True),
            "-" if correlation is None else f"{correlation:.3f}",
        )
    total = figures["overall"]
    counts = (str(total["rows"]), str(total["refused"]))
    table.add_row("overall", *counts, _percent(total["mape"]), _percent(total["bias"], signed=True), style="bold")
    table.add_row("mean of groups", "", "", _percent(total["mean_of_groups"]), style="bold")
    title = Text("Training runs: predicted / measured - 1 of the step time (negative = optimistic)", style="bold")
    return [title, table, *_worst(found.outcomes), *_refusals(found.outcomes)]


def _worst(outcomes: tuple[Outcome, ...]) -> Report:
    """The row with the largest error; --json has that of every group."""
    scored = [each for each in outcomes if each.error is not None]
    if not scored:
        return []
    worst = max(scored, key=lambda each: abs(each.error or 0.0))
    return [Text(f"worst: {worst.id}, {_percent(worst.error, signed=True)}")]


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def _refusals(outcomes: tuple[Outcome, ...]) -> Report:
    reasons = Counter(each.refused for each in outcomes if each.refused is not None and not each.malformed)
    if not reasons:
        return []
    count = sum(reasons.values())
    lines: Report = [Text(f"Refused: {count} {'row' if count == 1 else 'rows'} that the simulator cannot represent")]
    lines += [Text(f"  {count}: {reason}") for reason, count in reasons.most_common(_SHOWN)]
    if len(reasons) > _SHOWN:
        lines.append(Text(f"  and {len(reasons) - _SHOWN} other reasons; --json names all"))
    return lines


def rows_csv(found: Validation) -> str:
    """Every row: predicted, measured, error, reason when refused, what was assumed."""
    text = io.StringIO()
    columns = ("id", "group", "predicted", "measured", "error", "refused", "assumed")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for each in found.outcomes:
        figures: dict[str, Any] = each.figures()
        figures["assumed"] = json.dumps(figures["assumed"], ensure_ascii=False) if figures["assumed"] else ""
        writer.writerow(figures)
    return text.getvalue()


def plot_validation(found: Validation, path: Path) -> None:
    """Predicted against measured, one small picture per group, into a new PNG, SVG or PDF."""
    groups = {
        name: [each for each in rows if each.error is not None] for name, rows in by_group(found.outcomes).items()
    }
    groups = {name: rows for name, rows in groups.items() if rows}
    across = min(4, len(groups))
    down = math.ceil(len(groups) / across)
    figure = Figure(figsize=(3.2 * across, 3.0 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, (name, rows) in zip(axes, groups.items(), strict=False):
        measured = [each.measured or 0.0 for each in rows]
        predicted = [each.predicted or 0.0 for each in rows]
        low, high = 0.8 * min(*measured, *predicted), 1.25 * max(*measured, *predicted)
        axis.fill_between([low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color="#dddddd", zorder=0)
        axis.plot([low, high], [low, high], color="#888888", linewidth=0.8, zorder=1)
        axis.scatter(measured, predicted, s=9, color="#0072B2", zorder=2)
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        error = sum(abs(each.error or 0.0) for each in rows) / len(rows)
        axis.set_title(f"{name[:34]}\n{len(rows)} rows, MAPE {100 * error:.1f} %", fontsize=7)
        axis.tick_params(labelsize=6, which="both")
        for each in (axis.xaxis, axis.yaxis):
            _plain_ticks(each, high / low)
    for axis in axes[len(groups) :]:
        axis.remove()
    figure.supxlabel("measured step, s", fontsize=8)
    figure.supylabel("predicted step, s (band: within 10 %)", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix == ".png" else None)


def _plain_ticks(axis: Axis, span: float) -> None:
    """Few round numbers instead of a power of ten at each tick: the narrower the axis, the finer the steps."""
    steps = (1.0,) if span > 100 else (1.0, 3.0) if span > 10 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
