"""ECMP by hash: one shortest path a pair, every one equally likely, the same every time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.routes import pair_hashes
from simulator.scenario.conditions import RemovedLink
from simulator.scenario.topology import Cluster

PARTS: dict[str, Any] = {
    "scale_up": {"bandwidth": "240 GB/s", "latency": "1 us"}, "nic": {"bandwidth": "24 GB/s", "latency": "1 us"},
}  # fmt: skip
MACHINES: dict[str, dict[str, Any]] = {
    "rails": {"kind": "rail_clos", "nodes": 6, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 3} | PARTS,
    "tree": {
        "kind": "fat_tree", "nodes": 6, "gpus_per_node": 2, "nodes_per_leaf": 1, "tiers": 3, "nodes_per_pod": 2,
        "spines": 2, "cores": 4,
    } | PARTS,
    "planes": {"kind": "dual_plane", "nodes": 4, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 2} | PARTS,
    "dragonfly": {
        "kind": "dragonfly", "groups": 3, "routers_per_group": 3, "nodes_per_router": 1, "global_links": 2,
        "gpus_per_node": 1,
    } | PARTS,
    "explicit": {
        "kind": "explicit", "gpus": 4, "gpus_per_node": 1, "switches": ["a", "b", "c"],
        "links": [
            {"between": [f"gpu{g}", s], "bandwidth": "1 GB/s", "latency": "1 us"} for g in range(4) for s in "abc"
        ],
    },
}  # fmt: skip


def build(name: str, *cut: tuple[str, str], **fields: Any) -> ClusterGraph:
    """Build a machine that hashes, without some links."""
    topology = MACHINES[name] | {"routing": "ecmp"} | fields
    cluster = Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": topology})
    return build_cluster(cluster, [RemovedLink(kind="removed_link", between=pair) for pair in cut])


def all_pairs(cluster: ClusterGraph) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """All ordered pairs of GPUs."""
    src, dst = np.nonzero(~np.eye(cluster.gpu_count, dtype=bool))
    return src, dst


def paths(cluster: ClusterGraph) -> dict[tuple[int, int], list[tuple[str, str]]]:
    """Links of every pair's route."""
    src, dst = all_pairs(cluster)
    found = cluster.routes(src, dst)
    assert (found.share == 1).all()
    ways: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for pair, link in zip(found.pair.tolist(), found.link.tolist(), strict=True):
        tail, head = cluster.link_name(link).split(" -> ")
        ways.setdefault((int(src[pair]), int(dst[pair])), []).append((tail, head))
    return ways


@pytest.mark.parametrize("name", MACHINES)
def test_every_pair_takes_one_of_networkx_shortest_paths(name: str) -> None:
    """Oracle: between the first and the last vertex of the fabric, the links make one of all_shortest_paths."""
    cluster = build(name)
    graph = cluster.graph
    fabric = [v for v in graph if graph.nodes[v]["kind"] not in ("gpu", "nic", "nvswitch")]
    for (src, dst), links in paths(cluster).items():
        after = dict(links)
        way = [f"gpu{src}"]
        while way[-1] != f"gpu{dst}":
            way.append(after[way[-1]])
        assert len(way) == len(links) + 1  # the links are one path, from end to end
        inside = [v for v in way if v in fabric]
        if len(inside) > 1:
            ends = {inside[0], inside[-1]}
            access = {v for v in fabric if any(graph.nodes[w]["kind"] == "nic" for w in graph[v])}
            open_to = fabric if name == "dragonfly" else [v for v in fabric if v in ends or v not in access]
            assert inside in list(nx.all_shortest_paths(graph.subgraph(open_to), inside[0], inside[-1]))


@pytest.mark.parametrize("name", MACHINES)
def test_seeds_average_to_spraying(name: str) -> None:
    """Law: over 400 seeds a link carries about the share that spraying gives it, within five standard deviations."""
    cluster = build(name)
    pair = np.array([0]), np.array([cluster.gpu_count - 1])
    even = build_cluster(
        Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": MACHINES[name]}), merge=False
    ).routes(*pair)
    expected = dict(zip(even.link.tolist(), even.share.tolist(), strict=True))
    seen: Counter[int] = Counter()
    for seed in range(400):
        cluster.blueprint.facts["ecmp_seed"] = seed
        seen.update(cluster.routes(*pair).link.tolist())
    assert set(seen) == set(expected)
    for link, share in expected.items():
        assert seen[link] / 400 == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 400) + 1e-12)


@pytest.mark.parametrize("cut", [(), (("leaf0.0", "spine1"),), (("leaf0.0", "spine1"), ("leaf2.1", "spine0"))])
def test_hashed_flow_is_conserved_also_in_damaged_fabrics(cut: tuple[tuple[str, str], ...]) -> None:
    """Law: every vertex on the way is entered once and left once, and a cut link carries nothing."""
    for (src, dst), links in paths(build("rails", *cut)).items():
        tails, heads = Counter(a for a, _ in links), Counter(b for _, b in links)
        assert tails - heads == {f"gpu{src}": 1}
        assert heads - tails == {f"gpu{dst}": 1}
        assert not {frozenset(link) for link in links} & {frozenset(pair) for pair in cut}


def test_another_seed_is_another_choice_and_the_same_seed_the_same() -> None:
    """The choice depends on the pair and the seed alone."""
    one, again, other = build("rails"), build("rails"), build("rails", routing_seed=1)
    assert paths(one) == paths(again)
    assert paths(one) != paths(other)


def test_two_flows_on_one_uplink_is_what_hashing_costs() -> None:
    """12 senders of a rail over 3 spines collide: some uplink carries more than its even part (spraying: never)."""
    cluster = build("rails", nodes=24, nodes_per_leaf=12)
    src = np.arange(0, 24, 2)
    found = cluster.routes(src, src + 24)
    load = np.bincount(found.link, minlength=len(cluster.capacity))
    up = [cluster.link_between("leaf0.0", f"spine{j}") for j in range(3)]
    assert load[up].sum() == 12
    assert load[up].max() > 4


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 10**6))
def test_hashes_tell_directions_apart(seed: int, a: int, b: int) -> None:
    """There and back are hashed apart, as switches do."""
    if a == b:
        return
    there, back = pair_hashes(seed, np.array([a, b]), np.array([b, a]))
    assert there != back


def test_hashes_are_spread_evenly() -> None:
    """Of 100 x 100 pairs over 16 paths each gets 625 on average, none more than five standard deviations off."""
    src, dst = (axis.reshape(-1) for axis in np.mgrid[0:100, 0:100])
    count = np.bincount((pair_hashes(0, src, dst) % np.uint64(16)).astype(np.int64), minlength=16)
    assert np.abs(count - 625).max() < 5 * np.sqrt(625 * 15 / 16)
