"""Tori: neighbours, hops and flow; networkx's grid graphs as an oracle."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.scenario.conditions import RemovedLink
from simulator.scenario.scenario import load_cluster
from simulator.scenario.topology import Cluster


def build(dims: list[int], *cut: tuple[str, str], **fields: Any) -> ClusterGraph:
    """Build a torus of links of 50 GB/s and 1 us."""
    topology = {
        "kind": "torus", "dims": dims, "gpus_per_node": 1, "link": {"bandwidth": "50 GB/s", "latency": "1 us"},
    } | fields  # fmt: skip
    cluster = Cluster.model_validate({"name": "test", "accelerator": "tpu-v4", "topology": topology})
    return build_cluster(cluster, [RemovedLink(kind="removed_link", between=pair) for pair in cut])


def route(cluster: ClusterGraph, src: int, dst: int) -> dict[str, float]:
    """Find one route as link name -> share."""
    found = cluster.routes(np.array([src]), np.array([dst]))
    return {cluster.link_name(int(i)): float(share) for i, share in zip(found.link, found.share, strict=True)}


def test_a_tpu_v4_pod_is_64_cubes_of_64() -> None:
    """4,096 chips of six links: 12,288; a 4 x 4 x 4 cube's face has 16 of them (Jouppi et al., ISCA 2023)."""
    cluster = build_cluster(load_cluster("tpu-v4-pod"))
    assert cluster.gpu_count == 4_096 == 64 * 4**3
    assert cluster.graph.number_of_edges() == 12_288
    assert set(dict(cluster.graph.degree()).values()) == {6}
    place = np.arange(4_096)
    cube = place % 16 // 4 + 4 * (place // 16 % 16 // 4) + 16 * (place // 256 // 4)
    ends = cluster.blueprint.ends
    crossing = np.bincount(cube[ends[cube[ends[:, 0]] != cube[ends[:, 1]]]].reshape(-1))
    assert crossing.tolist() == [6 * 16] * 64  # to the optical switches: 96 links a cube


def test_routes_go_along_x_then_y_the_shorter_way() -> None:
    """In 5 x 4: (0, 0) to (4, 1) is one step back around x, then one up."""
    assert route(build([5, 4]), 0, 9) == {"gpu0 -> gpu4": 1.0, "gpu4 -> gpu9": 1.0}


def test_two_equally_long_ways_round_share() -> None:
    """In a ring of 4, two steps either way: half on each."""
    expected = dict.fromkeys(("gpu0 -> gpu1", "gpu1 -> gpu2", "gpu0 -> gpu3", "gpu3 -> gpu2"), 0.5)
    assert route(build([4]), 0, 2) == expected


def test_without_wrap_the_ends_are_far_apart() -> None:
    """In a mesh row of 5 the ends are four hops apart; wrap may be told for each dimension."""
    assert len(route(build([5], wrap=False), 0, 4)) == 4
    mixed = build([3, 3], wrap=[True, False])
    assert len(route(mixed, 0, 2)) == 1
    assert len(route(mixed, 0, 6)) == 2


def test_a_ring_along_a_dimension_uses_every_link_once() -> None:
    """Ring collectives find neighbour links: each of the 4 x 4 x 4 chips sends to the next over a link of its own."""
    cluster = build([4, 4, 4])
    chip = np.arange(64)
    for stride in (1, 4, 16):
        place = chip // stride % 4
        found = cluster.routes(chip, chip + ((place + 1) % 4 - place) * stride)
        assert found.share.tolist() == [1.0] * 64
        assert len(np.unique(found.link)) == 64


def test_a_broken_way_is_replaced_by_all_shortest_ones() -> None:
    """Without (0, 0) - (1, 0) in a 4 x 4 mesh, three hops over y = 1 remain; other routes stay."""
    cluster = build([4, 4], ("gpu0", "gpu1"), wrap=False)
    assert route(cluster, 0, 1) == {"gpu0 -> gpu4": 1.0, "gpu4 -> gpu5": 1.0, "gpu5 -> gpu1": 1.0}
    assert route(cluster, 5, 6) == {"gpu5 -> gpu6": 1.0}


TORI = st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans()).filter(
    lambda drawn: 2 <= math.prod(drawn[0]) <= 60
)


@given(TORI)
def test_hops_agree_with_networkx_and_flow_is_conserved(drawn: tuple[list[int], bool]) -> None:
    """Oracle: grid_graph's edges and distances; law: one unit leaves, one arrives, nothing stays between."""
    dims, wrap = drawn
    cluster = build(dims, wrap=wrap)
    grid = nx.grid_graph(dim=dims, periodic=[wrap and size > 2 for size in dims])
    strides = [math.prod(dims[:d]) for d in range(len(dims))]
    names = {  # grid_graph's tuples have the last dimension first; one dimension has no tuples
        spot: sum(c * s for c, s in zip(reversed(spot), strides, strict=True)) if isinstance(spot, tuple) else spot
        for spot in grid
    }
    edges = {frozenset((names[a], names[b])) for a, b in grid.edges}
    assert edges == {frozenset(pair) for pair in cluster.blueprint.ends.tolist()}
    distance = dict(nx.all_pairs_shortest_path_length(nx.relabel_nodes(grid, names)))
    src, dst = np.nonzero(~np.eye(cluster.gpu_count, dtype=bool))
    found = cluster.routes(src, dst)
    hops = np.bincount(found.pair, weights=found.share)
    assert hops == pytest.approx([distance[a][b] for a, b in zip(src.tolist(), dst.tolist(), strict=True)])
    assert found.latency == pytest.approx(hops * 1e-6)
    balance: dict[tuple[int, str], float] = defaultdict(float)
    for pair, link, share in zip(found.pair.tolist(), found.link.tolist(), found.share.tolist(), strict=True):
        tail, head = cluster.link_name(link).split(" -> ")
        balance[pair, tail] -= share
        balance[pair, head] += share
    left = {place: rest for place, rest in balance.items() if abs(rest) > 1e-9}
    sent = {(i, f"gpu{a}"): -1.0 for i, a in enumerate(src)}
    assert left == pytest.approx(sent | {(i, f"gpu{b}"): 1.0 for i, b in enumerate(dst)})


def test_sprayed_routes_use_all_shortest_paths() -> None:
    """With `routing: spray`, (0, 0) to (1, 1) goes half over x first, half over y first."""
    expected = dict.fromkeys(("gpu0 -> gpu1", "gpu1 -> gpu4", "gpu0 -> gpu3", "gpu3 -> gpu4"), 0.5)
    assert route(build([3, 3], routing="spray"), 0, 4) == expected
