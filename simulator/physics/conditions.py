"""Conditions of the scenario put on a cluster's graph: slow GPUs, weak and missing links, another job's traffic.

Idea
----
Weak and missing links are edits of the graph before it is indexed, so the merging of links into trunks stays exact: a
weak cable splits off just what it touches. A GPU whose NIC has lost its switches hangs on the nearest NIC of its node
that has some, as NCCL chooses the nearest NIC on the PCIe tree. Another job's traffic is laid on the routes of the
index and taken off the capacity of the directed links: under ideal spraying the links of a trunk carry equal parts of
it, so the trunk loses their sum.

Limits: a weak link keeps its share of the paths; the other job's traffic does not give way.

Pinned by tests/physics/test_conditions.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.errors import TopologyError
from simulator.physics.routes import FloatArray, IntArray
from simulator.physics.wiring.blueprint import Blueprint
from simulator.scenario.conditions import (
    Background,
    Condition,
    DegradedLink,
    RemovedLink,
    SlowGpu,
    SlowNic,
    SlowNode,
)
from simulator.scenario.explain import nearest

if TYPE_CHECKING:
    from simulator.physics.graph import ClusterGraph


def disturb(blueprint: Blueprint, conditions: Sequence[Condition]) -> FloatArray:
    """Weaken and remove links of a blueprint; returns the speed of every GPU [G].

    Raises
    ------
    TopologyError
        For a GPU, node, NIC or link that is not there, and for a GPU that loses the last NIC of its node.
    """
    if not conditions:
        return np.ones(blueprint.kinds.count("gpu"))
    node = blueprint.columns["node"][blueprint.is_kind("gpu")]
    speed = np.ones(len(node))
    for index, condition in enumerate(conditions):
        try:
            if isinstance(condition, SlowGpu):
                if condition.gpu >= len(speed):
                    raise TopologyError(f"gpu{condition.gpu} is not in the cluster; the last is gpu{len(speed) - 1}")
                speed[condition.gpu] *= condition.speed
            elif isinstance(condition, SlowNode):
                if not (node == condition.node).any():
                    raise TopologyError(f"node {condition.node} is not in the cluster; the last is node {node.max()}")
                speed[node == condition.node] *= condition.speed
            elif isinstance(condition, SlowNic):
                _weaken_nic(blueprint, condition)
            elif isinstance(condition, DegradedLink):
                blueprint.resort(_link(blueprint, *condition.between), condition.capacity)
            elif isinstance(condition, RemovedLink):
                _remove(blueprint, *condition.between)
        except TopologyError as error:
            raise TopologyError(f"conditions[{index}]: {error}") from None
    return speed


def add_background(cluster: ClusterGraph, conditions: Sequence[Condition]) -> ClusterGraph:
    """Take other jobs' traffic off the capacity of the links.

    Raises
    ------
    TopologyError
        Naming a link of which nothing is left.
    """
    load = np.zeros(len(cluster.capacity))
    for index, condition in enumerate(conditions):
        if isinstance(condition, Background):
            load += _load(cluster, condition, index)
    if not load.any():
        return cluster
    full = np.flatnonzero(load >= cluster.capacity * (1 - 1e-9))
    if len(full):
        worst = full[np.argmax(load[full] / cluster.capacity[full])]
        raise TopologyError(
            f"background traffic of {load[worst] / 1e9:.4g} GB/s leaves nothing of {cluster.link_name(int(worst))}"
            f" with its {cluster.capacity[worst] / 1e9:.4g} GB/s; lower its rate"
        )
    return dataclasses.replace(cluster, capacity=cluster.capacity - load)


def _load(cluster: ClusterGraph, condition: Background, index: int) -> FloatArray:
    """Bytes/s on every directed link."""
    per_node = cluster.gpus_per_node
    for node in condition.nodes:
        if (node + 1) * per_node > cluster.gpu_count:
            raise TopologyError(f"conditions[{index}]: node {node} is not a whole node of the cluster")
    count = len(condition.nodes)
    first = np.array(condition.nodes)[:, None] * per_node + np.arange(per_node)  # [node, GPU in it]
    load = np.zeros(len(cluster.capacity))
    turns = range(1, count) if condition.pattern == "all_to_all" else (1,)
    for turn in turns:
        found = cluster.routes(first.reshape(-1), np.roll(first, -turn, axis=0).reshape(-1))
        load += np.bincount(found.link, weights=found.share, minlength=len(load))
    return load * (condition.rate / len(turns))


def _vertex(blueprint: Blueprint, name: str) -> int:
    number = blueprint.number(name)
    if number is None:
        near = [other for other in blueprint.names if other[:4] == name[:4]] or blueprint.names
        raise TopologyError(f"{name!r} is not in the cluster{nearest(name, near[:_NAMES_TO_COMPARE])}")
    return number


_NAMES_TO_COMPARE = 5_000
"""Assumption: enough to find a slip of the pen, and few enough for an answer in a second."""


def _link(blueprint: Blueprint, a: str, b: str) -> IntArray:
    """Number of the link between two vertices. [1]."""
    one, other = _vertex(blueprint, a), _vertex(blueprint, b)
    links = blueprint.links_of(one)
    ends = blueprint.other_end(links, one)
    if other not in ends:
        names = [blueprint.names[v] for v in ends.tolist()]
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise TopologyError(f"there is no link {a} - {b}{nearest(b, names)}; {a} has links to {shown or 'nothing'}")
    found: IntArray = links[ends == other]
    return found


def _weaken_nic(blueprint: Blueprint, condition: SlowNic) -> None:
    name = f"node{condition.node}.nic{condition.nic}"
    number = blueprint.number(name)
    if number is None:
        known = [other for other in blueprint.names if other.startswith(f"node{condition.node}.nic")]
        raise TopologyError(f"{name!r} is not in the cluster; node {condition.node} has {', '.join(known) or 'no NIC'}")
    blueprint.resort(_uplinks(blueprint, number), condition.capacity)


def _uplinks(blueprint: Blueprint, nic: int) -> IntArray:
    """Links of a NIC to switches."""
    links = blueprint.links_of(nic)
    others = blueprint.other_end(links, nic).tolist()
    return links[[blueprint.kinds[other] != "gpu" for other in others]]


def _remove(blueprint: Blueprint, a: str, b: str) -> None:
    """Remove a link; GPUs that lose their way out hang on the nearest NIC that is left."""
    link = _link(blueprint, a, b)
    pair = {blueprint.kinds[end]: end for end in blueprint.ends[link[0]].tolist()}
    if "nic" not in pair:
        blueprint.remove_links(link)
        return
    nic = pair["nic"]
    if "gpu" in pair:
        _rehang(blueprint, link, nic)
        return
    blueprint.remove_links(link)
    if not len(_uplinks(blueprint, nic)):
        links = blueprint.links_of(nic)
        for host in links.tolist():
            _rehang(blueprint, np.array([host]), nic)


def _rehang(blueprint: Blueprint, host: IntArray, lost: int) -> None:
    """Move a GPU's link from a lost NIC to the nearest one of its node with a link to a switch; the lower of two."""
    node, rail = blueprint.columns["node"], blueprint.columns["rail"]
    cards = np.flatnonzero(blueprint.is_kind("nic") & (node == node[lost]))
    left = [card for card in cards.tolist() if card != lost and len(_uplinks(blueprint, card))]
    gpu = int(blueprint.ends[host[0]].sum()) - lost
    if not left:
        raise TopologyError(
            f"{blueprint.names[gpu]} loses {blueprint.names[lost]}, the last NIC of node {node[lost]} with a link to a"
            " switch; leave it one"
        )
    near = min(left, key=lambda card: (abs(rail[card] - rail[lost]), rail[card]))
    blueprint.ends[host[0]] = gpu, near
