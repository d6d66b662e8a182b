"""Replications for people: what can be promised, the MFU that is lost in the mean, and differences in pairs.

Pinned by tests/report/test_replications.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from simulator.report.formats import by_key, count, is_fraction, percent, points
from simulator.report.layout import Report, finished, section, table
from simulator.results.replications import Replications

_NAMES = {
    "finish_days": "finish (days)",
    "effective_mfu": "effective MFU",
    "failure_induced_mfu_loss": "MFU lost to failures",
    "goodput": "goodput",
    "failures": "failures",
    "interruptions": "that stop the job",
    "cost_usd": "cost",
    "energy_kwh": "energy",
}
_UNITS = {
    "finish_days": "d",
    "effective_mfu": "%",
    "failure_induced_mfu_loss": "points",
    "goodput": "%",
    "cost_usd": "USD",
    "energy_kwh": "kWh",
}
_CAUSES = 8
_UNBOUNDED = "?: too few replications to bound this side with confidence; P10 and P90 need 36 of them, P50 6"


def replications_report(found: Replications) -> Report:
    """One table a scenario, then the differences from the first."""
    report: Report = [Text(_title(found)), Text("")]
    for position, name in enumerate(found.names):
        report += _quantiles(found, position, name) + _loss(found, position)
    for position, name in enumerate(found.names):
        if position:
            report += _differences(found, position, name)
    return finished(report, [])


def _title(found: Replications) -> str:
    done, reached = len(found.rows), found.reached
    known = "" if reached is None else f"; the mean wall-clock is known to ± {100 * reached:.2g} %"
    endings = {
        "number": f"{count(done)} replications{known}",
        "precision": f"{count(done)} replications, enough for the precision asked for{known}",
        "interrupted": f"interrupted: {count(done)} of {count(found.asked)} replications were finished{known}",
    }
    missed = found.precision is not None and found.stopped == "number"
    return endings[found.stopped] + (f", not to the {100 * (found.precision or 0):.2g} % asked for" if missed else "")


def _quantiles(found: Replications, position: int, name: str) -> Report:
    """Quantiles and mean of each figure, and below each its 95 % confidence interval."""
    drawn, open_ended = table("", "P10", "P50", "P90", "mean"), False
    for figure, title in _NAMES.items():
        summary = found.summaries[position][figure]
        if summary is None or (figure == "interruptions" and summary == found.summaries[position]["failures"]):
            continue
        columns, scale = ("p10", "p50", "p90", "mean"), _scale(figure, summary["mean"])
        drawn.add_row(title, *(_value(figure, summary[column], scale) for column in columns))
        if len(found.rows) > 1 and summary["least"] < summary["most"]:
            intervals = [summary[f"{column}_interval"] for column in columns]
            open_ended |= any(ends is not None and None in ends for ends in intervals)
            drawn.add_row("", *(_interval(figure, ends, scale) for ends in intervals), style="dim")
    titled = section(f"{name} (below each its 95 % confidence interval)", drawn)
    return titled + ([Text(_UNBOUNDED, style="dim"), Text("")] if open_ended else [])


def _value(figure: str, value: float, scale: tuple[float, str]) -> str:
    return f"{_bare(figure, value, scale[0])} {scale[1]}".rstrip()


def _interval(figure: str, ends: Sequence[float | None] | None, scale: tuple[float, str]) -> str:
    """Both ends without their unit, which stands above; a question mark where there are too few replications."""
    if ends is None:
        return ""
    low, high = ("?" if end is None else _bare(figure, end, scale[0]) for end in ends)
    return f"{low} – {high}"


def _scale(figure: str, typical: float) -> tuple[float, str]:
    """What a figure is divided by, and the unit of what is left."""
    unit = _UNITS.get(figure, "")
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if figure in ("cost_usd", "energy_kwh") and typical >= factor:
            return factor, f"{prefix} {unit}" if unit == "USD" else {"G": "TWh", "M": "GWh", "k": "MWh"}[prefix]
    return 1.0, unit


def _bare(figure: str, value: float, factor: float) -> str:
    if figure == "finish_days":
        return f"{value:.1f}"
    if is_fraction(figure):
        return f"{100 * value:.2f}"
    return count(value) if factor == 1.0 else f"{value / factor:.4g}"


def _loss(found: Replications, position: int) -> Report:
    """Mean points of MFU lost, by fate and by cause."""
    loss: dict[str, Any] = found.mfu_loss(position)
    if not loss["total"]:
        return []
    drawn = table("MFU lost, mean", "points", "share", "by cause", "points", "share")
    drawn.columns[3].justify = "left"
    fates = sorted(((key, lost) for key, lost in loss["parts"].items() if lost), key=lambda each: -each[1])
    causes = list(loss["by_cause"].items())
    if len(causes) > _CAUSES + 1:
        rest = causes[_CAUSES:]
        causes = [*causes[:_CAUSES], (f"{len(rest)} others", sum(lost for _, lost in rest))]
    blank, whole = ("", "", ""), loss["total"]
    rows = max(len(fates), len(causes))
    left = [(name.replace("_", " "), points(lost, whole), percent(lost / loss["total"])) for name, lost in fates]
    right = [(name.replace("_", " "), points(lost, whole), percent(lost / loss["total"])) for name, lost in causes]
    for one, other in zip(left + [blank] * (rows - len(left)), right + [blank] * (rows - len(right)), strict=True):
        drawn.add_row(*one, *other)
    drawn.add_row("sum", points(loss["total"], whole), "100.0 %", "failures", points(loss["failure_induced"], whole),
                  percent(loss["failure_induced"] / loss["total"]))  # fmt: skip
    return [drawn, Text("")]


def _differences(found: Replications, position: int, name: str) -> Report:
    """What a scenario has more than the first in the same replication: the same failures befall both."""
    drawn = table("", "difference", "95 % confidence interval")
    differences = found.differences(position)
    for figure, difference in differences.items():
        if figure not in _NAMES or difference is None:
            continue
        if figure == "interruptions" and difference == differences["failures"]:
            continue
        interval = "" if difference.interval is None else f"{_bare_signed(figure, difference.interval[0])} to "
        if difference.interval is not None:
            interval += _bare_signed(figure, difference.interval[1])
        drawn.add_row(_NAMES[figure], _signed(figure, difference.value), interval)
    return section(f"{name} less {found.names[0]} (mean over the same failures)", drawn)


def _signed(figure: str, value: float) -> str:
    if is_fraction(figure):
        return f"{_bare_signed(figure, value)} points"
    return _bare_signed(figure, value) + (" d" if figure == "finish_days" else "")


def _bare_signed(figure: str, value: float) -> str:
    if is_fraction(figure):
        return f"{100 * value:+.2f}"
    if figure == "finish_days":
        return f"{value:+.2f}"
    text = by_key(figure, abs(value))
    return ("-" if value < 0 else "+") + text
