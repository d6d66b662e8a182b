"""The picture of one campaign: progress against wall-clock, what struck when, what the job did instead, and a close-up.

From top to bottom: the share of the run that is done, beside a run that nothing disturbs; a tick for every incident, by
class (counts where there are many), and a bar for every slow stretch; the share of each stretch of time that was not
productive, by fate; effective training time, sliding and cumulative; machines out of service beside the spares; and the
few incidents that cost the largest share of their time in close-up, where the steps that each of them undid can be
seen. Panels with nothing to show are left out.

Limits: saves lie within the stretches of training and are not among the fates; of more than `_CLASSES` classes the
rarest share a row; a bin of the fates is a 240th of the run.
Pinned by tests/report/test_campaign_plot.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from simulator.physics.campaign.plan import CampaignPlan
from simulator.records import CAMPAIGN_KEYS, CampaignResult, Incident, Progress
from simulator.report.campaign_close_up import draw_close_up, polyline, words
from simulator.report.failure_loss import FATES
from simulator.report.formats import percent, seconds
from simulator.studies.campaign_record import RecordedCampaign

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = NDArray[np.float64]

_DAY, _HOUR = 86400.0, 3600.0
_CLASSES = 10
_BINS = 240
_MOST_MARKERS = 60
# Ticks of a row that can still be told apart.
_MOST_TICKS = 150
# Windows of the sliding ETTR: the first of which the run has a dozen. Assumption: shorter ones are all noise.
_WINDOWS = ((24, "1 day"), (6, "6 hours"), (1, "1 hour"))
_BLUE, _ORANGE, _SLOW = "#0072B2", "#D55E00", FATES["straggling"][1]
_COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#332288",
    "#999933",
    "#777777",
)


class _Clock(NamedTuple):
    """What the time axis counts in."""

    unit: str
    size: float


def plot_campaign(recorded: RecordedCampaign, path: Path) -> None:
    """Draw a campaign with its records into a new PNG, SVG or PDF, by the suffix of `path`."""
    result = recorded.result
    classes = _classes(result.incidents)
    clock = _Clock("days", _DAY) if result.wall_clock >= 2 * _DAY else _Clock("hours", _HOUR)
    shares = fate_shares(recorded, _BINS)
    rows = sum(1.7 if len(times) > _MOST_TICKS else 1.0 for times in classes.values()) + bool(recorded.slow)
    panels: list[tuple[float, Callable[[Axes], None]]] = [(3.0, lambda axes: _draw_progress(axes, recorded, clock))]
    if rows:
        panels.append((0.4 + 0.22 * rows, lambda axes: _draw_incidents(axes, classes, recorded, clock)))
    if shares:
        panels.append((1.5, lambda axes: _draw_fates(axes, shares, result, clock)))
    if result.wall_clock >= _HOUR and result.hours:
        panels.append((1.4, lambda axes: _draw_ettr(axes, result, clock)))
    if result.repairs:
        panels.append((1.1, lambda axes: _draw_shop(axes, recorded, clock)))
    count = len(panels)
    if result.incidents:
        panels.append((2.2, lambda axes: draw_close_up(axes, result, clock.unit[:-1], clock.size)))
    heights = [height for height, _ in panels]
    figure = Figure(figsize=(12, 1.5 + sum(heights) * 1.15), layout="constrained")
    figure.suptitle(_title(recorded), fontsize=13)
    drawn = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes in drawn[1:count]:
        axes.sharex(drawn[0])
    for axes, (_, draw) in zip(drawn, panels, strict=True):
        draw(axes)
    for axes in drawn[: count - 1]:
        axes.tick_params(labelbottom=False)
    drawn[count - 1].set_xlabel(f"wall-clock, {clock.unit}")
    drawn[0].set_xlim(0, result.wall_clock / clock.size)
    figure.align_ylabels()
    figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix == ".png" else None)


def _title(recorded: RecordedCampaign) -> str:
    result = recorded.result
    number = sum(result.failures.values())
    return (
        f"{recorded.name}: replication {recorded.replication} of seed {recorded.seed}\n"
        f"{seconds(result.wall_clock)}, {number:,} failures, healthy MFU {percent(recorded.healthy_mfu)}, effective"
        f" {percent(recorded.effective_mfu)}, ETTR {percent(result.time_s['productive'] / result.wall_clock)}"
    )


# --- progress ---------------------------------------------------------------------------------------------------------


def _done(plan: CampaignPlan, steps: Row) -> Row:
    """Per cent of the run's FLOPs that so many steps are."""
    ends = np.cumsum([0, *(phase.steps for phase in plan.phases)], dtype=np.float64)
    flops = np.cumsum([0.0, *(phase.steps * phase.flops for phase in plan.phases)])
    share: Row = np.interp(steps, ends, 100 * flops / flops[-1])
    return share


