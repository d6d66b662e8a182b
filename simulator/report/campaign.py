"""The run in months: where its time and its MFU went, what interrupted it, what it cost.

Pinned by tests/report/test_campaign.py.
"""

from __future__ import annotations

from typing import Any

from simulator.report.formats import amount, by_key, count, duration, percent, points, seconds
from simulator.report.layout import Report, pairs, section, table

# Causes beyond these are one row: the longest preset has eighteen, of which most cost next to nothing.
_CAUSES = 12
_BAR = 24


def campaign_report(run: dict[str, Any], tokens: float, measured: bool = False) -> Report:
    """Summary, where the wall-clock and the MFU go, causes, and phases where there are several.

    Parameters
    ----------
    run
        Figures of the campaign.
    tokens
        That it trains on.
    measured
        Whether its healthy steps are stated (`reliability.step_time`) and not the simulated ones.
    """
    stated = [("step time", f"{_healthy_steps(run)}  (measured: reliability.step_time)")] if measured else []
    report = pairs(f"Run of {count(run['steps'])} steps, {amount(tokens, 'tokens')}", stated + _summary(run))
    report += _waterfall(run) + _causes(run)
    return report + (_phases(run) if len(run["phases"]) > 1 else [])


def _summary(run: dict[str, Any]) -> list[tuple[str, str]]:
    owned = f"  (over all {count(run['job_gpus'] + run['spare_gpus'])} GPUs {percent(run['effective_mfu_owned'])})"
    spares = f"  ({count(run['job_gpus'])} + {count(run['spare_gpus'])} spare GPUs)"
    cost = run["cost_usd"]
    failing = f"  ({by_key('cost_usd', run['failure_cost_usd'])} of it in the time that failures took)"
    rows = [
        ("wall-clock", duration(run["wall_clock_s"])),
        ("effective MFU", percent(run["effective_mfu"]) + (owned if run["spare_gpus"] else "")),
        ("healthy MFU", percent(run["healthy_mfu"]) + _points_lost(run)),
        ("goodput", percent(run["goodput"]) + _sliding(run["sliding_ettr"])),
        ("failures", count(run["failures"]) + _between(run)),
        ("spares", _spares(run["spares"])),
        ("GPU-hours", count(run["gpu_hours"]) + (spares if run["spare_gpus"] else "")),
        ("energy", _energy(run)),
        ("cost", "no price given" if cost is None else by_key("cost_usd", cost) + (failing if run["failures"] else "")),
    ]
    return [(name, text) for name, text in rows if text]


def _healthy_steps(run: dict[str, Any]) -> str:
    """Of one phase, or from the shortest to the longest."""
    times = [phase["step_time_s"] for phase in run["phases"]]
    return seconds(times[0]) if len(set(times)) == 1 else f"{seconds(min(times))} – {seconds(max(times))}"


def _points_lost(run: dict[str, Any]) -> str:
    """What came between healthy and effective MFU, in points."""
    lost, failing = run["mfu_loss"]["total"], run["failure_induced_mfu_loss"]
    if not lost:
        return ""
    whole = run["healthy_mfu"]
    return f"  ({points(lost, whole)} points lost, {points(failing, whole)} of them to failures)"


def _sliding(ettr: dict[str, float] | None) -> str:
    if ettr is None or ettr["worst"] == ettr["median"]:
        return ""
    return (
        f"  (by the hour: worst {percent(ettr['worst'])}, P10 {percent(ettr['p10'])}, median {percent(ettr['median'])})"
    )


def _between(run: dict[str, Any]) -> str:
    """Mean times, and how many of the failures stopped nothing."""
    if not run["interruptions"]:
        return ""
    pauses = run["failures"] - run["interruptions"]
    stopping = f"{count(run['interruptions'])} stopped the job: " if pauses else ""
    return f"  ({stopping}{duration(run['mttf_s'])} up between them, {duration(run['mttr_s'])} down for each)"


