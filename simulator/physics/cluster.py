"""Building a cluster: from a description, or from any networkx graph, to a graph of numbered GPUs and links.

Idea
----
`build_cluster` plans a description (`simulator/physics/wiring/` says what vertices and links there are), puts the
scenario's conditions on the plan, draws the networkx graph and indexes it: GPUs, scale-up domains, rails and directed
links become arrays. To break or slow something that no condition describes, edit a `graph.copy()` and call
`index_graph`, which takes any graph with the same attributes.

Pinned by tests/physics/test_cluster.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from simulator.errors import TopologyError
from simulator.physics.census import describe
from simulator.physics.conditions import add_background, disturb
from simulator.physics.garbage import no_garbage
from simulator.physics.graph import ClusterGraph
from simulator.physics.ports import (
    NIC,
    SWITCH,
    Hanging,
    components,
    hang_directly,
    hang_up_down,
    number_gpus,
    vertex_kinds,
)
from simulator.physics.routes import BoolArray, Fabric, IntArray, Links
from simulator.physics.torus import Torus
from simulator.physics.wiring.blueprint import Blueprint, draw, survey
from simulator.physics.wiring.families import FAMILIES
from simulator.scenario.conditions import Condition, RemovedLink
from simulator.scenario.topology import Cluster

if TYPE_CHECKING:
    Graph = nx.Graph[str]

__all__ = ["ClusterGraph", "build_cluster", "describe", "index_graph", "require_connected"]


def build_cluster(description: Cluster, conditions: Sequence[Condition] = (), *, merge: bool = True) -> ClusterGraph:
    """Build a cluster's graph and index it.

    Parameters
    ----------
    description
        The machine.
    conditions
        What is slow, weak, missing or shared with another job.
    merge
        False keeps parallel links between switches apart (slower; the result of `routes` is the same flow). Routing by
        hash never merges.

    Raises
    ------
    TopologyError
        For conditions that name something unknown, part GPUs that had a route, or leave nothing of a link.
    """
    with no_garbage():
        plan = FAMILIES[description.topology.kind]
        blueprint = plan(description.topology)
        speed = disturb(blueprint, conditions)
        graph = draw(blueprint)
        if any(isinstance(condition, RemovedLink) for condition in conditions):
            blueprint.facts["irregular"] = True
        cluster = _index(blueprint, graph, merge=merge)
        cluster = dataclasses.replace(cluster, speed=speed, platform=description.platform)
        if any(isinstance(condition, RemovedLink) for condition in conditions):
            healthy = plan(description.topology)
            _check_parted(cluster, _index(healthy, nx.Graph(), merge=True))
        return add_background(cluster, conditions)


def index_graph(graph: Graph, *, merge: bool = True) -> ClusterGraph:
    """Number the GPUs and directed links of a graph.

    Raises
    ------
    TopologyError
        For a link without capacity, GPUs that are not gpu0, gpu1, ..., or a GPU or NIC wired in a way that up-down
        routing does not know.
    """
    with no_garbage():
        blueprint = survey(graph)
        blueprint.facts["irregular"] = True  # nothing is known of how it came about
        return _index(blueprint, graph, merge=merge)


def _index(blueprint: Blueprint, graph: Graph, *, merge: bool) -> ClusterGraph:
    kind = vertex_kinds(blueprint)
    gpus = number_gpus(blueprint, kind)
    _check_capacity(blueprint)
    facts = blueprint.facts
    direct = facts["routing"] != "up-down"
    inside: BoolArray = np.ones(len(kind), dtype=bool) if direct else kind == SWITCH
    if facts.get("access") == "nic":
        inside |= kind == NIC
    place = np.where(inside, np.cumsum(inside) - 1, -1)
    inner = np.logical_and(*inside[blueprint.ends].T)
    outer = np.flatnonzero(~inner)
    hanging = hang_directly(blueprint, gpus) if direct else hang_up_down(blueprint, kind, gpus, outer)
    fabric = _fabric(blueprint, inside, place, (inner, hanging), merge=merge and not direct)
    torus = Torus(facts["dims"], facts["wraps"], fabric) if facts["routing"] == "torus" else None
    link = np.empty(len(blueprint.ends), dtype=np.int64)
    link[outer] = 2 * np.arange(len(outer))
    link[inner] = 2 * len(outer) + fabric.trunk
    return ClusterGraph(
        graph=graph,
        gpus_per_node=facts["gpus_per_node"],
        node_of=blueprint.columns["node"][gpus],
        domain=hanging.domain,
        rail=hanging.rail,
        leaf=_cells_of(fabric, place, hanging.leaf),
        capacity=np.concatenate([np.repeat(blueprint.capacity()[outer], 2), fabric.capacity]),
        latency=np.concatenate([np.repeat(blueprint.latency()[outer], 2), fabric.latency]),
        in_network_reduction=facts["in_network_reduction"],
        pxn=facts["pxn"],
        speed=np.ones(len(gpus)),
        platform="",
        blueprint=blueprint,
        _ports=hanging.ports,
        _access=_cells_of(fabric, place, hanging.access),
        _fabric=fabric,
        _torus=torus,
        _labels=blueprint.names + fabric.labels,
        _tail=np.concatenate([blueprint.ends[outer].reshape(-1), len(kind) + fabric.tail]),
        _link=link,
    )


def _check_capacity(blueprint: Blueprint) -> None:
    capacity = blueprint.capacity()
    for i in np.flatnonzero(~(capacity > 0) | ~np.isfinite(capacity))[:1]:
        a, b = (blueprint.names[v] for v in blueprint.ends[i])
        raise TopologyError(f"link {a} - {b} has capacity {capacity[i]}; it must be finite and above zero")


def _fabric(
    blueprint: Blueprint,
    inside: BoolArray,
    place: IntArray,
    parts: tuple[BoolArray, Hanging],
    *,
    merge: bool,
) -> Fabric:
    """Index the vertices inside the fabric and the links between them."""
    inner, hanging = parts
    access = np.zeros(int(inside.sum()), dtype=bool)
    if blueprint.facts.get("transit", False):
        access[:] = True
    elif blueprint.facts.get("access") == "nic":
        access[place[inside & np.array([kind == "nic" for kind in blueprint.kinds])]] = True
    else:
        access[place[hanging.access[hanging.access >= 0]]] = True
    looks: dict[tuple[float, float], int] = {}
    quality = [looks.setdefault((sort.capacity, sort.latency), len(looks)) for sort in blueprint.sorts]
    links = Links(
        place[blueprint.ends[inner]],
        blueprint.capacity()[inner],
        blueprint.latency()[inner],
        np.array(quality, dtype=np.int64)[blueprint.sort[inner]],
    )
    region = blueprint.columns["group"][inside]
    return Fabric(
        [blueprint.names[v] for v in np.flatnonzero(inside).tolist()],
        access,
        links,
        merge=merge and blueprint.facts.get("ecmp_seed") is None,
        transit=blueprint.facts["routing"] != "up-down" or blueprint.facts.get("transit", False),
        region=region if (region >= 0).any() else None,
    )


def _cells_of(fabric: Fabric, place: IntArray, vertex: IntArray) -> IntArray:
    cells = np.full(len(vertex), -1, dtype=np.int64)
    cells[vertex >= 0] = fabric.cell[place[vertex[vertex >= 0]]]
    return cells


# --- connection -------------------------------------------------------------------------------------------------------


def require_connected(cluster: ClusterGraph) -> None:
    """Check that the first node's GPUs reach every other.

    Raises
    ------
    TopologyError
        Naming two GPUs without a route.
    """
    for gpu in range(min(cluster.gpus_per_node, cluster.gpu_count)):
        others = np.delete(np.arange(cluster.gpu_count), gpu)
        cluster.routes(np.full(len(others), gpu), others)


_STANDING_FOR_ALL = 600
"""Assumption: GPUs between which all routes are tried; one for every way of hanging on the fabric is enough."""


def _check_parted(cluster: ClusterGraph, healthy: ClusterGraph) -> None:
    """Refuse missing links that part GPUs which had a route."""
    facts = cluster.blueprint.facts
    if facts["routing"] != "up-down" or facts.get("transit", False):  # there every connected pair has a route
        label, before = (components(len(c.blueprint.names), c.blueprint.ends) for c in (cluster, healthy))
        gpus = number_gpus(cluster.blueprint, vertex_kinds(cluster.blueprint))
        first = np.searchsorted(np.sort(before[gpus]), before[gpus])  # a GPU of the same island, before
        lead = np.argsort(before[gpus], kind="stable")[first]
        parted = np.flatnonzero(label[gpus] != label[gpus[lead]])
        pair = (int(lead[parted[0]]), int(parted[0])) if len(parted) else None
    else:
        pair = _parted_pair(cluster, healthy)
    if pair is not None:
        names = " to ".join(cluster.gpu_name(gpu) for gpu in pair)
        raise TopologyError(f"conditions: the removed links leave no route from {names}")


def _parted_pair(cluster: ClusterGraph, healthy: ClusterGraph) -> tuple[int, int] | None:
    """Two GPUs that have lost their route.

    One GPU stands for all whose access switches have the same neighbours and who hang on the same rail.
    """
    group = cluster._fabric.group_of(cluster._access)
    _, first = np.unique(np.stack([group, cluster.rail, healthy.rail]), axis=1, return_index=True)
    some = np.unique(np.concatenate([first, np.minimum(first + 1, cluster.gpu_count - 1)]))
    changed = np.flatnonzero(np.isin(cluster.node_of, np.unique(cluster.node_of[cluster.rail != healthy.rail])))
    some = np.union1d(some, changed)[:_STANDING_FOR_ALL]
    src, dst = (some[i] for i in np.nonzero(~np.eye(len(some), dtype=bool)))
    parted = np.flatnonzero(~cluster.reaches(src, dst) & healthy.reaches(src, dst))
    return (int(src[parted[0]]), int(dst[parted[0]])) if len(parted) else None