def _healthy_line(plan: CampaignPlan) -> tuple[Row, Row]:
    """Seconds and per cent of a run of healthy steps and nothing else."""
    times = np.cumsum([0.0, *(phase.steps * phase.step_time for phase in plan.phases)])
    return times, _done(plan, np.cumsum([0, *(phase.steps for phase in plan.phases)], dtype=np.float64))


def _draw_progress(axes: Axes, recorded: RecordedCampaign, clock: _Clock) -> None:
    plan, result = recorded.plan, recorded.result
    ideal_times, ideal = _healthy_line(plan)
    label = f"nothing but healthy steps: {seconds(float(ideal_times[-1]))}"
    axes.plot(ideal_times / clock.size, ideal, color="#777777", linestyle="--", linewidth=1.2, label=label)
    times, steps = polyline(result.progress)
    done = _done(plan, steps)
    axes.plot(times / clock.size, done, color=_BLUE, linewidth=1.4, label=f"as it went: {seconds(result.wall_clock)}")
    if len(recorded.slow) <= _MOST_MARKERS:
        for place, each in enumerate(recorded.slow):
            name = None if place else "slow steps"
            axes.axvspan(each.start / clock.size, each.end / clock.size, color=_SLOW, alpha=0.2, lw=0, label=name)
    if 0 < len(result.incidents) <= _MOST_MARKERS:
        at = np.array([each.time for each in result.incidents])
        height = np.interp(at, times, done) if len(times) else at
        axes.plot(at / clock.size, height, "v", color=_ORANGE, markersize=6, label="incidents", zorder=3)
    _draw_phases(axes, recorded, clock)
    axes.set(ylim=(0, 101), ylabel="done, % of the run")
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.legend(loc="upper left", frameon=False, fontsize=10)


def _draw_phases(axes: Axes, recorded: RecordedCampaign, clock: _Clock) -> None:
    spent = recorded.result.phases
    if len(spent) < 2 or len(spent) > 8:
        return
    ends = np.cumsum(spent)
    for phase, start, end in zip(recorded.plan.phases, [0.0, *ends[:-1]], ends, strict=False):
        axes.axvline(end / clock.size, color="#AAAAAA", linewidth=0.8)
        if end - start > 0.06 * ends[-1]:
            axes.text((start + end) / 2 / clock.size, 3, phase.name, ha="center", fontsize=9, color="#444444")


# --- what struck, and what the job did --------------------------------------------------------------------------------


def _classes(incidents: Sequence[Incident]) -> dict[str, list[float]]:
    """Times by class, the most frequent first; rare ones together."""
    counts = Counter(each.kind for each in incidents)
    ranked = [name for name, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))]
    if len(ranked) > _CLASSES:
        ranked = ranked[: _CLASSES - 1]
    found: dict[str, list[float]] = {name: [] for name in ranked}
    for each in incidents:
        found.setdefault(each.kind if each.kind in ranked else "others", []).append(each.time)
    return found


