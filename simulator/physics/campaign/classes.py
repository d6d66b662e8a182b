"""Which GPUs, nodes, NICs and links of a job cannot be told apart, so that any of them slow makes the step as slow.

The classes are those of the healthy step (`physics.program.fold`): two nodes are alike if their GPUs have ranks of the
same classes, two NICs if their nodes are alike and they serve the same classes, two links between switches if they are
of the same kind and speed and the same classes of ranks hang on their lower end. Where phases differ in their split,
components are alike if they are so in every phase.

Limits: alike up to what can bind in a healthy step: of two nodes of a class one may sit closer to a bottleneck that
only appears when it is slow.

Pinned by tests/physics/campaign/test_classes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from simulator.errors import ScenarioError
from simulator.physics.collectives.groups import IntArray
from simulator.physics.graph import ClusterGraph
from simulator.scenario.conditions import Condition, DegradedLink, SlowGpu, SlowNic, SlowNode

KINDS = ("slow_gpu", "slow_node", "slow_nic", "degraded_link")
"""Kinds of degraded hardware; `missing_replicas` and `job` need no class."""

Member: TypeAlias = tuple[int | str, ...]
"""What a component is called: (GPU,), (node,), (node, NIC in it) or (vertex, vertex)."""


@dataclass(frozen=True, slots=True)
class Orbits:
    """Components of one kind by class: how many there are, and the first two of each, which stand for all of them."""

    kind: str
    counts: tuple[int, ...]
    members: tuple[tuple[Member, ...], ...]

    def member(self, number: int, which: int = 0) -> Member:
        """One of a class; where there is no second, the first."""
        own = self.members[number]
        return own[min(which, len(own) - 1)]

    def condition(self, one: Member, severity: int) -> Condition:
        """A component with `severity` per cent of its speed or capacity lost."""
        left = 1 - severity / 100
        if self.kind == "slow_gpu":
            return SlowGpu(kind="slow_gpu", gpu=int(one[0]), speed=left)
        if self.kind == "slow_node":
            return SlowNode(kind="slow_node", node=int(one[0]), speed=left)
        if self.kind == "slow_nic":
            return SlowNic(kind="slow_nic", node=int(one[0]), nic=int(one[1]), capacity=left)
        return DegradedLink(kind="degraded_link", between=(str(one[0]), str(one[1])), capacity=left)


def rank_classes(cluster: ClusterGraph, placed: Sequence[tuple[IntArray, IntArray]]) -> IntArray:
    """Class of every GPU over several healthy steps; -1 for GPUs that the job does not use [G].

    Parameters
    ----------
    placed
        Of every step: GPU of every rank, and class of every rank. [W], [W]
    """
    table = np.full((len(placed), cluster.gpu_count), -1, dtype=np.int64)
    for row, (gpus, classes) in zip(table, placed, strict=True):
        row[gpus] = classes
    used = (table >= 0).any(axis=0)
    number = np.full(cluster.gpu_count, -1, dtype=np.int64)
    number[used] = np.unique(table[:, used], axis=1, return_inverse=True)[1].reshape(-1)
    return number


def orbits(cluster: ClusterGraph, class_of_gpu: IntArray, kind: str) -> Orbits:
    """Classes of one kind of component.

    Raises
    ------
    ScenarioError
        The cluster has none of them.
    """
    found = _FINDERS[kind](cluster, class_of_gpu)
    if not found.counts:
        raise ScenarioError(
            f"kind {kind}: the job uses no such component of this cluster; use slow_node or job instead",
            field="reliability.slow",
        )
    return found


def _slow_gpu(cluster: ClusterGraph, class_of_gpu: IntArray) -> Orbits:
    gpus = np.flatnonzero(class_of_gpu >= 0)
    return _orbits("slow_gpu", class_of_gpu[gpus, None], [(gpu,) for gpu in gpus.tolist()])


def _slow_node(cluster: ClusterGraph, class_of_gpu: IntArray) -> Orbits:
    nodes, sight = _sights(cluster.node_of, class_of_gpu)
    return _orbits("slow_node", sight[:, None], [(node,) for node in nodes.tolist()])


def _slow_nic(cluster: ClusterGraph, class_of_gpu: IntArray) -> Orbits:
    wired = cluster.rail >= 0
    rails = int(cluster.rail.max(initial=-1)) + 1
    card = cluster.node_of * rails + cluster.rail
    cards, own = _sights(card[wired], class_of_gpu[wired])
    nodes, whole = _sights(cluster.node_of, class_of_gpu)
    if not len(cards):
        return Orbits("slow_nic", (), ())
    sight = np.stack([own, whole[np.searchsorted(nodes, cards // rails)]], axis=1)
    return _orbits("slow_nic", sight, [(card // rails, card % rails) for card in cards.tolist()])


def _degraded_link(cluster: ClusterGraph, class_of_gpu: IntArray) -> Orbits:
    """Links between switches that the job's GPUs hang below; in other fabrics all links outside the nodes."""
    blueprint = cluster.blueprint
    kind = np.array([sort.kind for sort in blueprint.sorts])[blueprint.sort]
    links = np.flatnonzero(~np.isin(kind, ("nvlink", "pcie", "nic")))
    below = _classes_below(cluster, class_of_gpu)[blueprint.ends[links]]
    if blueprint.facts["routing"] == "up-down":
        reached = (below >= 0).any(axis=1)
        links, below = links[reached], below[reached]
    sight = np.stack([blueprint.sort[links], below.min(axis=1), below.max(axis=1)], axis=1)
    names = blueprint.names
    return _orbits("degraded_link", sight, [(names[a], names[b]) for a, b in blueprint.ends[links].tolist()])


