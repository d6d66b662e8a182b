"""The close-up in the picture of a campaign: the few incidents that cost the largest share of their time.

Limits: incidents that strike before the one before is over share a label; at most eight labels are written.
Pinned by tests/report/test_campaign_plot.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from simulator.records import CampaignResult, Incident, Progress
from simulator.report.failure_loss import FATES, short_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = NDArray[np.float64]

# Incidents that are looked for together, and the share of their stretch that they must cost at least to be seen.
_CLOSE_UP = 4
_VISIBLE = 0.15
_HOUR = 3600.0


def polyline(progress: Sequence[Progress]) -> tuple[Row, Row]:
    """Seconds and steps at the ends of every stretch, with the falls between them."""
    times = np.array([(each.start, each.end) for each in progress], dtype=np.float64).reshape(-1)
    steps = np.array([(each.first, each.last) for each in progress], dtype=np.float64).reshape(-1)
    return times, steps


def words(name: str) -> str:
    """The name of a class or of a cause as it is written for people."""
    return name.replace("_", " ")


def close_up(incidents: Sequence[Incident], wall_clock: float) -> tuple[float, float]:
    """Start and end of the few consecutive incidents that cost the largest share of their time, with a margin.

    Fewer of them where they lie so far apart that what each undid could not be seen; the whole run without any.
    """
    # Silent corruption undoes what came after it, and a spike what is long done: only the last stretch can be seen.
    since = [
        each.time - before for each, before in zip(incidents, [0.0, *(each.time for each in incidents)], strict=False)
    ]
    cost = [min(each.lost_work_s, last) + each.down_s for each, last in zip(incidents, since, strict=True)]
    for number in range(min(_CLOSE_UP, len(incidents)), 0, -1):
        spans = [
            (few[0].time - min(few[0].lost_work_s, since[first]), few[-1].time + few[-1].down_s)
            for first in range(len(incidents) - number + 1)
            for few in (incidents[first : first + number],)
        ]
        shares = [sum(cost[first : first + number]) / max(end - start, 1.0) for first, (start, end) in enumerate(spans)]
        best = max(range(len(spans)), key=lambda first: (shares[first], sum(cost[first : first + number])))
        if shares[best] >= _VISIBLE or number == 1:
            start, end = spans[best]
            margin = (0.12 if number > 1 else 1.0) * (end - start) + 60.0
            start, end = max(0.0, start - margin), end + margin
            for each in incidents:  # what strikes in the margin is seen until it is over
                if start < each.time < end:
                    end = max(end, each.time + each.down_s + 0.3 * margin)
            return start, min(wall_clock, end)
    return 0.0, wall_clock


def chains(incidents: Sequence[Incident]) -> list[list[Incident]]:
    """Incidents in time order, those together of which each struck before the one before was over."""
    found: list[list[Incident]] = []
    for each in incidents:
        if found and each.time <= found[-1][-1].time + found[-1][-1].down_s + 1.0:
            found[-1].append(each)
        else:
            found.append([each])
    return found


def told(chain: Sequence[Incident]) -> str:
    """What a chain of incidents was and cost in all: ``2 × host, nic: 12 min lost, 34 min down``."""
    kinds = Counter(each.kind for each in chain)
    names = ", ".join(words(kind) if number == 1 else f"{number} × {words(kind)}" for kind, number in kinds.items())
    lost, down = sum(each.lost_work_s for each in chain), sum(each.down_s for each in chain)
    return f"{names}: {_brief(lost) if lost >= 1 else 'nothing'} lost, {_brief(down)} down"


def _brief(time: float) -> str:
    return short_time(float(f"{time:.2g}")) if time < 60 else short_time(time)


def draw_close_up(axes: Axes, result: CampaignResult, unit: str, size: float) -> None:
    """Draw the costliest stretch of a campaign in hours; its start is told in `unit`s of `size` seconds."""
    start, end = close_up(result.incidents, result.wall_clock)
    shown = [each for each in result.progress if each.end >= start and each.start <= end]
    inside = [each for each in result.incidents if start <= each.time <= end]
    times, steps = polyline(shown)
    _draw_stretches(axes, shown, start, end)
    axes.plot((times - start) / _HOUR, steps, color="#000000", linewidth=1.4)
    ends = np.interp([start, end], times, steps) if len(times) else np.array([0.0, 1.0])
    visible = np.concatenate([steps[(times >= start) & (times <= end)], ends])
    low, high = float(visible.min()), float(visible.max())
    reach = max(high - low, 1.0)
    axes.set_xlim(0, (end - start) / _HOUR)
    axes.set_ylim(low - 0.08 * reach, high + 0.45 * reach)
    for row, chain in enumerate(chains(inside)[: 2 * _CLOSE_UP]):
        x, height = (chain[0].time - start) / _HOUR, high + reach * (0.37 - 0.1 * (row % 4))
        right = x > 0.7 * (end - start) / _HOUR
        for each in chain:
            at, top = (each.time - start) / _HOUR, height if each is chain[0] else high
            axes.plot([at, at], [low - 0.08 * reach, top], color="#000000", linewidth=0.8, linestyle=":")
        axes.annotate(
            told(chain), (x, height),
            xytext=(-4 if right else 4, 0), textcoords="offset points", ha="right" if right else "left", va="center",
            fontsize=9, bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    axes.set_ylabel("steps")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(f"close-up of a costly stretch: hours since {unit} {start / size:.2f}")


def _draw_stretches(axes: Axes, shown: Sequence[Progress], start: float, end: float) -> None:
    """Colour what is not productive by its fate; steps that a rewind undid are paler than the way back."""
    handles: dict[str, Patch] = {}
    for each in shown:
        if each.key == "productive" or min(each.end, end) <= max(each.start, start):
            continue
        name, colour = FATES[each.key]
        alpha = 0.45
        if each.key == "rewind":
            undone = each.last > each.first
            name, alpha = ("steps that a spike undid", 0.3) if undone else ("going back", 0.75)
        left, right = max(each.start, start), min(each.end, end)
        axes.axvspan((left - start) / _HOUR, (right - start) / _HOUR, color=colour, alpha=alpha, linewidth=0)
        handles[name] = Patch(color=colour, alpha=alpha, linewidth=0, label=name)
    if handles:
        axes.legend(
            handles=list(handles.values()), loc="upper left", bbox_to_anchor=(1.005, 1.03), frameon=False, fontsize=8.5
        )
