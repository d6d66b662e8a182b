"""A scenario's reliability, and the steps of its phases, as a `CampaignPlan` for one job on one cluster.

Everything that needs the cluster graph is looked up here: how many components fail, what goes down with a leaf switch
or a rack, what saves and loads take, which components are alike. The interval between saves is chosen here as well,
but for `simulated`, which a study finds.

Pinned by tests/physics/campaign/test_planning.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simulator.errors import ScenarioError
from simulator.physics.campaign.classes import Orbits
from simulator.physics.campaign.components import Components, count_components, replica_units
from simulator.physics.campaign.hazards import duration, job_failures, job_rate, slow_source
from simulator.physics.campaign.intervals import saving_interval
from simulator.physics.campaign.plan import (
    ALL_MACHINES,
    ZERO,
    CampaignPlan,
    Duration,
    Elastic,
    Evaluation,
    Hazard,
    JobFailure,
    Lemons,
    Pause,
    Phase,
    Pool,
    Shop,
    Tier,
)
from simulator.physics.campaign.saving import Checkpoints
from simulator.physics.graph import ClusterGraph
from simulator.scenario.reliability.checkpoint import Tier as StatedTier
from simulator.scenario.reliability.durations import LogNormal, add
from simulator.scenario.reliability.section import Reliability
from simulator.scenario.scenario import Scenario
from simulator.scenario.units import Flop, Seconds, Tokens, readable_time

RESTARTED = "storage"
"""Name of the tier that the checkpoint itself is on."""


class PhaseWork(NamedTuple):
    """What a phase asks for: `steps` of `step_time` seconds and `flops` model FLOPs, and the recipe."""

    name: str
    steps: int
    step_time: Seconds
    flops: Flop
    scenario: Scenario


def plan_campaign(
    scenario: Scenario,
    cluster: ClusterGraph,
    phases: Sequence[PhaseWork],
    orbits: Mapping[str, Orbits] | None = None,
    *,
    every: int | None = None,
) -> CampaignPlan:
    """What the `reliability:` section means for one job; without one, nothing breaks and nothing is saved.

    Parameters
    ----------
    cluster
        Its graph.
    phases
        Of the run, in order.
    orbits
        Classes of components, for the kinds that `slow` names.
    every
        Steps between saves to the storage, in place of the section's `interval`.

    Raises
    ------
    ScenarioError
        No save or load time is known, an interval is shorter than a save, there are more spares than machines, or the
        job has no component of a kind that fails.
    """
    reliability = scenario.reliability
    parts = count_components(scenario, cluster)
    if reliability is None:
        return CampaignPlan(phases=tuple(_free(work) for work in phases), machines=parts.nodes)
    reliability = reliability.expanded
    failures = job_failures(reliability, parts)
    elastic = _elastic(reliability, scenario, cluster, parts.gpus)
    keeps = elastic is not None and elastic.keeps_state
    section = reliability
    hot, warm, preempted = _pools(section, scenario, parts)
    known = orbits or {}
    diurnal, collection = section.diurnal, section.garbage_collection
    step_factor = 1 + section.sequence_imbalance
    pause = 0.0 if collection is None else collection.pause / collection.every
    restart, in_place = _restarts(section, parts.gpus)
    return CampaignPlan(
        phases=_phases(section, cluster, phases, _Losing(failures, keeps), (step_factor, pause), every),
        machines=parts.nodes,
        failures=failures,
        slow=tuple(slow_source(source, parts, known.get(source.kind)) for source in section.slow),
        pauses=_pauses(section, parts),
        evaluation=None if section.evaluation is None else Evaluation(*_evaluation(section)),
        restart=restart,
        restart_in_place=in_place,
        start=ZERO if section.start is None else duration(section.start),
        failures_during_restart=section.failures_during_restart,
        hot=hot,
        warm=warm,
        preempted=preempted,
        shop=_shop(section),
        lemons=Lemons(0.0, 1.0) if section.lemons is None else Lemons(*_lemons(section)),
        policy="elastic" if section.recovery.policy == "partial" else section.recovery.policy,
        elastic=elastic,
        diurnal=(0.0, 1.0) if diurnal is None else (diurnal.amplitude, diurnal.period),
        step_factor=step_factor,
        garbage_collection=pause,
    )


def _free(work: PhaseWork) -> Phase:
    """A phase that saves nothing but, for free, its last step."""
    tier = Tier(RESTARTED, max(1, work.steps), None, 0.0, 0.0, 0.0)
    return Phase(work.name, work.steps, work.step_time, work.flops, (tier,), _tokens(work))


def _tokens(work: PhaseWork) -> Tokens:
    return float(work.scenario.training.tokens_per_step)


def _evaluation(section: Reliability) -> tuple[int, Seconds]:
    assert section.evaluation is not None
    return section.evaluation.every, section.evaluation.duration


def _lemons(section: Reliability) -> tuple[float, float, int]:
    assert section.lemons is not None
    return section.lemons.share, section.lemons.factor, section.lemons.retire_after


def _shop(section: Reliability) -> Shop:
    repair = section.repair
    return Shop(
        duration(repair.automatic),
        repair.escalation,
        duration(repair.manual),
        repair.silent_automatic,
        repair.silent_manual,
    )


def job_spares(scenario: Scenario) -> tuple[int, int]:
    """Hot and warm nodes that stand by for the job.

    Raises
    ------
    ScenarioError
        More than the cluster has left.
    """
    nodes = scenario.cluster.topology.nodes
    job = -(-scenario.gpus // scenario.cluster.topology.gpus_per_node)
    left = nodes - job
    if scenario.reliability is None:
        return 0, 0
    hot, warm = scenario.reliability.spares.standing_by(left)
    if hot + warm > left:
        stated = f"{hot:,} hot and {warm:,} warm spares" if warm else f"{hot:,} spares"
        raise ScenarioError(
            f"{stated} are more than the {left:,} of the cluster's {nodes:,} nodes that the job leaves over; use at"
            f" most {left:,}, or give the cluster {job + hot + warm:,} nodes",
            field="reliability.spares",
        )
    return hot, warm


def _pools(section: Reliability, scenario: Scenario, parts: Components) -> tuple[Pool, Pool, Pool]:
    spares = section.spares
    hot, warm = job_spares(scenario)
    return (
        Pool(hot, duration(spares.swap)),
        Pool(warm, duration(spares.selection)),
        Pool(spares.preempted, duration(spares.preemption)),
    )


def _pauses(section: Reliability, parts: Components) -> tuple[Pause, ...]:
    found = []
    if section.maintenance is not None:
        stop = section.maintenance
        if stop.rate is not None:
            hazard = Hazard("poisson", job_rate(parts, stop.rate))
        else:
            assert stop.every is not None
            hazard = Hazard("renewal", 1 / stop.every, sigma=0.0)
        found.append(Pause("maintenance", "planned", hazard, duration(stop.duration)))
    if section.data_stalls is not None:
        stalls = section.data_stalls
        hazard = Hazard("poisson", job_rate(parts, stalls.rate))
        found.append(Pause("data_stalls", "data_stall", hazard, duration(stalls.duration)))
    return tuple(found)


def _restarts(section: Reliability, gpus: int) -> tuple[Duration, Duration | None]:
    """With new machines, and where none was lost, if that is stated or the others wait in place."""
    stated = None if section.restart_in_place is None else duration(section.restart_in_place)
    if section.recovery.policy != "partial":
        return duration(section.restart_time(gpus)), stated
    return duration(section.restart.machine), stated or duration(_together(section, gpus))


def _together(section: Reliability, gpus: int) -> LogNormal:
    return add(section.restart.together(gpus), LogNormal(gpus * section.restart_per_gpu))


def _partial(section: Reliability, scenario: Scenario, cluster: ClusterGraph, gpus: int) -> Elastic:
    """A partial restart is an elastic job that must not lack a replica: it waits for new machines to be up."""
    unit = replica_units(scenario, cluster)
    load = Checkpoints(scenario, cluster, section.checkpoint.bytes_per_parameter).from_replicas()
    together = add(_together(section, gpus), LogNormal(load if unit.keeps_state else 0.0))
    return Elastic(unit.nodes, unit.units, unit.units, duration(together), ZERO, unit.keeps_state)


def _elastic(section: Reliability, scenario: Scenario, cluster: ClusterGraph, gpus: int) -> Elastic | None:
    """Refuses a job whose replicas cannot be lost one by one."""
    recovery = section.recovery
    if recovery.policy == "partial":
        return _partial(section, scenario, cluster, gpus)
    if recovery.policy != "elastic":
        return None
    unit = replica_units(scenario, cluster)
    fewest = -(-recovery.fewest_replicas // unit.replicas)
    if fewest >= unit.units:
        together = f" ({unit.replicas} of them share nodes or experts)" if unit.replicas > 1 else ""
        raise ScenarioError(
            f"elastic: fewest_replicas {recovery.fewest_replicas} leaves none of dp {scenario.parallelism.dp}"
            f"{together} to lose; use policy: restart, or a larger dp",
            field="reliability.recovery",
        )
    return Elastic(
        nodes_per_replica=unit.nodes,
        replicas=unit.units,
        fewest=fewest,
        reconfigure=duration(recovery.reconfigure),
        rejoin=duration(recovery.rejoin),
        keeps_state=unit.keeps_state,
    )


# --- saves ------------------------------------------------------------------------------------------------------------


class _Times(NamedTuple):
    """Seconds of saves and loads of one recipe, by tier: the nearer ones, then a full save to the storage."""

    near: tuple[tuple[StatedTier, Seconds, Seconds], ...]
    save: Seconds
    load: Seconds


class _Losing(NamedTuple):
    """What saves are weighed against: failures, and whether the others hold what lost machines held."""

    failures: tuple[JobFailure, ...]
    keeps_state: bool


class _Run(NamedTuple):
    """Seconds from step to step in a phase; steps of the whole run and its seconds, if all goes well."""

    pace: Seconds
    steps: int
    span: Seconds


def _phases(
    section: Reliability,
    cluster: ClusterGraph,
    works: Sequence[PhaseWork],
    losing: _Losing,
    slower: tuple[float, Seconds],
    every: int | None,
) -> tuple[Phase, ...]:
    """`slower`: the factor on a step, and what comes on top."""
    found = []
    total = sum(work.steps for work in works)
    paces = [work.step_time * slower[0] + slower[1] for work in works]
    span = math.fsum(work.steps * pace for work, pace in zip(works, paces, strict=True))
    times: dict[object, _Times] = {}
    for work, pace in zip(works, paces, strict=True):
        key = (
            work.scenario.model.model_dump_json(),
            work.scenario.parallelism,
            work.scenario.training.optimizer,
            work.scenario.training.schedule,
        )
        if key not in times:
            times[key] = _save_times(section, work.scenario, cluster)
        tiers = _tiers(section, times[key], _Run(pace, total, span), losing, every)
        found.append(Phase(work.name, work.steps, work.step_time, work.flops, tiers, _tokens(work)))
    return tuple(found)


def _save_times(section: Reliability, scenario: Scenario, cluster: ClusterGraph) -> _Times:
    checkpoint, storage = section.checkpoint, scenario.cluster.storage
    times = Checkpoints(scenario, cluster, checkpoint.bytes_per_parameter)
    near = []
    for tier in checkpoint.tiers:
        own = times.to_host(tier.bandwidth if tier.to == "host" else None)
        save = own if tier.to == "host" else times.to_peer(tier.copies or 1, tier.bandwidth)
        load = own if tier.to == "host" else times.to_peer(1, tier.bandwidth) + own
        near.append((tier, _or(tier.save_time, save), _or(tier.load_time, load)))
    save_time, load_time = checkpoint.save_time, checkpoint.load_time
    if storage is not None:
        save_time = times.write(storage.write_bandwidth) if save_time is None else save_time
        load_time = times.read(storage.read_bandwidth, checkpoint.readers) if load_time is None else load_time
    return _Times(tuple(near), _known("save_time", save_time), _known("load_time", load_time))


def _or(stated: Seconds | None, derived: Seconds) -> Seconds:
    return derived if stated is None else stated


def _known(name: str, time: Seconds | None) -> Seconds:
    if time is None:
        raise ScenarioError(
            f"{name} follows from the cluster's storage, which is not described: "
            f"describe it or write a time, for example {name}: 60 s",
            field=f"reliability.checkpoint.{name}",
        )
    return time


def _tiers(
    section: Reliability,
    times: _Times,
    run: _Run,
    losing: _Losing,
    every: int | None,
) -> tuple[Tier, ...]:
    pace, total, span = run
    checkpoint = section.checkpoint
    near = []
    for stated, save, load in times.near:
        steps = stated.interval.steps or 1
        if save > steps * pace * (1 + 1e-9):
            raise ScenarioError(
                f"a save to {stated.to} takes {readable_time(save)} but the next begins {readable_time(steps * pace)}"
                f" later; save at most every {math.ceil(save / pace)} steps",
                field="reliability.checkpoint.tiers",
            )
        near.append(Tier(stated.to, steps, None, stated.stall, save, load, stated.survives))
    delta = checkpoint.incremental
    part = 1.0 if delta is None else (1 + (delta.full_every - 1) * delta.share) / delta.full_every
    reread = 1.0 if delta is None else 1 + (delta.full_every - 1) / 2 * delta.share
    asynchronous = checkpoint.mode == "async"
    full = (checkpoint.blocking_stall, times.save) if asynchronous else (times.save, 0.0)
    mean = (full[0], full[1] * part) if asynchronous else (full[0] * part, 0.0)
    multiple = near[-1].every if near else 1
    seconds = checkpoint.interval.seconds if every is None and not near else None
    steps = saving_interval(
        checkpoint.interval if every is None else checkpoint.interval._replace(seconds=None, steps=every, rule=None),
        step_time=pace,
        steps=total,
        full=full,
        mean=mean,
        failures=losing.failures,
        survives=max((tier.survives for tier in near), default=-1),
        multiple=multiple,
        span=span,
        keeps_state=losing.keeps_state,
    )
    storage = Tier(RESTARTED, steps, seconds, mean[0], mean[1], times.load * reread, ALL_MACHINES)
    return (*near, storage)