def _classes_below(cluster: ClusterGraph, class_of_gpu: IntArray) -> IntArray:
    """For every vertex the number of the set of rank classes whose NICs (or GPUs) hang on it; -1 for none [V]."""
    blueprint = cluster.blueprint
    kind = np.array(blueprint.kinds)
    gpu = np.flatnonzero(kind == "gpu")
    own = np.full(len(kind), -1, dtype=np.int64)
    numbers = np.array([int(blueprint.names[v].removeprefix("gpu")) for v in gpu.tolist()], dtype=np.int64)
    own[gpu] = class_of_gpu[numbers]
    both = np.concatenate([blueprint.ends, blueprint.ends[:, ::-1]])
    card = both[(kind[both[:, 0]] == "gpu") & (kind[both[:, 1]] == "nic")]
    np.maximum.at(own, card[:, 1], own[card[:, 0]])  # of GPUs that share a NIC the highest class stands for it
    hang = both[np.isin(kind[both[:, 0]], ("gpu", "nic")) & ~np.isin(kind[both[:, 1]], ("gpu", "nic", "nvswitch"))]
    hang = hang[own[hang[:, 0]] >= 0]
    below = np.full(len(kind), -1, dtype=np.int64)
    switches, sight = _sights(hang[:, 1], own[hang[:, 0]], once=True)
    below[switches] = sight
    return below


def _sights(place: IntArray, class_of: IntArray, *, once: bool = False) -> tuple[IntArray, IntArray]:
    """Places where the job is, and the number of the multiset (`once`: set) of classes at each."""
    here = np.stack([place, class_of], axis=1)[class_of >= 0]
    if not len(here):
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing
    pairs, count = np.unique(here, axis=0, return_counts=True)
    if once:
        count = np.ones_like(count)
    places, start = np.unique(pairs[:, 0], return_index=True)
    sights: dict[tuple[tuple[int, int], ...], int] = {}
    numbers = []
    for rows, counts in zip(np.split(pairs[:, 1], start[1:]), np.split(count, start[1:]), strict=True):
        key = tuple(zip(rows.tolist(), counts.tolist(), strict=True))
        numbers.append(sights.setdefault(key, len(sights)))
    return places, np.array(numbers, dtype=np.int64)


def _orbits(kind: str, sight: IntArray, names: Sequence[Member]) -> Orbits:
    """Group components by what they see, in the order of their first members."""
    if not len(sight):
        return Orbits(kind, (), ())
    _, first, label, count = np.unique(sight, axis=0, return_index=True, return_inverse=True, return_counts=True)
    by_label = np.argsort(label.reshape(-1), kind="stable")
    start = np.concatenate([[0], np.cumsum(count)])
    order = np.argsort(first).tolist()
    members = tuple(
        tuple(names[place] for place in by_label[start[one] : min(start[one + 1], start[one] + 2)].tolist())
        for one in order
    )
    return Orbits(kind, tuple(count[order].tolist()), members)


_FINDERS = {
    "slow_gpu": _slow_gpu,
    "slow_node": _slow_node,
    "slow_nic": _slow_nic,
    "degraded_link": _degraded_link,
}
