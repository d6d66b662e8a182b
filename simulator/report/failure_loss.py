"""The picture of what failures cost: MFU lost, by fate or by cause, over cluster size, MTBF, interval or spares.

Above it the healthy and the effective MFU. What failures cost is in full colour at the bottom of the stack; what
training costs without them (saves, evaluation, slow machines) is hatched on top. The thin lines (or
whiskers) are the 95 % confidence interval of the mean total.

Pinned by tests/report/test_failure_loss.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from simulator.records import FAILURE_KEYS
from simulator.report.formats import percent
from simulator.studies.loss_curve import BEST_OWNED, OPTIMUM, OWN, LossCurve, LossPoint, Marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of Okabe and Ito (2008) and, for the hatched rest, of Tol (2021, light), told apart by colour-blind readers.
FATES = {
    "lost_work": ("lost work", "#D55E00"),
    "detection": ("detection", "#E69F00"),
    "restart": ("restart", "#0072B2"),
    "waiting": ("waiting for machines", "#56B4E9"),
    "degraded": ("degraded running", "#CC79A7"),
    "checkpoint": ("checkpoints", "#009E73"),
    "straggling": ("stragglers", "#882255"),
    "slowdown": ("slowdown", "#999933"),
    "evaluation": ("evaluation", "#44AA99"),
    "planned": ("planned stops", "#777777"),
    "data_stall": ("data stalls", "#332288"),
    "rewind": ("loss-spike rewinds", "#AA4499"),
    "start": ("first start", "#000000"),
}
"""What a fate is called and its colour, in the order of the stack."""
_HATCHES = {"checkpoint": "///", "straggling": "...", "slowdown": "---", "evaluation": "xxx", "planned": "\\\\\\"}
_CAUSES = ("#D55E00", "#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#882255", "#999933", "#332288", "#44AA99")
_MOST_CAUSES = 10
_MARKS = {
    OWN: ("#000000", "-"),
    OPTIMUM: ("#000000", "--"),
    BEST_OWNED: ("#000000", "--"),
    "Young": ("#666666", ":"),
    "Daly": ("#666666", "-."),
    "exact renewal": ("#666666", (0, (5, 1, 1, 1, 1, 1))),
}
# Of the largest stack: what a part must reach somewhere to be drawn by itself; the others are drawn as one.
_LEAST = 0.004
_TITLES = {
    "gpus": "GPUs of the job",
    "mtbf": "mean time between failures of the job",
    "interval": "checkpoint interval, from save to save",
    "spares": "spare machines standing by",
}


class _Layer(NamedTuple):
    """A part of the stack at every point."""

    name: str
    colour: str
    hatch: str | None
    values: list[float]


def plot_failure_loss(curve: LossCurve, path: Path, by: str = "fate") -> None:
    """Draw a curve into a new PNG, SVG or PDF, by the suffix of `path`; stacked by `fate` or by `cause`."""
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.9])
    figure.suptitle(_title(curve, by), fontsize=13)
    places = _places(curve)
    _draw_mfu(above, curve, places)
    _draw_stack(below, curve, places, _layers(curve, by))
    _draw_axis(below, curve, places)
    _draw_markers(above, below, curve, places)
    bounds = "whiskers" if curve.against == "spares" else "thin lines"
    note = f"{curve.held} Mean of {curve.runs} replications with the same failures; {bounds}: 95 % confidence."
    figure.supxlabel(_wrapped(note), fontsize=9, color="#444444")
    figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix == ".png" else None)


def _title(curve: LossCurve, by: str) -> str:
    """What is shown, and what the scenario itself comes to."""
    own = next((marker.value for marker in curve.markers if marker.name == OWN), None)
    point = next((point for point in curve.points if point.value == own), None)
    name = f"{curve.scenario}: MFU lost in the course of the run, by {by}"
    if point is None:
        return name
    lost, failures = 100 * point.loss.mean, 100 * point.failure_loss.mean
    return (
        f"{name}\nas it is: healthy {percent(point.healthy_mfu)}, effective {percent(point.effective_mfu)}:"
        f" {lost:.1f} points lost, {failures:.1f} of them by failures"
    )


def _wrapped(text: str, width: int = 150) -> str:
    lines = [""]
    for word in text.split():
        lines = [*lines, word] if len(lines[-1]) + len(word) > width else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return "\n".join(lines)


def _places(curve: LossCurve) -> Callable[[float], float]:
    """Where a value of the axis is drawn: counts of spares side by side, all else as it is."""
    if curve.against != "spares":
        return lambda value: value
    values = [point.value for point in curve.points]

    def place(value: float) -> float:
        above = next((i for i, known in enumerate(values) if known >= value), len(values) - 1)
        if above == 0 or values[above] <= value:
            return float(above)
        return above - (values[above] - value) / (values[above] - values[above - 1])

    return place


# --- the stack --------------------------------------------------------------------------------------------------------


def _layers(curve: LossCurve, by: str) -> list[_Layer]:
    """Parts of the stack, bottom first; small ones together on top."""
    return _fates(curve.points) if by == "fate" else _causes(curve)


def _fates(points: Sequence[LossPoint]) -> list[_Layer]:
    least = _LEAST * max(point.loss.mean for point in points)
    layers, rest = [], [0.0] * len(points)
    for key, (name, colour) in FATES.items():
        values = [point.parts[key] for point in points]
        if max(values) > least:
            hatch = None if key in FAILURE_KEYS else _HATCHES.get(key, "|||")
            layers.append(_Layer(name, colour, hatch, values))
        else:
            rest = [a + b for a, b in zip(rest, values, strict=True)]
    return _with_rest(layers, rest)


def _causes(curve: LossCurve) -> list[_Layer]:
    points, causes = curve.points, curve.causes()
    values = {cause: [point.causes.get(cause, 0.0) for point in points] for cause in causes}
    ranked = causes[:_MOST_CAUSES]
    layers = [
        _Layer(cause.replace("_", " "), colour, None, values[cause])
        for cause, colour in zip(ranked, _CAUSES, strict=False)
    ]
    rest = [sum(values[cause][i] for cause in causes if cause not in ranked) for i in range(len(points))]
    return _with_rest(layers, rest)


def _with_rest(layers: list[_Layer], rest: list[float]) -> list[_Layer]:
    return [*layers, _Layer("everything else", "#BBBBBB", None, rest)] if max(rest) > 0 else layers


def _draw_stack(axes: Axes, curve: LossCurve, places: Callable[[float], float], layers: Sequence[_Layer]) -> None:
    x = [places(point.value) for point in curve.points]
    bottom = [0.0] * len(x)
    for layer in layers:
        top = [100 * value + below for value, below in zip(layer.values, bottom, strict=True)]
        face, edge = (layer.colour, "white") if layer.hatch is None else ("white", layer.colour)
        # A white edge of a thin layer would be all of it.
        width = 0.6 if layer.hatch is not None or curve.against == "spares" else 0.0
        style: dict[str, Any] = {"facecolor": face, "edgecolor": edge, "hatch": layer.hatch, "linewidth": width}
        if curve.against == "spares":
            heights = [high - low for high, low in zip(top, bottom, strict=True)]
            axes.bar(x, heights, bottom=bottom, width=0.72, **style)
        else:
            axes.fill_between(x, bottom, top, **style)
        bottom = top
    low, high = [100 * p.loss.low for p in curve.points], [100 * p.loss.high for p in curve.points]
    if curve.against == "spares":
        reach = [b - a for a, b in zip(bottom, high, strict=True)]
        axes.errorbar(x, bottom, yerr=reach, fmt="none", ecolor="black", capsize=4, linewidth=1.2)
    else:
        for ends in (low, high):  # lines only: a band would hide the thin layers on top
            axes.plot(x, ends, color="black", linewidth=0.7, linestyle=(0, (4, 2)))
        axes.plot(x, bottom, color="black", linewidth=1.0)
    axes.set_ylabel("MFU lost, points", fontsize=11)
    handles = [_patch(layer) for layer in reversed(layers)]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def _patch(layer: _Layer) -> Patch:
    if layer.hatch is None:
        return Patch(facecolor=layer.colour, edgecolor="white", label=layer.name)
    return Patch(facecolor="white", edgecolor=layer.colour, hatch=layer.hatch, label=layer.name)


def _draw_mfu(axes: Axes, curve: LossCurve, places: Callable[[float], float]) -> None:
    x = [places(point.value) for point in curve.points]
    lines = [
        ("healthy", [p.healthy_mfu for p in curve.points], "#000000", "--", ""),
        ("effective", [p.effective_mfu for p in curve.points], "#0072B2", "-", "o"),
    ]
    if curve.against == "spares":
        lines.append(("effective,\nowned GPUs", [p.effective_mfu_owned for p in curve.points], "#D55E00", "-", "s"))
    for name, values, colour, style, marker in lines:
        axes.plot(x, [100 * v for v in values], color=colour, linestyle=style, marker=marker, markersize=4, label=name)
    axes.set_ylabel("MFU, %", fontsize=11)
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)
    axes.margins(y=0.12)


# --- the axis ---------------------------------------------------------------------------------------------------------

_TIMES = {
    "s": (1.0, (1, 2, 5, 10, 20, 30)),
    "min": (60.0, (1, 2, 5, 10, 20, 30)),
    "h": (3600.0, (1, 2, 3, 6, 12)),
    "d": (86400.0, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
}
_DENSE_TIMES = {"s": (1, 2, 3, 5, 10, 15, 20, 30, 45), "min": (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45),
                "h": (1, 1.5, 2, 3, 4, 6, 8, 12, 16), "d": (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30)}  # fmt: skip


def _draw_axis(axes: Axes, curve: LossCurve, places: Callable[[float], float]) -> None:
    axes.set_xlabel(_TITLES[curve.against], fontsize=11)
    values = [point.value for point in curve.points]
    if curve.against == "spares":
        axes.set_xticks([places(value) for value in values], [f"{value:g}" for value in values])
        return
    axes.set_xscale("log")
    ticks = values if curve.against == "gpus" else time_ticks(values[0], values[-1])
    if curve.against == "gpus":
        ticks = _apart(values)
        labels = [f"{value:,.0f}" for value in ticks]
    else:
        labels = [short_time(value) for value in ticks]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(values) > 1:
        axes.set_xlim(values[0], values[-1])


def _apart(values: Sequence[float]) -> list[float]:
    """Values whose labels do not meet: at least a 14th of the axis apart."""
    if len(values) < 2:
        return list(values)
    least = (values[-1] / values[0]) ** (1 / 14)
    shown = [values[0]]
    for value in values[1:]:
        if value >= shown[-1] * least:
            shown.append(value)
    return shown


def time_ticks(low: float, high: float) -> list[float]:
    """Round times of an axis, some six to twelve."""
    for table in ({name: nice for name, (_, nice) in _TIMES.items()}, _DENSE_TIMES):
        ticks = sorted(_TIMES[name][0] * number for name, nice in table.items() for number in nice)
        found = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(found) >= 4 and _reach(found, low, high):
            break
    return _with_ends(_apart(found), low, high) if len(found) >= 2 else _apart([low, high])


def _with_ends(ticks: list[float], low: float, high: float) -> list[float]:
    """The ticks, and the ends of the axis where there is room for their labels."""
    least = (high / low) ** (1 / 12)
    before = [low] if ticks[0] >= low * least else []
    return [*before, *ticks, *([high] if high >= ticks[-1] * least else [])]


def _reach(ticks: Sequence[float], low: float, high: float) -> bool:
    """Whether no more than an eighth of a logarithmic axis lies outside the ticks at either end."""
    least = (high / low) ** (1 / 8)
    return bool(ticks[0] <= low * least and ticks[-1] >= high / least)


def short_time(time: float) -> str:
    """A time without needless digits: ``30 s``, ``1.5 min``, ``2 h``, ``14 d``."""
    unit, (size, _) = next(
        ((name, entry) for name, entry in reversed(_TIMES.items()) if time >= entry[0] * 0.9999), ("s", _TIMES["s"])
    )
    return f"{time / size:.3g} {unit}"


def _draw_markers(above: Axes, below: Axes, curve: LossCurve, places: Callable[[float], float]) -> None:
    """Lines with labels in rows above the stack: each line ends at its label, so that none crosses another's."""
    values = [point.value for point in curve.points]
    rows, outside = marker_rows(curve), markers_outside(curve)
    highest = 100 * max(point.loss.high for point in curve.points)
    below.set_ylim(0, highest * (1.08 + 0.07 * len(rows)) or 1)
    for marker in outside:
        _draw_outside(below, curve, marker)
    if not rows:
        return
    left, right = below.get_xlim()

    def on_the_right(markers: list[Marker]) -> bool:
        x = places(markers[0].value)
        return (log(x / left) / log(right / left) if curve.against != "spares" else x / len(values)) > 0.6

    # Labels point inwards. From the top: the right half from its edge, then the left half from its own.
    ordered = [row for row in reversed(rows) if on_the_right(row)] + [row for row in rows if not on_the_right(row)]
    for row, markers in enumerate(ordered):
        rightwards = not on_the_right(markers)
        height = highest * (1.04 + 0.07 * (len(rows) - row))
        colour, style = _MARKS.get(markers[0].name, ("#000000", "-"))
        x = places(markers[0].value)
        stack = next((100 * p.loss.high for p in curve.points if p.value == markers[0].value), 0.0)
        foot = 1.02 * stack if curve.against == "spares" else 0.0  # a bar stays free
        below.plot([x, x], [foot, height], color=colour, linestyle=style, linewidth=1.3, zorder=4)
        names = ", ".join(marker.name for marker in markers)
        below.annotate(
            f"{names}: {_value(curve.against, markers[0])}", (x, height), xytext=(5 if rightwards else -5, 0),
            textcoords="offset points", ha="left" if rightwards else "right", va="center", fontsize=9.5, zorder=5,
        )  # fmt: skip
        above.axvline(x, color=colour, linestyle=style, linewidth=0.8, alpha=0.6)


