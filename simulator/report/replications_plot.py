"""When replicated runs finish, as a picture: a panel for every scenario, as their runs may last days or months.

Pinned by tests/report/test_replications.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulator.report.formats import count
from simulator.results.replications import Replications

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTILES = {"p10": ("P10", ":"), "p50": ("P50", "-"), "p90": ("P90", "--")}


def plot_replications(found: Replications, path: Path) -> None:
    """Histogram of the days to the finish, one panel per scenario, with P10, P50 and P90."""
    number = len(found.names)
    figure = Figure(figsize=(8, 1.3 + 2.8 * number), layout="constrained")
    panels = figure.subplots(number, 1, squeeze=False)[:, 0]
    figure.suptitle(f"When the run finishes: {count(len(found.rows))} replications", fontsize=13)
    for position, (axes, name) in enumerate(zip(panels, found.names, strict=True)):
        days = found.values(position, "finish_days")
        _draw(axes, name, days, found.summaries[position]["finish_days"], f"C{position % 10}")
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, name: str, days: Sequence[float], summary: dict[str, float], colour: str) -> None:
    # Square root rule: enough in a bin to see a shape. A run that always takes equally long is one bar.
    low, high = min(days), max(days)
    bins = min(40, max(8, round(len(days) ** 0.5)))
    low, high = (low - 0.05 * low, high + 0.05 * high) if high - low < 1e-9 * high else (low, high)
    unit, size = ("hours", 24) if high < 2 else ("days", 1)
    axes.hist([size * each for each in days], bins=bins, range=(size * low, size * high), alpha=0.6, color=colour)
    for quantile, (label, style) in _QUANTILES.items():
        value = size * summary[quantile]
        axes.axvline(value, color="black", linestyle=style, linewidth=1.2, label=f"{label}: {value:,.4g} {unit}")
    axes.set_title(name, fontsize=11, loc="left")
    axes.set_xlabel(f"{unit} until the run is finished")
    axes.set_ylabel("replications")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
