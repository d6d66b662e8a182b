"""What breaks, as the job sees it: rates of all its components together, and what each failure takes.

Rates in a scenario are means over all machines, lemons included. A share s of lemons that fail f times as often as good
machines makes s (f - 1)/(1 + s (f - 1)) of such a rate theirs alone: what is left when they are gone.

Limits: only failures that strike at a rate (exponential) and hit machines come from lemons; how many nodes of a leaf or
rack are lost is drawn, not which.

Pinned by tests/physics/campaign/test_hazards.py.
"""

from __future__ import annotations

import numpy as np

from simulator.errors import ScenarioError
from simulator.physics.campaign.classes import Orbits
from simulator.physics.campaign.components import ONE, Components, Odds, odds
from simulator.physics.campaign.plan import (
    BurnIn,
    Duration,
    Hazard,
    JobFailure,
    Lemons,
    SlowSource,
    Window,
)
from simulator.physics.collectives.groups import IntArray
from simulator.scenario.reliability.durations import LogNormal
from simulator.scenario.reliability.failures import FailureClass
from simulator.scenario.reliability.section import Reliability
from simulator.scenario.reliability.slow import SlowSource as StatedSlowSource
from simulator.scenario.units import Rate


def duration(time: LogNormal) -> Duration:
    """The same for the campaign."""
    return Duration(time.median, time.sigma)


def members(parts: Components, per: str) -> int:
    """How many of the job's components a rate per `gpu`, `node`, `nic`, `link`, `leaf`, `rack` or `job` counts.

    Raises
    ------
    ScenarioError
        The job has none.
    """
    counts = {"gpu": parts.gpus, "node": parts.nodes, "nic": parts.nics, "link": parts.links, "job": 1}
    counts["leaf"] = len(parts.leaves)
    count = len(parts.known_racks()) if per == "rack" else counts[per]
    if not count:
        raise ScenarioError(
            f"a rate per {per} means nothing here: the job uses no {per}; write it per node or per job",
            field="reliability",
        )
    return count


def job_rate(parts: Components, rate: Rate) -> float:
    """Events per second of the whole job."""
    return rate.per_second * members(parts, rate.per)


def job_failures(reliability: Reliability, parts: Components) -> tuple[JobFailure, ...]:
    """Failure classes, and loss spikes, of the whole job."""
    section = reliability.expanded
    lemons = section.lemons
    found = [job_failure(failure, parts, lemon_share(lemons)) for failure in section.failures]
    spikes = section.loss_spikes
    if spikes is not None:
        hazard = Hazard("poisson", job_rate(parts, spikes.rate))
        spike = JobFailure("loss_spikes", hazard, "rewind", machine_share=0.0, rewind=spikes.rewind)
        found.append(spike._replace(skip=spikes.skip or 0))
    return tuple(found)


def lemon_share(lemons: Lemons | object | None) -> float:
    """Part of a mean rate that bad machines add to what they would fail if they were good."""
    share, factor = getattr(lemons, "share", 0.0), getattr(lemons, "factor", 1.0)
    extra = share * (factor - 1)
    return float(extra / (1 + extra))


def job_failure(failure: FailureClass, parts: Components, from_lemons: float = 0.0) -> JobFailure:
    """One class of the scenario as the job sees it."""
    hits, taken = _blast(failure, parts)
    machine_share = failure.machine_share * hits
    exponential = failure.distribution.kind == "exponential"
    return JobFailure(
        name=failure.name,
        hazard=_hazard(failure, parts),
        effect=failure.effect,
        detection=duration(failure.detection),
        diagnosis=duration(failure.diagnosis),
        wrong_diagnosis=failure.wrong_diagnosis,
        machine_share=machine_share,
        machines=_at_most(taken, parts.nodes),
        burst=(0.0, 0) if failure.burst is None else (failure.burst.probability, failure.burst.machines),
        repair=None if failure.time_to_repair is None else duration(failure.time_to_repair),
        restart=None if failure.restart is None else duration(failure.restart),
        rewind=failure.rewind or 0,
        lemon_share=from_lemons if exponential and machine_share > 0 else 0.0,
    )


def _at_most(taken: Odds, nodes: int) -> Odds:
    return tuple((min(count, nodes), odds) for count, odds in taken)


def _blast(failure: FailureClass, parts: Components) -> tuple[float, Odds]:
    """Probability that what is hit holds machines of the job, and how many."""
    if failure.component == "job":
        return 0.0, ONE
    if failure.component == "link":
        return (parts.only_links / parts.links if parts.links else 0.0), ONE
    if failure.component not in ("leaf", "rack"):
        return 1.0, ONE
    lost: IntArray = parts.lost_with_leaf if failure.component == "leaf" else parts.known_racks()
    if not len(lost):
        raise ScenarioError(
            f"{failure.name!r} hits a {failure.component}, but the job uses none; write component: node",
            field="reliability.failures",
        )
    own = failure.rate.per == failure.component
    below = parts.leaves if failure.component == "leaf" else parts.known_racks()
    return odds(lost, np.ones_like(lost) if own else below)


def _hazard(failure: FailureClass, parts: Components) -> Hazard:
    spread = failure.distribution
    rate = job_rate(parts, failure.rate)
    if spread.kind == "exponential":
        return _poisson(failure, rate)
    if not spread.is_batch:
        return Hazard("renewal", rate, shape=spread.shape, sigma=spread.sigma)
    if not failure.rate.per_second:
        return Hazard("poisson", 0.0)
    return Hazard(
        "batch",
        shape=spread.shape,
        units=members(parts, failure.rate.per),
        scale=spread.scale(failure.rate.per_second),
        age=spread.age or 0.0,
    )


def _poisson(source: FailureClass | StatedSlowSource, rate: float) -> Hazard:
    """A rate with its windows and its burn-in."""
    windows = tuple(Window(window.from_, window.until, window.factor) for window in source.windows)
    burn_in = None if source.burn_in is None else BurnIn(source.burn_in.factor - 1, source.burn_in.decay)
    return Hazard("poisson", rate, windows=windows, burn_in=burn_in)


def slow_source(source: StatedSlowSource, parts: Components, orbits: Orbits | None) -> SlowSource:
    """One fail-slow source of the scenario; `orbits` of its kind, None for `job`."""
    rate = 0.0 if source.rate is None else job_rate(parts, source.rate)
    return SlowSource(
        name=source.name,
        kind=source.kind,
        classes=(1,) if orbits is None else orbits.counts,
        share=source.share,
        hazard=_poisson(source, rate),
        severity=source.severity,
        duration=None if source.duration is None else duration(source.duration),
        detection=None if source.detection is None else duration(source.detection),
        swap=source.swap,
    )
