"""What a cluster is made of: tiers, bandwidths, bisection, oversubscription and sample routes, counted on its graph.

Pinned by tests/studies/test_topology.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.errors import TopologyError
from simulator.physics.census import Bisection, Tier, bisection, count_kinds, oversubscription, tiers
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.ports import components
from simulator.physics.routes import IntArray
from simulator.scenario.conditions import Condition
from simulator.scenario.scenario import load, load_cluster
from simulator.scenario.shipped import find_file, shipped_names
from simulator.scenario.source import read_source
from simulator.scenario.topology import Cluster

_SAMPLE = 4_000
"""Assumption: GPUs that gpu0's routes are tried to; enough to meet every length of route of the shipped machines."""
_ROUTES = 6


@dataclass(frozen=True)
class Switches:
    """Vertices of one kind: how many, and the fewest and most links of one."""

    kind: str
    count: int
    fewest: int
    most: int


@dataclass(frozen=True)
class Path:
    """A route from gpu0: what it passes (the first of equal ways), seconds, bytes/s while alone, links on the way."""

    target: int
    passes: tuple[str, ...]
    latency: float
    bandwidth: float
    hops: float


@dataclass(frozen=True)
class Census:
    """A machine, counted.

    Attributes
    ----------
    switches, links
        Vertices and links by kind, from the GPUs outward.
    oversubscription
        Bandwidth down over bandwidth up, by kind of switch.
    islands
        Connected components with GPUs; 1 where every GPU reaches every other.
    warnings
        What is disconnected.
    """

    cluster: Cluster
    gpus: int
    nodes: int
    domains: int
    switches: tuple[Switches, ...]
    links: tuple[Tier, ...]
    bisection: Bisection | None
    oversubscription: dict[str, float]
    paths: tuple[Path, ...]
    islands: int
    warnings: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """Everything as plain data: the object that `--json` prints."""
        cut = self.bisection
        return {
            "name": self.cluster.name,
            "kind": self.cluster.topology.kind,
            "accelerator": self.cluster.platform,
            "gpus": self.gpus,
            "nodes": self.nodes,
            "scale_up_domains": self.domains,
            "switches": [
                {"kind": s.kind, "count": s.count, "fewest_links": s.fewest, "most_links": s.most}
                for s in self.switches
            ],
            "links": [
                {
                    "kind": tier.kind,
                    "count": tier.links,
                    "least_bytes_per_s": tier.least,
                    "most_bytes_per_s": tier.most,
                    "total_bytes_per_s": tier.total,
                }
                for tier in self.links
            ],
            "oversubscription": self.oversubscription,
            "bisection": None
            if cut is None
            else {"bytes_per_s": cut.bandwidth, "gpus": list(cut.gpus), "cut_links": cut.cut},
            "routes": [
                {
                    "from": "gpu0",
                    "to": f"gpu{path.target}",
                    "passes": list(path.passes),
                    "latency_s": path.latency,
                    "bytes_per_s": path.bandwidth,
                    "hops": path.hops,
                }
                for path in self.paths
            ],
            "islands": self.islands,
            "warnings": list(self.warnings),
        }


def count_topology(name: str, overrides: Iterable[str] = ()) -> Census:
    """Count what a cluster file, a shipped topology or a scenario (with its conditions) describes.

    Raises
    ------
    ScenarioError
        No such file, or something in it is wrong.
    TopologyError
        The graph cannot be built.
    """
    cluster, conditions = _load(name, tuple(overrides))
    census = take_census(cluster, build_cluster(cluster, conditions))
    if cluster.topology.kind == "explicit" and census.islands > 1:
        raise TopologyError(f"{name}: {census.warnings[0]}; add the missing links")
    return census


def _load(name: str, overrides: tuple[str, ...]) -> tuple[Cluster, tuple[Condition, ...]]:
    known = set(shipped_names("topologies"))
    kind = "scenarios" if name not in known and name in shipped_names("scenarios") else "topologies"
    path = find_file(name, kind)
    content = read_source(path).content
    if "topology" in content or (kind == "topologies" and "cluster" not in content):
        return load_cluster(str(path), overrides=overrides), ()
    scenario = load(path, overrides)
    return scenario.cluster, scenario.conditions


