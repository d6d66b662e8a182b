"""What a campaign means: MFU and what took it away, goodput, interruptions, GPU-hours by fate, energy and cost.

Every figure is a function of the record, the plan that was executed and the `Fleet` that it ran on. With h the healthy
MFU and t the seconds of a fate, that fate costs h · t / wall-clock points of MFU: kept FLOPs / (peak · wall-clock) =
h · productive / wall-clock, and every second is in exactly one fate, so that the parts add up to healthy - effective
to the last bits. Wall-clock is the sum of the fates.

Pinned by tests/results/test_campaign_figures.py; every key is defined in docs/definitions.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, NamedTuple

import numpy as np

from simulator.physics.campaign.plan import CampaignPlan, Phase
from simulator.records import CAMPAIGN_KEYS, FAILURE_KEYS, CampaignResult
from simulator.results.metrics import job_peak
from simulator.scenario.scenario import Scenario
from simulator.scenario.units import Flop, FlopPerSecond, Seconds, Watts

BADPUT_TYPES = {
    "lost_work": "WASTED_PROGRESS_FROM_DISRUPTION",
    "checkpoint": "UNPRODUCTIVE_CHECKPOINT_SAVE_TIME",
    "detection": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    "restart": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    "waiting": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    "degraded": "OTHER",
    "straggling": "OTHER",
    "slowdown": "OTHER",
    "evaluation": "CUSTOM_BADPUT_EVENTS",
    "planned": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    "data_stall": "DATA_LOADING_SYNC",
    "rewind": "WASTED_PROGRESS_FROM_DISRUPTION",
}
"""What ml-goodput-measurement v0.2.3 (`BadputType`) calls each fate. It has no name for steps that take longer than
they should: it counts them as productive and reports their deviation apart."""
_BADPUT_OF_CAUSE = {("restart", "start"): "PROGRAM_STARTUP", ("degraded", "elastic"): "ELASTIC_SLICE_DOWN"}
_BADPUT_NAMES = tuple(dict.fromkeys([*BADPUT_TYPES.values(), *_BADPUT_OF_CAUSE.values()]))

BUSY_KEYS = ("productive", "lost_work", "degraded", "straggling", "slowdown", "evaluation", "rewind")
"""Fates in which GPUs draw their full power. Assumption: in all others they rest, also those that spin in a hung
collective; machines in repair are off."""

_HOUR = 3600.0
_UNATTRIBUTED = "other"


class Draw(NamedTuple):
    """Watts of the whole site per GPU that works, and per one that rests; USD per kWh, where known."""

    busy: Watts
    idle: Watts
    price: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What a campaign runs on and what that costs, in plain numbers.

    Attributes
    ----------
    job_gpus, spare_gpus
        GPUs that compute, and GPUs that are owned beside them.
    gpus_per_node
        GPUs that a machine takes with it.
    peak
        Dense peak of all job GPUs in the compute precision.
    price_per_gpu_hour
        USD, where known.
    """

    job_gpus: int
    spare_gpus: int
    gpus_per_node: int
    peak: FlopPerSecond
    price_per_gpu_hour: float | None = None
    power: Draw | None = None

    @property
    def owned(self) -> int:
        """GPUs that are paid for."""
        return self.job_gpus + self.spare_gpus


def fleet_of(scenario: Scenario, plan: CampaignPlan) -> Fleet:
    """What the scenario's run has and pays: the job's GPUs and those of the hot and warm spares."""
    per_node, power = scenario.cluster.topology.gpus_per_node, scenario.cluster.power
    return Fleet(
        job_gpus=scenario.gpus,
        spare_gpus=(plan.hot.size + plan.warm.size) * per_node,
        gpus_per_node=per_node,
        peak=job_peak(scenario),
        price_per_gpu_hour=scenario.cluster.price_per_gpu_hour,
        power=Draw(*power.drawn(scenario.accelerator.tdp), power.price_per_kwh),
    )


