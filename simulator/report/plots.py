"""Pictures: the step as a timeline of the pipeline ranks above the waterfall of where it goes.

Pinned by tests/report/test_plots.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from simulator.records import StepResult
from simulator.report.formats import percent, seconds
from simulator.studies.simulate import Simulation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of Okabe and Ito (2008), told apart by colour-blind readers too.
_KINDS = {
    "forward": "#56B4E9",
    "backward": "#0072B2",
    "weight gradients": "#CC79A7",
    "waiting": "#EEEEEE",
    "message or gradient": "#D55E00",
    "optimizer and host": "#009E73",
}
_PARTS = {
    "ideal_compute": "#0072B2", "recomputation": "#56B4E9", "kernel_inefficiency": "#999999",
    "overlap_slowdown": "#BBBBBB", "exposed_tp": "#D55E00", "exposed_cp": "#E69F00", "exposed_ep": "#F0E442",
    "exposed_pp": "#CC79A7", "exposed_dp": "#882255", "imbalance": "#DDCC77", "bubble": "#EEEEEE",
    "optimizer": "#009E73", "host": "#000000",
}  # fmt: skip
_ACTIONS = {"F": "forward", "B": "backward", "I": "backward", "W": "weight gradients"}
_ACTION = re.compile(r"\d+([FBIW])\d+")


def plot_step(simulation: Simulation, path: Path) -> None:
    """Draw one step into a new PNG, SVG or PDF, by the suffix of `path`."""
    ranks = len(_shown_classes(simulation.step))
    figure = Figure(figsize=(14, 2.8 + min(9.0, 0.28 * ranks + 0.8)), layout="constrained")
    timeline, waterfall = figure.subplots(2, 1, height_ratios=[0.28 * ranks + 0.8, 1.2])
    figure.suptitle(f"{simulation.scenario.name}: one step, {seconds(simulation.step.step_time)}")
    _draw_timeline(timeline, simulation)
    _draw_waterfall(waterfall, simulation)
    figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix == ".png" else None)


_MOST_ROWS = 40


def _shown_classes(step: StepResult) -> list[int]:
    """Rank classes to draw: all, or of too many the one with the most GPUs on each pipeline rank."""
    classes = range(len(step.rank_counts))
    if len(classes) <= _MOST_ROWS:
        return list(classes)
    stages = sorted(set(step.pipeline_ranks))
    return [max((c for c in classes if step.pipeline_ranks[c] == s), key=lambda c: step.rank_counts[c]) for s in stages]


def _kind(name: str, parts: dict[str, float]) -> str:
    """What a span mostly is."""
    match = _ACTION.fullmatch(name)
    if match:
        return _ACTIONS[match[1]]
    if parts.get("waiting", 0.0) + parts.get("imbalance", 0.0) > 0.5 * sum(parts.values()):
        return "waiting"
    if parts.get("optimizer", 0.0) + parts.get("host", 0.0) > 0.5 * sum(parts.values()):
        return "optimizer and host"
    return "message or gradient"


def _draw_timeline(axes: Axes, simulation: Simulation) -> None:
    step = simulation.step
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    row_of = {number: row for row, number in enumerate(_shown_classes(step))}
    for span in step.spans:
        if span.rank not in row_of:
            continue
        kind = _kind(span.name, dict(span.parts))
        bars.setdefault((row_of[span.rank], kind), []).append((span.start, span.end - span.start))
    for (rank, kind), intervals in bars.items():
        axes.broken_barh(intervals, (rank - 0.42, 0.84), facecolors=_KINDS[kind], linewidth=0)
    ranks = len(row_of)
    end = max([simulation.step.step_time, *(span.end for span in simulation.step.spans)])
    folded = len(step.rank_counts) == len(set(step.pipeline_ranks))
    label = (
        "pipeline rank" if folded else "rank class" if ranks == len(step.rank_counts) else "pipeline rank, most GPUs"
    )
    axes.set(xlim=(0, end), ylim=(ranks - 0.5, -0.5), ylabel=label, xlabel="seconds")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    split = any(kind == "weight gradients" for _, kind in bars)
    shown = {kind: colour for kind, colour in _KINDS.items() if split or kind != "weight gradients"}
    axes.legend(
        handles=[Patch(color=colour, label=kind) for kind, colour in shown.items()], ncols=6, loc="lower right",
        bbox_to_anchor=(1, 1), frameon=False, fontsize="small",
    )  # fmt: skip


def _draw_waterfall(axes: Axes, simulation: Simulation) -> None:
    time = simulation.step.step_time
    left = 0.0
    for part, value in simulation.step_figures["breakdown_s"].items():
        if value <= 0:
            continue
        label = f"{part} {percent(value / time)}" if value > 0.002 * time else None
        axes.barh(0, value, left=left, color=_PARTS[part], label=label, edgecolor="white")
        left += value
    axes.set(xlim=(0, time), yticks=[], xlabel="seconds per GPU, averaged over all GPUs")
    axes.legend(ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.45), frameon=False, fontsize="small")
