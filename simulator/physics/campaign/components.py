"""What a job is made of, and what goes down together: counted on the cluster graph.

A failure of a GPU, a NIC or a node takes the node that holds it; a link between a NIC and its switch takes the node if
the NIC has no other. A leaf switch takes the job's nodes that have a NIC on it and on no other switch: below two leaves
for every NIC (dual ToR) a dead one takes nobody. A rack is a scale-up domain of several nodes, or so many consecutive
nodes as the scenario says (`nodes_per_rack`: what shares power).

Data-parallel replicas go down together where they share a node, or the experts of one layer.

Shapes: W ranks. Limits: a dead spine or core is a degraded link, not a loss of machines; nodes that stand by are not
counted, though a dead leaf takes those below it too.

Pinned by tests/physics/campaign/test_components.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from simulator.errors import ScenarioError
from simulator.physics.collectives.groups import IntArray
from simulator.physics.graph import ClusterGraph
from simulator.physics.ports import components as connected
from simulator.physics.program.placement import place
from simulator.scenario.scenario import Scenario

Odds: TypeAlias = tuple[tuple[int, float], ...]
"""How many of the job's machines are lost, with what probability: ascending, adding up to 1."""

ONE: Odds = ((1, 1.0),)


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """What a job is made of.

    Attributes
    ----------
    gpus, nodes, nics
        Counts of the job; a node counts whose GPUs are used in part, a NIC only if one of the job's GPUs uses it.
    leaves
        Nodes of the job on every leaf switch that it uses. [leaves]
    lost_with_leaf
        Of these, those that have a NIC on no other switch. [leaves]
    racks
        Nodes of the job in every rack: as stated, or scale-up domains larger than nodes; else empty. [racks]
    links
        Links between the job's NICs and their switches.
    only_links
        Of these, those of NICs that have no other.
    """

    gpus: int
    nodes: int
    nics: int
    leaves: IntArray
    lost_with_leaf: IntArray
    racks: IntArray
    links: int = 0
    only_links: int = 0

    def known_racks(self) -> IntArray:
        """Nodes of the job in every rack.

        Raises
        ------
        ScenarioError
            Where the cluster does not say what a rack is.
        """
        if not len(self.racks):
            raise ScenarioError(
                "a rack is a scale-up domain of several nodes, and those of this cluster are single nodes: "
                "say how many nodes share a rack, like nodes_per_rack: 4, or write the rate per node or leaf",
                field="reliability.failures",
            )
        return self.racks