def campaign_figures(fleet: Fleet, plan: CampaignPlan, campaign: CampaignResult) -> dict[str, Any]:
    """Figures of the whole run: the `campaign` object of the JSON output."""
    time = campaign.time_s
    wall = fsum(time.values())
    assert abs(wall - campaign.wall_clock) <= 1e-6 * wall, "every second has one fate"
    kept = kept_flops(plan.phases, campaign.steps)
    healthy, effective = kept / (fleet.peak * time["productive"]), kept / (fleet.peak * wall)
    causes = _by_cause(campaign)
    loss = mfu_loss(healthy, time, causes)
    gpu_hours = fleet.owned * wall / _HOUR
    failing = _failure_seconds(time, causes)
    price = fleet.price_per_gpu_hour
    return {
        "wall_clock_s": wall,
        "finish_days": wall / 86400.0,
        "effective_mfu": effective,
        "effective_mfu_owned": effective * fleet.job_gpus / fleet.owned,
        "healthy_mfu": healthy,
        "failure_induced_mfu_loss": loss["failure_induced"],
        "mfu_loss": loss,
        "kept_model_flops": kept,
        "goodput": time["productive"] / wall,
        "badput_s": badput(time, causes),
        "ettr": time["productive"] / wall,
        "sliding_ettr": sliding_ettr(campaign.hours, wall),
        **_interruptions(plan, campaign, wall, causes),
        **_skipped(plan, campaign),
        **{f"{key}_s": time[key] for key in CAMPAIGN_KEYS},
        "time_by_cause_s": causes,
        "steps": campaign.steps,
        "phases": _phases(fleet, plan, campaign),
        "saves": dict(campaign.saves),
        "recoveries": dict(campaign.recoveries),
        "spares": _spares(campaign, wall),
        "job_gpus": fleet.job_gpus,
        "spare_gpus": fleet.spare_gpus,
        "gpu_hours": gpu_hours,
        "job_gpu_hours": fleet.job_gpus * wall / _HOUR,
        "gpu_hour_fates": (fates := gpu_hour_fates(fleet, time, campaign.machine_s, plan.policy)),
        "cost_usd": None if price is None else gpu_hours * price,
        "failure_cost_usd": None if price is None else fleet.owned * failing / _HOUR * price,
        **_energy(fleet.power, fates),
    }


# --- MFU -------------------------------------------------------------------------------------------------------------


def kept_flops(phases: Sequence[Phase], steps: int) -> Flop:
    """Model FLOPs of the first so many steps."""
    done = []
    for phase in phases:
        done.append(min(steps, phase.steps) * phase.flops)
        steps -= min(steps, phase.steps)
    return fsum(done)


def mfu_loss(
    healthy: float, time_s: Mapping[str, Seconds], causes: Mapping[str, Mapping[str, Seconds]]
) -> dict[str, Any]:
    """Healthy minus effective MFU, by fate and by cause.

    Parameters
    ----------
    healthy
        MFU of the kept steps at their healthy pace.
    time_s
        Seconds by fate.
    causes
        {cause: {fate: seconds}}, adding up to `time_s` but for `productive`.

    Returns
    -------
    dict
        `total` = sum of `parts` = sum of `by_cause`, to 1e-15; `failure_induced`: the parts of `FAILURE_KEYS` less
        the first start, which no failure asked for.
    """
    per_second = healthy / fsum(time_s.values())
    parts = {key: per_second * time_s[key] for key in CAMPAIGN_KEYS if key != "productive"}
    by_cause = {cause: fsum(per_second * spent for spent in fates.values()) for cause, fates in causes.items()}
    return {
        "total": fsum(parts.values()),
        "failure_induced": per_second * _failure_seconds(time_s, causes),
        "parts": parts,
        "by_cause": by_cause,
    }


def _failure_seconds(time_s: Mapping[str, Seconds], causes: Mapping[str, Mapping[str, Seconds]]) -> Seconds:
    """What failures took: their fates, without the first start."""
    first_start = causes.get("start", {}).get("restart", 0.0)
    return max(0.0, fsum([*(time_s[key] for key in FAILURE_KEYS), -first_start]))