def _draw_incidents(axes: Axes, classes: dict[str, list[float]], recorded: RecordedCampaign, clock: _Clock) -> None:
    """One row per class, the height of each in proportion to what it must show; slow stretches as bars below."""
    wall = recorded.result.wall_clock
    labels, middles, top = [], [], 0.0
    for (name, times), colour in zip(classes.items(), _COLOURS, strict=False):
        many = len(times) > _MOST_TICKS
        height = 1.7 if many else 1.0
        middles.append(top + height / 2)
        if many:
            most = _draw_counts(axes, times, (top, height), colour, wall, clock)
            labels.append(f"{words(name)}: {len(times):,}\n{most}")
        else:
            labels.append(f"{words(name)}: {len(times):,}")
            axes.eventplot(
                np.array(times) / clock.size, lineoffsets=middles[-1], linelengths=0.72, colors=colour,
                linewidths=1.6 if len(times) <= _MOST_MARKERS else 0.9,
            )  # fmt: skip
        top += height
    if recorded.slow:
        bars = [(each.start / clock.size, (each.end - each.start) / clock.size) for each in recorded.slow]
        axes.broken_barh(bars, (top + 0.14, 0.72), color=_SLOW, linewidth=0.5)
        labels.append(f"slow stretches: {len(bars):,}")
        middles.append(top + 0.5)
        top += 1.0
    axes.set_ylabel("incidents")
    axes.set_yticks(middles, labels, fontsize=8.5)
    axes.set_ylim(top + 0.1, -0.1)
    axes.yaxis.set_ticks_position("right")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_counts(
    axes: Axes, times: Sequence[float], place: tuple[float, float], colour: str, wall: float, clock: _Clock
) -> str:
    """Draw a row of many incidents as counts, and say what its full height is."""
    hours, name = next((entry for entry in _WINDOWS if wall >= 12 * entry[0] * _HOUR), _WINDOWS[-1])
    edges = np.append(np.arange(0.0, wall, hours * _HOUR), wall)
    counts, _ = np.histogram(times, edges)
    top, height = place
    foot = top + 0.95 * height
    heights = foot - 0.9 * height * counts / counts.max()
    axes.stairs(heights, edges / clock.size, baseline=foot, fill=True, color=colour, linewidth=0)
    return f"up to {counts.max():,} in {name}"


def shares_by_bin(progress: Sequence[Progress], wall_clock: float, bins: int) -> dict[str, Row]:
    """Share of every bin of the wall-clock that each fate took. [bins] each."""
    edges = np.linspace(0.0, wall_clock, bins + 1)
    found = {}
    for key in CAMPAIGN_KEYS:
        ends = np.array([(each.start, each.end) for each in progress if each.key == key], dtype=np.float64)
        if not len(ends):
            continue
        # Seconds of the fate before every edge: whole stretches, and the part of the one that lies across the edge.
        order = np.argsort(ends[:, 0])
        start, end = ends[order, 0], ends[order, 1]
        before = np.concatenate([[0.0], np.cumsum(end - start)])
        place = np.searchsorted(start, edges, side="right")
        cut = np.where(place > 0, np.maximum(0.0, end[np.maximum(place, 1) - 1] - edges), 0.0)
        found[key] = np.diff(before[place] - cut) / np.diff(edges)
    return found


def fate_shares(recorded: RecordedCampaign, bins: int) -> dict[str, Row]:
    """Share of every bin that was not productive, by fate but for saves; slow steps are `straggling`. [bins] each."""
    wall = recorded.result.wall_clock
    shares = shares_by_bin(recorded.result.progress, wall, bins)
    edges = np.linspace(0.0, wall, bins + 1)
    for start, end, excess in recorded.slow:
        inside = np.diff(np.clip(edges, start, end)) / np.diff(edges)
        shares["straggling"] = shares.get("straggling", np.zeros(bins)) + inside * excess / (end - start)
    return {key: shares[key] for key in FATES if key in shares and key != "checkpoint" and shares[key].max() > 0}