def count_components(scenario: Scenario, cluster: ClusterGraph) -> Components:
    """Count what a job uses."""
    gpus = place(scenario, cluster)
    nodes = np.unique(cluster.node_of[gpus])
    domain, first = np.unique(cluster.domain[gpus], return_inverse=True)
    pairs = np.unique(np.stack([first, cluster.node_of[gpus]]), axis=1)
    per_domain = np.bincount(pairs[0], minlength=len(domain)).astype(np.int64)
    leaves, lost, links, only = _leaves(cluster, gpus)
    stated = None if scenario.reliability is None else scenario.reliability.nodes_per_rack
    racks = per_domain if _domains_span_nodes(cluster) else np.empty(0, dtype=np.int64)
    return Components(
        gpus=len(gpus),
        nodes=len(nodes),
        nics=_nics(cluster, gpus),
        leaves=leaves,
        lost_with_leaf=lost,
        racks=racks if stated is None else np.unique(nodes // stated, return_counts=True)[1].astype(np.int64),
        links=links,
        only_links=only,
    )


def _nics(cluster: ClusterGraph, gpus: IntArray) -> int:
    rail = cluster.rail[gpus]
    used = np.stack([cluster.node_of[gpus], rail])[:, rail >= 0]
    return int(np.unique(used, axis=1).shape[1])


def _domains_span_nodes(cluster: ClusterGraph) -> bool:
    """Whether a scale-up domain holds more than a node, and not everything (as a torus does)."""
    pairs = np.unique(np.stack([cluster.domain, cluster.node_of]), axis=1)
    count = np.bincount(pairs[0])
    return bool(count.max(initial=0) > 1 and cluster.blueprint.facts["routing"] == "up-down")


def _leaves(cluster: ClusterGraph, gpus: IntArray) -> tuple[IntArray, IntArray, int, int]:
    """Job nodes on every leaf that the job uses, those that have a NIC on no other switch, links to them, only ones."""
    blueprint = cluster.blueprint
    kind = np.array(blueprint.kinds)
    port = np.isin(kind, ("nic", "gpu"))
    switch = ~port & (kind != "nvswitch")
    ends = np.concatenate([blueprint.ends, blueprint.ends[:, ::-1]])
    ends = ends[port[ends[:, 0]] & switch[ends[:, 1]]]  # from what hangs on a switch to the switch
    node, rail = blueprint.columns["node"][ends[:, 0]], blueprint.columns["rail"][ends[:, 0]]
    used = np.isin(_key(node, rail), _key(cluster.node_of[gpus], cluster.rail[gpus]))
    ends, node = ends[used], node[used]
    if not len(ends):
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, 0, 0
    alone = np.bincount(ends[:, 0])[ends[:, 0]] == 1
    leaf = np.unique(ends[:, 1], return_inverse=True)[1]
    count = int(leaf.max()) + 1
    below, lost = (
        np.bincount(np.unique(np.stack([leaf[own], node[own]]), axis=1)[0], minlength=count).astype(np.int64)
        for own in (np.ones(len(leaf), dtype=bool), alone)
    )
    return below, lost, len(leaf), int(alone.sum())


def _key(node: IntArray, rail: IntArray) -> IntArray:
    return node * 4096 + rail + 1


def odds(lost: IntArray, weight: IntArray | None = None) -> tuple[float, Odds]:
    """Odds of losing machines with one of several equal parts.

    Parameters
    ----------
    lost
        Machines that each part takes. [parts]
    weight
        How often each part fails, relative to the others; equally where left out. [parts]

    Returns
    -------
    float
        Probability that any machine is lost.
    Odds
        How many, if any.
    """
    often = np.ones(len(lost)) if weight is None else weight.astype(np.float64)
    taken = often[lost > 0].sum()
    if not taken:
        return 0.0, ONE
    sizes, which = np.unique(lost[lost > 0], return_inverse=True)
    share = np.bincount(which, weights=often[lost > 0]) / taken
    return float(taken / often.sum()), tuple(zip(sizes.tolist(), share.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class ReplicaUnits:
    """Data-parallel replicas that can only be lost together.

    Attributes
    ----------
    units
        How many sets of replicas there are.
    replicas
        Replicas of one.
    nodes
        Machines of one.
    keeps_state
        Whether the other units hold all that a lost one held.
    """

    units: int
    replicas: int
    nodes: int
    keeps_state: bool


def replica_units(scenario: Scenario, cluster: ClusterGraph) -> ReplicaUnits:
    """Find which replicas go down together.

    State that ZeRO shards over all replicas is lost with any of them; sharded within groups (HSDP), the other groups
    hold it (arXiv 2304.11277, section 3.2.2).
    """
    split, training = scenario.parallelism, scenario.training
    dp = split.index("dp")
    node = cluster.node_of[place(scenario, cluster)]
    ties = [_ties(node, dp)]
    if scenario.model.moe is not None and split.ep > 1:
        group = np.empty(split.world_size, dtype=np.int64)
        rows = split.groups("ep")
        group[rows] = np.arange(len(rows))[:, None]
        ties.append(_ties(group, dp))
    unit = np.unique(connected(split.dp, np.concatenate(ties)), return_inverse=True)[1]
    units = int(unit.max()) + 1
    per_unit = np.unique(np.stack([unit[dp], node]), axis=1)
    group_size = training.optimizer.shard_group
    sharded_away = training.optimizer.zero_stage >= 1 and (group_size is None or 2 * group_size > split.replicas)
    return ReplicaUnits(
        units=units,
        replicas=-(-split.dp // units),
        nodes=-(-per_unit.shape[1] // units),
        keeps_state=units > 1 and not sharded_away,
    )


def _ties(place_of: IntArray, dp: IntArray) -> IntArray:
    """Pairs of replicas that meet in a place. [pairs, 2]."""
    met = np.unique(np.stack([place_of, dp]), axis=1)
    same = met[0, 1:] == met[0, :-1]
    return np.unique(np.stack([met[1, :-1][same], met[1, 1:][same]], axis=1), axis=0)
