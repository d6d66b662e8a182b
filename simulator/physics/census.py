"""What a cluster is made of, counted on its graph: tiers, oversubscription, bisection bandwidth.

The bisection bandwidth is what the first half of the GPUs, by number, can send to the second half at once: the maximum
flow between them over all links, NVLink included. It is found on the quotient of the graph by its coarsest equitable
partition, in which the halves stand apart: averaging a flow over equivalent links leaves it a flow, so the quotient's
maximum is the graph's (the argument of Grohe, Kersting, Mladenov, Selman, "Dimension reduction via colour refinement",
ESA 2014, for any linear program).

Limits: the halves are by number, so another cut may be narrower; routing may not reach what the cut allows.

Pinned by tests/physics/test_census.py: networkx's maximum flow on the whole graph as an oracle, published figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from simulator.physics.symmetry import coarsest_partition

if TYPE_CHECKING:
    from simulator.physics.graph import ClusterGraph
    from simulator.physics.wiring.blueprint import Blueprint, IntArray

_BETWEEN_TIERS = (("leaf", "nic", "leaf-spine"), ("spine", "leaf-spine", "spine-core"))


class Tier(NamedTuple):
    """Links of one kind: how many, the least and the most capacity of one, and of all together (bytes/s, one way)."""

    kind: str
    links: int
    least: float
    most: float
    total: float


class Bisection(NamedTuple):
    """Bytes/s from the first half of the GPUs to the second, and what a narrowest cut crosses: links by kind."""

    bandwidth: float
    gpus: tuple[int, int]
    cut: dict[str, int]


def count_kinds(blueprint: Blueprint) -> dict[str, int]:
    """Vertices by kind, in the order of the graph."""
    return {kind: blueprint.kinds.count(kind) for kind in dict.fromkeys(blueprint.kinds)}


def tiers(blueprint: Blueprint) -> list[Tier]:
    """Links by kind, from the GPUs outward."""
    capacity = blueprint.capacity()
    kind = np.array([sort.kind for sort in blueprint.sorts], dtype=object)
    found = []
    for name in dict.fromkeys(kind.tolist()):
        own = capacity[(kind == name)[blueprint.sort]]
        if len(own):
            found.append(Tier(str(name), len(own), float(own.min()), float(own.max()), float(own.sum())))
    return found


def oversubscription(blueprint: Blueprint) -> dict[str, float]:
    """Bandwidth down over bandwidth up of the first switch of every tier that has both."""
    found = {}
    capacity = blueprint.capacity()
    for kind, below, above in _BETWEEN_TIERS:
        if kind in blueprint.kinds:
            links = blueprint.links_of(blueprint.kinds.index(kind))
            named = [blueprint.sorts[s].kind for s in blueprint.sort[links].tolist()]
            down, up = (float(capacity[links][[name == end for name in named]].sum()) for end in (below, above))
            if up:
                found[kind] = down / up
    return found


def bisection(cluster: ClusterGraph) -> Bisection | None:
    """Find the bisection bandwidth; None for a single GPU."""
    blueprint, half = cluster.blueprint, cluster.gpu_count // 2
    if not half:
        return None
    gpus = np.flatnonzero(blueprint.is_kind("gpu"))
    number = np.array([int(blueprint.names[v].removeprefix("gpu")) for v in gpus.tolist()])
    side = np.zeros(len(blueprint.names), dtype=np.int64)
    side[gpus] = np.where(number < half, 1, 2)
    cell = coarsest_partition(side, (blueprint.ends[:, 0], blueprint.ends[:, 1]), blueprint.sort.astype(np.uint64))
    graph = _quotient(blueprint, cell)
    colour = side[np.unique(cell, return_index=True)[1]]
    for own, tag in enumerate(colour.tolist()):
        if tag:
            graph.add_edge(*(("from", own) if tag == 1 else (own, "to")))  # without capacity: unbounded
    flow, (near, _) = nx.minimum_cut(graph, "from", "to")
    reached = np.zeros(len(colour), dtype=bool)
    reached[[own for own in near if own != "from"]] = True
    return Bisection(float(flow), (half, cluster.gpu_count - half), _cut(blueprint, reached[cell]))


def _quotient(blueprint: Blueprint, cell: IntArray) -> nx.DiGraph[object]:
    """Cells joined by all the capacity between them."""
    count = int(cell.max()) + 1
    a, b = cell[blueprint.ends].T
    key, inverse = np.unique(np.concatenate([a * count + b, b * count + a]), return_inverse=True)
    weight = np.bincount(inverse.reshape(-1), weights=np.tile(blueprint.capacity(), 2))
    graph: nx.DiGraph[object] = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(
        (k // count, k % count, {"capacity": w})
        for k, w in zip(key.tolist(), weight.tolist(), strict=True)
        if k // count != k % count
    )
    return graph


def _cut(blueprint: Blueprint, near: NDArray[np.bool_]) -> dict[str, int]:
    crossing = near[blueprint.ends[:, 0]] != near[blueprint.ends[:, 1]]
    found: dict[str, int] = {}
    for sort, links in zip(*np.unique(blueprint.sort[crossing], return_counts=True), strict=True):
        kind = blueprint.sorts[sort].kind
        found[kind] = found.get(kind, 0) + int(links)
    return found


def describe(cluster: ClusterGraph) -> list[tuple[str, str]]:
    """List what a cluster is made of, counted on its graph: (label, value) in print order.

    Bandwidths and oversubscription are those that can be used, efficiencies applied.
    """
    blueprint, gpus = cluster.blueprint, cluster.gpu_count
    domains, size = np.unique(cluster.domain, return_counts=True)
    rows = [
        ("GPUs", f"{gpus}"),
        ("nodes", f"{cluster.node_of.max() + 1} of {cluster.gpus_per_node} GPUs"),
        ("scale-up domains", f"{len(domains)} of {size.max()} GPUs"),
    ]
    kinds = count_kinds(blueprint)
    speeds = {tier.kind: tier.most for tier in tiers(blueprint)}
    if "nvlink" in speeds:
        where = "per GPU and direction" if "nvswitch" in kinds else "per direction, of the widest link"
        rows.append(("scale-up bandwidth", f"{speeds['nvlink'] / 1e9:g} GB/s {where}"))
    if "ici" in speeds:
        rows.append(("chip-to-chip links", f"{speeds['ici'] / 1e9:g} GB/s each per direction"))
    if "nic" in kinds and "nic" in speeds:
        rows.append(("NICs", f"{kinds['nic']}, {speeds['nic'] / 1e9:g} GB/s each per direction"))
    rows += [(f"{kind} switches", f"{kinds[kind]}") for kind in ("leaf", "spine", "core") if kind in kinds]
    rows += [
        (name, f"{kinds[kind]}") for kind, name in (("router", "routers"), ("switch", "switches")) if kind in kinds
    ]
    rows += [(f"{kind} oversubscription", f"{ratio:g} : 1") for kind, ratio in oversubscription(blueprint).items()]
    return [*rows, ("links", f"{len(blueprint.ends)}")]
