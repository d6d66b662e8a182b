"""The same job on more or fewer GPUs: weak scaling through data parallelism, on a cluster that grows along.

Every replica keeps its batch: the global batch grows with dp, tokens per GPU and step stay. Nodes, switches of the
upper tiers, storage bandwidth and spares grow in proportion; the tokens of the run, failure rates per component and all
times are those of the scenario.

Limits: direct networks and explicit graphs do not grow: there only smaller jobs are possible.
Pinned by tests/studies/test_scaled_job.py.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

from simulator.errors import LayoutError, ScenarioError
from simulator.scenario.reliability.section import Reliability
from simulator.scenario.scenario import Scenario, fit
from simulator.scenario.switched import DualPlane, FatTree, Nvl72, RailClos
from simulator.scenario.topology import Cluster, Topology
from simulator.scenario.training import Training

# Neighbours of a dp that are tried where the split does not allow it. Assumption: experts are split over 64 at most.
_REACH = 64


def replica_gpus(scenario: Scenario) -> int:
    """GPUs of one data-parallel replica."""
    return scenario.gpus // scenario.parallelism.dp


def with_replicas(scenario: Scenario, replicas: int) -> Scenario:
    """The scenario with so many data-parallel replicas, and a cluster in proportion.

    Raises
    ------
    LayoutError
        The split does not allow it, or the cluster cannot grow.
    ScenarioError
        The cluster in proportion cannot be.
    """
    dp = scenario.parallelism.dp
    if replicas == dp:
        return scenario
    if replicas < 1:
        raise LayoutError(f"dp {replicas} is no data parallelism; use 1 or more")
    factor = replicas / dp
    split = scenario.parallelism.model_copy(update={"dp": replicas})
    if not isinstance(split.placement, str):
        raise LayoutError("placement lists the nodes of one job; write placement: contiguous to vary its size")
    gpus = replica_gpus(scenario) * replicas
    return fit(
        scenario.model_copy(
            update={
                "job_gpus": gpus,
                "parallelism": split,
                "training": _training(scenario.training, replicas, dp),
                "cluster": _cluster(scenario.cluster, scenario.gpus, gpus),
                "reliability": _reliability(scenario.reliability, factor),
            }
        )
    )


def nearest_replicas(scenario: Scenario, replicas: int) -> Scenario | None:
    """The scenario with the nearest number of replicas that the split allows; None where there is none near."""
    for distance in range(_REACH + 1):
        for wanted in dict.fromkeys((replicas - distance, replicas + distance)):
            if wanted >= 1 and distance <= max(1, replicas // 2):
                try:
                    return with_replicas(scenario, wanted)
                except (LayoutError, ScenarioError):
                    continue
    return None


def neighbours(scenario: Scenario, replicas: int) -> list[Scenario]:
    """The scenario with the next fewer and the next more replicas that the split allows, where there are any near."""
    found = []
    for step in (-1, 1):
        for wanted in range(replicas + step, max(0, replicas + step * (_REACH + 1)), step):
            try:
                found.append(with_replicas(scenario, wanted))
                break
            except (LayoutError, ScenarioError):
                continue
    return found


def _training(training: Training, replicas: int, dp: int) -> Training:
    def grown(batch: int | None) -> int | None:
        if batch is None:
            return None
        whole, rest = divmod(batch * replicas, dp)
        if rest:
            raise LayoutError(f"a batch of {batch:,} over dp {dp} is not whole over dp {replicas}")
        return whole

    phases = []
    for phase in training.phases:
        changes: dict[str, Any] = {"global_batch_size": grown(phase.global_batch_size)}
        if phase.ramp is not None:
            sizes = {"from_": grown(phase.ramp.from_), "increment": grown(phase.ramp.increment)}
            changes["ramp"] = phase.ramp.model_copy(update=sizes)
        if phase.parallelism.dp is not None:
            changes["parallelism"] = phase.parallelism.model_copy(update={"dp": grown(phase.parallelism.dp)})
        phases.append(phase.model_copy(update=changes))
    batch = grown(training.global_batch_size)
    return training.model_copy(update={"global_batch_size": batch, "phases": tuple(phases)})


def _cluster(cluster: Cluster, before: int, after: int) -> Cluster:
    factor, per_node = after / before, cluster.topology.gpus_per_node
    left_over = cluster.topology.nodes - -(-before // per_node)
    nodes = -(-after // per_node) + _round(left_over * factor)
    changes: dict[str, Any] = {"topology": _topology(cluster.topology, nodes, factor)}
    if cluster.storage is not None:
        storage = cluster.storage
        changes["storage"] = storage.model_copy(
            update={
                "write_bandwidth": storage.write_bandwidth * factor,
                "read_bandwidth": storage.read_bandwidth * factor,
            }
        )
    return cluster.model_copy(update=changes)


def _topology(topology: Topology, nodes: int, factor: float) -> Topology:
    """The same fabric for so many nodes: pods of the same size, upper tiers in proportion."""
    if not isinstance(topology, Nvl72 | RailClos | FatTree | DualPlane):
        return topology
    content = topology.model_dump(mode="json", exclude_none=True)
    if isinstance(topology, Nvl72):
        content["racks"] = -(-nodes * topology.gpus_per_node // topology.gpus_per_rack)
    else:
        content["nodes"] = nodes
        content["nodes_per_leaf"] = nodes if topology.tiers == 1 else min(topology.nodes_per_leaf, nodes)
    per_pod = topology.tiers == 3 and topology.nodes_per_pod is not None
    if topology.nodes_per_pod is not None:
        content["nodes_per_pod"] = min(topology.nodes_per_pod, nodes) if per_pod else nodes
    for name in ("cores",) if per_pod else ("spines", "cores"):
        if content.get(name) is not None:
            content[name] = max(1, math.ceil(content[name] * factor * (1 - 1e-12)))
    try:
        return type(topology).model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ScenarioError(f"{nodes:,} nodes: {first}", field="cluster.topology") from None


def _reliability(section: Reliability | None, factor: float) -> Reliability | None:
    if section is None:
        return None
    spares = section.spares
    grown = spares.model_copy(
        update={
            "hot": None if spares.hot is None else _round(spares.hot * factor),
            "warm": _round(spares.warm * factor),
            "preempted": _round(spares.preempted * factor),
        }
    )
    return section.model_copy(update={"spares": grown})


def _round(number: float) -> int:
    """Half up; something stays something."""
    return max(1, math.floor(number + 0.5)) if number > 0 else 0