def _draw_fates(axes: Axes, shares: dict[str, Row], result: CampaignResult, clock: _Clock) -> None:
    edges, bottom = np.linspace(0.0, result.wall_clock / clock.size, _BINS + 1), np.zeros(_BINS)
    handles = []
    for key, share in shares.items():
        name, colour = FATES[key] if key != "straggling" else ("slow steps", _SLOW)
        top = bottom + 100 * share
        axes.stairs(top, edges, baseline=bottom, fill=True, color=colour, linewidth=0)
        bottom = top
        handles.append(Patch(color=colour, label=name))
    axes.set(ylim=(0, min(100.0, 1.08 * bottom.max()) or 1), ylabel="not productive,\n% of the time")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    handles.append(Patch(alpha=0.0, label="(not: saves)"))
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.005, 1.06), frameon=False, fontsize=8.5, labelspacing=0.25
    )


def effective_time(hours: Sequence[float], wall_clock: float) -> tuple[Row, Row, Row]:
    """Ends of the hours, the last one cut short, from 0; productive share of each, and of all until its end.

    Returns
    -------
    edges, each, since_start
        Seconds [H + 1]; shares [H] and [H + 1], the first of which is that of the first hour.
    """
    number = min(len(hours), ceil(wall_clock / _HOUR))
    edges = np.minimum(np.arange(number + 1) * _HOUR, wall_clock)
    productive = np.array(hours[:number], dtype=np.float64)
    each = productive / np.diff(edges)
    return edges, each, np.concatenate([each[:1], np.cumsum(productive) / edges[1:]])


def _draw_ettr(axes: Axes, result: CampaignResult, clock: _Clock) -> None:
    edges, each, since_start = effective_time(result.hours, result.wall_clock)
    size, name = next((entry for entry in _WINDOWS if len(each) >= 12 * entry[0]), _WINDOWS[-1])
    if size == 1:
        axes.stairs(100 * each, edges / clock.size, baseline=None, color=_BLUE, linewidth=1.0, label="each hour")
        least = float(each.min())
    else:
        total = np.concatenate([[0.0], np.cumsum(each * np.diff(edges))])
        sliding = (total[size:] - total[:-size]) / (edges[size:] - edges[:-size])
        axes.plot(edges[size:] / clock.size, 100 * sliding, color=_BLUE, linewidth=1.0, label=f"sliding, {name}")
        least = float(sliding.min())
    axes.plot(edges / clock.size, 100 * since_start, color="#000000", linewidth=1.4, label="since the start")
    axes.set(ylim=(max(0.0, 100 * least - 4), 101), ylabel="ETTR, %")
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.05), frameon=False, fontsize=9)


def out_of_service(repairs: Sequence[tuple[float, float]]) -> tuple[Row, Row]:
    """Times at which the number of machines out of service changes, and the number from then on."""
    changes = [(since, 1) for since, _ in repairs] + [(until, -1) for _, until in repairs]
    changes.sort()
    times = np.array([0.0, *(time for time, _ in changes)])
    return times, np.cumsum([0, *(change for _, change in changes)], dtype=np.float64)


def _draw_shop(axes: Axes, recorded: RecordedCampaign, clock: _Clock) -> None:
    times, out = out_of_service(recorded.result.repairs)
    axes.stairs(out[:-1], times / clock.size, color=_ORANGE, linewidth=1.0, label="out of service")
    spares = recorded.plan.hot.size + recorded.plan.warm.size
    if spares <= 3 * out.max():
        axes.axhline(spares, color="#000000", linestyle="--", linewidth=1.0, label=f"spares: {spares:,}")
    else:
        axes.plot([], [], " ", label=f"({spares:,} spares, above)")
    axes.set(ylim=(0, None), ylabel="machines")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.05), frameon=False, fontsize=9)