def markers_outside(curve: LossCurve) -> list[Marker]:
    """The scenario's own value and the optimum, where the axis does not reach them."""
    low, high = curve.points[0].value, curve.points[-1].value
    return [m for m in curve.markers if m.name in (OWN, OPTIMUM) and not low <= m.value <= high]


def _draw_outside(axes: Axes, curve: LossCurve, marker: Marker) -> None:
    """Say at the end of the axis what lies beyond it."""
    left = marker.value < curve.points[0].value
    text = f"{marker.name}: {_value(curve.against, marker)}, beyond this end"
    place = (0.006 if left else 0.994, 0.03 if marker.name == OPTIMUM else 0.08)
    axes.annotate(
        f"\N{LEFTWARDS ARROW} {text}" if left else f"{text} \N{RIGHTWARDS ARROW}", place, xycoords="axes fraction",
        ha="left" if left else "right", fontsize=9.5, zorder=5,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def marker_rows(curve: LossCurve) -> list[list[Marker]]:
    """Markers inside the axis, ascending; those that read the same share a row."""
    rows: dict[str, list[Marker]] = {}
    for marker in sorted(curve.markers, key=lambda marker: marker.value):
        if curve.points[0].value <= marker.value <= curve.points[-1].value:
            rows.setdefault(_value(curve.against, marker), []).append(marker)
    return list(rows.values())


def _value(against: str, marker: Marker) -> str:
    if against == "gpus":
        return f"{marker.value:,.0f} GPUs"
    return f"{marker.value:g}" if against == "spares" else short_time(marker.value)