def take_census(cluster: Cluster, graph: ClusterGraph) -> Census:
    """Count what stands in a built cluster."""
    blueprint = graph.blueprint
    label = components(len(blueprint.names), blueprint.ends)[np.flatnonzero(blueprint.is_kind("gpu"))]
    islands = len(np.unique(label))
    others = _targets(graph)
    reached = graph.reaches(np.zeros(len(others), dtype=np.int64), others)
    return Census(
        cluster=cluster,
        gpus=graph.gpu_count,
        nodes=int(graph.node_of.max()) + 1,
        domains=len(np.unique(graph.domain)),
        switches=_switches(graph),
        links=tuple(tiers(blueprint)),
        bisection=bisection(graph),
        oversubscription=oversubscription(blueprint),
        paths=_paths(graph, others[reached]),
        islands=islands,
        warnings=tuple(_parted(label, islands, others[~reached])),
    )


def _switches(graph: ClusterGraph) -> tuple[Switches, ...]:
    blueprint = graph.blueprint
    degree = np.bincount(blueprint.ends.reshape(-1), minlength=len(blueprint.names))
    found = []
    for kind, count in count_kinds(blueprint).items():
        own = degree[blueprint.is_kind(kind)]
        found.append(Switches(kind, count, int(own.min()), int(own.max())))
    return tuple(found)


def _targets(graph: ClusterGraph) -> IntArray:
    """All GPUs but the first, or an even choice of them and those near by."""
    count = graph.gpu_count
    if count - 1 <= _SAMPLE:
        return np.arange(1, count)
    near = np.arange(1, _SAMPLE // 2)
    return np.union1d(near, np.linspace(1, count - 1, _SAMPLE // 2).astype(np.int64))


def _parted(label: IntArray, islands: int, missed: IntArray) -> list[str]:
    if islands > 1:
        other = int(np.flatnonzero(label != label[0])[0])
        return [f"disconnected: {islands} islands of GPUs; there is no route from gpu0 to gpu{other}"]
    if len(missed):
        return [f"no route from gpu0 to gpu{missed[0]} and {len(missed) - 1} others, though cables connect them"]
    return []


def _paths(graph: ClusterGraph, targets: IntArray) -> tuple[Path, ...]:
    """Routes of every different latency and bandwidth, the nearest GPU of each; the middle ones of many left out."""
    if not len(targets):
        return ()
    found = graph.routes(np.zeros(len(targets), dtype=np.int64), targets)
    alone = np.full(len(targets), np.inf)
    np.minimum.at(alone, found.pair, graph.capacity[found.link] / found.share)
    hops = np.bincount(found.pair, weights=found.share, minlength=len(targets))
    shape = np.round(np.stack([hops * 1e3, found.latency * 1e12, alone / 1e3], axis=1))
    _, first = np.unique(shape, axis=0, return_index=True)
    if len(first) > _ROUTES:
        first = first[np.unique(np.linspace(0, len(first) - 1, _ROUTES).astype(np.int64))]
    return tuple(
        Path(int(targets[i]), _walk(graph, int(targets[i])), float(found.latency[i]), float(alone[i]), float(hops[i]))
        for i in first.tolist()
    )


def _walk(graph: ClusterGraph, target: int) -> tuple[str, ...]:
    """Names that a route from gpu0 passes, along its widest shares."""
    found = graph.routes(np.array([0]), np.array([target]))
    after: dict[str, str] = {}
    for i in np.argsort(found.share, kind="stable").tolist():
        tail, head = graph.link_name(int(found.link[i])).split(" -> ")
        after[tail] = head
    passed = ["gpu0"]
    while passed[-1] != f"gpu{target}" and len(passed) <= len(after):
        passed.append(after[passed[-1]])
    return tuple(passed)