def _spares(spares: dict[str, float]) -> str:
    drawn = [f"{count(spares[pool])} {pool}" for pool in ("hot", "warm", "preempted") if spares.get(pool)]
    parts = [", ".join(drawn) + " machines drawn"] if drawn else []
    if spares.get("repair_mean"):
        parts.append(f"{spares['repair_mean']:.1f} in repair in the mean")
    if spares.get("waits"):
        parts.append(f"{count(spares['waits'])} waits for one")
    if spares.get("retired"):
        parts.append(f"{count(spares['retired'])} retired")
    return ", ".join(parts)


def _energy(run: dict[str, Any]) -> str:
    if run["energy_kwh"] is None:
        return ""
    price = "" if run["energy_cost_usd"] is None else f"  ({by_key('energy_cost_usd', run['energy_cost_usd'])})"
    return by_key("energy_kwh", run["energy_kwh"]) + price


def _waterfall(run: dict[str, Any]) -> Report:
    """Healthy MFU, what each fate takes from it, effective MFU: points are of peak, bars of the healthy MFU."""
    drawn = table("", "time", "share", "MFU", "")
    drawn.columns[4].justify = "left"
    wall, healthy, left = run["wall_clock_s"], run["healthy_mfu"], run["healthy_mfu"]
    drawn.add_row("healthy", *_shares(run["productive_s"], wall), points(healthy, healthy), "█" * _BAR)
    for key, lost in run["mfu_loss"]["parts"].items():
        if not lost:
            continue
        before, left = left, left - lost
        place, width = round(_BAR * left / healthy), round(_BAR * before / healthy)
        bar = " " * min(place, _BAR - 1) + "▒" * max(1, width - place)
        drawn.add_row(key.replace("_", " "), *_shares(run[f"{key}_s"], wall), points(-lost, healthy), bar)
    effective = run["effective_mfu"]
    bar = "█" * round(_BAR * effective / healthy)
    drawn.add_row("effective", *_shares(wall, wall), points(effective, healthy), bar)
    return section("Where the run goes (MFU in points)", drawn)


def _shares(time: float, wall: float) -> tuple[str, str]:
    return duration(time), percent(time / wall)


def _causes(run: dict[str, Any]) -> Report:
    """What took time, the costliest first: how often it struck and what it took."""
    spent = {cause: sum(fates.values()) for cause, fates in run["time_by_cause_s"].items()}
    if not spent:
        return []
    order = sorted(spent, key=lambda cause: (-spent[cause], cause))
    shown = order if len(order) <= _CAUSES + 1 else order[:_CAUSES]
    rest = order[len(shown) :]
    priced = run["cost_usd"] is not None
    drawn = table("", "count", "time", "each", "share", "MFU", *(["cost"] if priced else []))

    def add(name: str, struck: int | None, time: float, lost: float) -> None:
        cost = [by_key("cost_usd", run["cost_usd"] * time / run["wall_clock_s"])] if priced else []
        often = ("", "") if not struck else (count(struck), duration(time / struck))
        share = percent(time / run["wall_clock_s"])
        drawn.add_row(name, often[0], duration(time), often[1], share, points(-lost, run["healthy_mfu"]), *cost)

    counts, lost = run["failures_by_class"], run["mfu_loss"]["by_cause"]
    for cause in shown:
        add(cause.replace("_", " "), counts.get(cause), spent[cause], lost[cause])
    if rest:
        add(f"{len(rest)} others", sum(counts.get(cause, 0) for cause in rest), sum(spent[cause] for cause in rest),
            sum(lost[cause] for cause in rest))  # fmt: skip
    return section("What took it", drawn)


def _phases(run: dict[str, Any]) -> Report:
    drawn = table("phase", "steps", "step time", "wall-clock", "healthy MFU", "effective MFU")
    for phase in run["phases"]:
        drawn.add_row(
            phase["name"],
            count(phase["steps"]),
            seconds(phase["step_time_s"]),
            duration(phase["wall_clock_s"]),
            percent(phase["healthy_mfu"]),
            by_key("effective_mfu", phase["effective_mfu"]),
        )
    return section("Phases", drawn)