def _by_cause(campaign: CampaignResult) -> dict[str, dict[str, Seconds]]:
    """Seconds by cause and fate such that those of a fate add up to its seconds to the last bits.

    The engine adds up both as it goes, in different orders: the hair between them is shared in proportion.
    """
    found: dict[str, dict[str, Seconds]] = {cause: {} for cause in campaign.by_cause}
    for key in CAMPAIGN_KEYS:
        total = campaign.time_s[key]
        if key == "productive" or not total:
            continue
        shares = {cause: fates[key] for cause, fates in campaign.by_cause.items() if fates.get(key)}
        known = fsum(shares.values())
        if known < total * (1 - 1e-6):  # what nobody answers for, in records that keep no causes
            found.setdefault(_UNATTRIBUTED, {})[key] = total - known
            scale = 1.0
        else:
            scale = total / known
        for cause, spent in shares.items():
            found[cause][key] = spent * scale
    return {cause: fates for cause, fates in found.items() if fates}


# --- goodput ---------------------------------------------------------------------------------------------------------


def badput(time_s: Mapping[str, Seconds], causes: Mapping[str, Mapping[str, Seconds]]) -> dict[str, Seconds]:
    """Unproductive seconds under the names of ml-goodput-measurement; with `productive` they add up to wall-clock."""
    spent: dict[str, list[Seconds]] = {name: [] for name in _BADPUT_NAMES}
    for key, name in BADPUT_TYPES.items():
        left = [time_s[key]]
        for (fate, cause), special in _BADPUT_OF_CAUSE.items():
            part = causes.get(cause, {}).get(key, 0.0) if fate == key else 0.0
            spent[special].append(part)
            left.append(-part)
        spent[name].extend(left)
    return {name: max(0.0, fsum(parts)) for name, parts in spent.items()}


def sliding_ettr(hours: Sequence[Seconds], wall: Seconds) -> dict[str, float] | None:
    """Productive share of each whole hour of wall-clock: worst, 10th percentile and median; None without records.

    A last hour that is not whole counts only if it is the only one.
    """
    if not hours:
        return None
    whole = int(wall // _HOUR)
    shares = [seconds / _HOUR for seconds in hours[:whole]] or [hours[0] / wall]
    return {
        "worst": min(shares),
        "p10": float(np.quantile(shares, 0.1)),
        "median": float(np.quantile(shares, 0.5)),
        "hours": len(shares),
    }


# --- what happened ---------------------------------------------------------------------------------------------------


def _interruptions(
    plan: CampaignPlan, campaign: CampaignResult, wall: Seconds, causes: Mapping[str, Mapping[str, Seconds]]
) -> dict[str, Any]:
    """Failures that struck, those that stopped the job, and the mean times between and to recovery.

    Pauses stop nothing, and a rewind is a choice of those who train: its time is booked as `rewind`, not as down.
    """
    others = {failure.name for failure in plan.failures if failure.effect in ("pause", "rewind")}
    by_class = {name: struck for name, struck in campaign.failures.items() if name not in others}
    number, time = sum(by_class.values()), campaign.time_s
    first_start = causes.get("start", {}).get("restart", 0.0)
    down = max(0.0, fsum([time["detection"], time["waiting"], time["restart"], -first_start]))
    up = max(0.0, fsum([wall, -down, -first_start, -time["planned"]]))
    return {
        "failures": sum(campaign.failures.values()),
        "failures_by_class": dict(campaign.failures),
        "interruptions": number,
        "interruptions_by_class": by_class,
        "undiscovered_corruptions": campaign.undiscovered,
        "mttf_s": up / number if number else None,
        "mttr_s": down / number if number else None,
    }


def _skipped(plan: CampaignPlan, campaign: CampaignResult) -> dict[str, float | None]:
    """Batches whose data loss spikes left out, and their tokens at the run's mean batch; null where that is unknown."""
    batches = sum(campaign.failures.get(failure.name, 0) * failure.skip for failure in plan.failures)
    tokens = fsum(phase.steps * phase.tokens for phase in plan.phases)
    return {"skipped_batches": batches, "skipped_tokens": batches * tokens / plan.steps if tokens else None}


def _phases(fleet: Fleet, plan: CampaignPlan, campaign: CampaignResult) -> list[dict[str, Any]]:
    """Each phase with what it took and its MFU, healthy and effective."""
    times = campaign.phases or ((campaign.wall_clock,) if len(plan.phases) == 1 else ())
    return [
        {
            "name": phase.name,
            "steps": phase.steps,
            "step_time_s": phase.step_time,
            "healthy_mfu": phase.flops / (fleet.peak * phase.step_time),
            "effective_mfu": phase.steps * phase.flops / (fleet.peak * spent) if spent else None,
            "wall_clock_s": spent,
        }
        for phase, spent in zip(plan.phases, times, strict=False)
    ]


def _spares(campaign: CampaignResult, wall: Seconds) -> dict[str, float | None]:
    """Machines drawn by pool, waits, repairs; machines in repair and standing by, in the mean."""
    machine_s = campaign.machine_s
    means = {f"{what}_mean": machine_s[what] / wall for what in ("repair", "idle", "borrowed") if what in machine_s}
    return {**campaign.draws, **means}


# --- what it cost ----------------------------------------------------------------------------------------------------


def gpu_hour_fates(
    fleet: Fleet, time_s: Mapping[str, Seconds], machine_s: Mapping[str, Seconds], policy: str = "restart"
) -> dict[str, float]:
    """GPU-hours by fate over all owned GPUs, adding up to owned · wall-clock.

    The job's GPUs share the job's fate, also a place that is empty while the job waits. Beside them owned machines
    stand by (`idle_spare`) or do not (`in_repair`: in the shop or retired, as many as the job does not miss).
    `borrowed` is negative: what the job got from machines that are not owned.

    An `elastic` job runs without what it misses: those machines are `in_repair` too, and their hours are taken from
    `degraded` (what steps take longer without them), then `waiting`, then from what the job did in proportion. Limits:
    of retired machines it is not known how many the job misses.
    """
    wall = fsum(time_s.values())
    fates = {key: fleet.job_gpus * time_s[key] / _HOUR for key in CAMPAIGN_KEYS}
    lent = fleet.gpus_per_node * machine_s.get("borrowed", 0.0) / _HOUR
    beside = fleet.spare_gpus * wall / _HOUR + lent  # owned GPU-hours that are not the job's
    idle = fleet.gpus_per_node * machine_s["idle"] / _HOUR if "idle" in machine_s else beside
    out = beside - idle
    if out < 1e-9 * beside:  # rounding, which the larger part takes
        out = 0.0
    standing = beside - out
    if policy == "elastic":
        missed = fleet.gpus_per_node * machine_s.get("repair", 0.0) / _HOUR - out
        out += _take(fates, min(missed, fsum(fates.values())))
    return {**fates, "idle_spare": standing, "in_repair": out, "borrowed": 0.0 - lent}


def _take(fates: dict[str, float], missed: float) -> float:
    """Take the hours of machines that are not there from what the job did; returns how many were taken."""
    if missed <= 0:
        return 0.0
    left = missed
    for key in ("degraded", "waiting"):
        part = min(left, fates[key])
        fates[key] -= part
        left -= part
    total = fsum(fates.values())
    for key in fates:
        fates[key] *= 1 - left / total if total else 1.0
    return missed


def _energy(power: Draw | None, fates: Mapping[str, float]) -> dict[str, float | None]:
    """Energy of all owned and borrowed machines, and its price: full power at work, less at rest."""
    if power is None:
        return {"energy_kwh": None, "energy_cost_usd": None}
    busy = fsum(fates[key] for key in BUSY_KEYS)
    resting = fsum(hours for fate, hours in fates.items() if fate not in (*BUSY_KEYS, "in_repair", "borrowed"))
    energy = (busy * power.busy + resting * power.idle) / 1000.0
    return {"energy_kwh": energy, "energy_cost_usd": None if power.price is None else energy * power.price}
