"""Families beside the Clos and the fat tree: published counts, and routes worked out by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import TopologyError
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.wiring.direct import CUBE_MESH
from simulator.scenario.scenario import load_cluster
from simulator.scenario.topology import Cluster

SCALE_UP = {"bandwidth": "150 GB/s", "latency": "1 us"}
NIC = {"bandwidth": "400 Gbps", "latency": "1 us"}
BOX: dict[str, Any] = {"kind": "nvlink_box", "scale_up": SCALE_UP}
DRAGONFLY: dict[str, Any] = {
    "kind": "dragonfly", "groups": 9, "routers_per_group": 4, "nodes_per_router": 2, "global_links": 2,
    "gpus_per_node": 1, "scale_up": SCALE_UP, "nic": NIC, "switch_latency": "0.1 us",
}  # fmt: skip


def build(topology: dict[str, Any]) -> ClusterGraph:
    """Build a machine."""
    return build_cluster(Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": topology}))


def route(cluster: ClusterGraph, src: int, dst: int) -> dict[str, float]:
    """Find one route as link name -> share."""
    found = cluster.routes(np.array([src]), np.array([dst]))
    return {cluster.link_name(int(i)): float(share) for i, share in zip(found.link, found.share, strict=True)}


def kinds(graph: nx.Graph[str]) -> Counter[str]:
    """Count vertices by kind."""
    return Counter(vertex["kind"] for _, vertex in graph.nodes(data=True))


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_cube_mesh_is_that_of_dgx_1() -> None:
    """Six links of 25 GB/s a GPU: 24 links in a box, 8 of the 16 edges double (NVIDIA DGX-1 whitepaper)."""
    assert sum(CUBE_MESH.values()) == 24
    assert Counter(CUBE_MESH.values()) == {1: 8, 2: 8}
    for gpu in range(8):
        assert sum(count for pair, count in CUBE_MESH.items() if gpu in pair) == 6
    cluster = build(BOX | {"fabric": "cube_mesh"})
    assert cluster.graph.edges["gpu0", "gpu1"]["capacity"] == 25e9
    assert cluster.graph.edges["gpu0", "gpu3"]["capacity"] == 50e9
    assert nx.diameter(cluster.graph) == 2
    assert (cluster.domain == 0).all()


def test_gpus_of_a_cube_mesh_forward() -> None:
    """GPU 0 and GPU 5 are no neighbours: half over GPU 1, half over GPU 4, two hops of 1 us."""
    cluster = build(BOX | {"fabric": "cube_mesh", "nodes": 2})
    assert route(cluster, 0, 5) == dict.fromkeys(("gpu0 -> gpu1", "gpu1 -> gpu5", "gpu0 -> gpu4", "gpu4 -> gpu5"), 0.5)
    assert cluster.routes(np.array([0]), np.array([5])).latency[0] == pytest.approx(2e-6)
    with pytest.raises(TopologyError, match="no route from gpu0"):
        route(cluster, 0, 8)


def test_full_mesh_of_four() -> None:
    """Three neighbours share 150 GB/s: 50 GB/s each (a four-GPU HGX A100 has 4 of 12 links to each)."""
    cluster = build(BOX | {"fabric": "full_mesh", "gpus_per_node": 4})
    assert [edge["capacity"] for *_, edge in cluster.graph.edges(data=True)] == [50e9] * 6
    assert route(cluster, 1, 3) == {"gpu1 -> gpu3": 1.0}


def test_sixteen_gpus_of_a_dgx_2_meet_in_their_switches() -> None:
    """150 GB/s a GPU and direction, as NVIDIA's DGX-2 datasheet has 300 GB/s both ways."""
    cluster = build(BOX | {"gpus_per_node": 16})
    assert kinds(cluster.graph) == {"gpu": 16, "nvswitch": 1}
    assert cluster.capacity.tolist() == [150e9] * 32


# --- two planes ------------------------------------------------------------------------------------------------------


def test_counts_of_alibaba_hpn() -> None:
    """Qian et al., SIGCOMM 2024: 1,024 GPUs under 16 leaves in each of 15 segments; 60 spines in each of 2 planes."""
    cluster = build_cluster(load_cluster("hpn-15k"))
    assert cluster.gpu_count == 15_360
    assert {kind: kinds(cluster.graph)[kind] for kind in ("leaf", "spine")} == {"leaf": 15 * 16, "spine": 120}
    graph = cluster.graph
    assert sum(graph.nodes[name]["kind"] == "nic" for name in graph["leaf3.5.b"]) == 128
    assert sum(name.startswith("spine") for name in graph["leaf3.5.b"]) == 60
    assert sum(name.startswith("leaf") for name in graph["spine7"]) == 120
    # 128 x 200 Gb/s below 60 x 400 Gb/s; 0.92 of the line rate, and 0.88 of that between switches
    assert graph.edges["node0.nic0", "leaf0.0.a"]["capacity"] == pytest.approx(25e9 * 0.92)
    assert graph.edges["leaf0.0.a", "spine0"]["capacity"] == pytest.approx(50e9 * 0.92 * 0.88)


def test_traffic_splits_over_the_planes_which_do_not_mix() -> None:
    """Half of every route goes over leaf a and the spines of plane a, half over b."""
    topology = {
        "kind": "dual_plane", "nodes": 4, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 2,
        "scale_up": SCALE_UP, "nic": NIC, "switch_latency": "0.1 us",
    }  # fmt: skip
    cluster = build_cluster(
        Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": topology}), merge=False
    )
    found = route(cluster, 0, 4)
    assert found["node0.nic0 -> leaf0.0.a"] == found["node0.nic0 -> leaf0.0.b"] == 0.5
    assert found["leaf0.0.a -> spine0"] == found["leaf0.0.b -> spine3"] == 0.25
    assert "leaf0.0.a -> spine2" not in found
    assert sum(found.values()) == pytest.approx(6)
    assert cluster.routes(np.array([0]), np.array([4])).latency[0] == pytest.approx(1.3e-6)
    assert "node0.nvswitch -> gpu1" in route(cluster, 0, 5)  # PXN
    merged = build(topology)
    assert merged.capacity[merged.link_between("node0.nic0", "leaf0.0.a")] == pytest.approx(50e9)
    assert merged.leaf[0] == merged.leaf[2] != merged.leaf[1]


def test_leaf_links_of_two_planes() -> None:
    """Every NIC has one trunk of 50 GB/s to its pair of leaves, every pair one of 2 * 50 GB/s to the spines."""
    topology = {
        "kind": "dual_plane", "nodes": 4, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 2,
        "scale_up": SCALE_UP, "nic": NIC,
    }  # fmt: skip
    cluster = build(topology)
    for upward in (True, False):
        ports, leaf_of_port, leaf_of_trunk = cluster.leaf_links(upward=upward)
        ends = [cluster.link_name(int(port)).split(" -> ") for port in ports]
        assert sorted(end[0 if upward else 1] for end in ends) == [f"node{n}.nic{i}" for n in range(4) for i in (0, 1)]
        assert sorted(leaf_of_port.tolist()) == sorted(cluster.leaf.tolist())
        trunks = np.flatnonzero(leaf_of_trunk >= 0)
        assert len(trunks) == 4
        assert cluster.capacity[trunks] == pytest.approx([100e9] * 4)
        assert all("spine" in cluster.link_name(int(trunk)) for trunk in trunks)


def test_only_the_trunks_above_the_leaves_can_be_dropped() -> None:
    """A non-blocking fabric of two planes needs its NIC ports as constraints, not what is above them."""
    topology = {
        "kind": "dual_plane", "nodes": 4, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 2,
        "scale_up": SCALE_UP, "nic": NIC,
    }  # fmt: skip
    cluster = build(topology)
    dropped = {cluster.link_name(int(link)) for link in np.flatnonzero(~cluster.needed)}
    assert dropped
    assert all("spine" in link for link in dropped)
    assert all("spine" not in cluster.link_name(int(link)) for link in np.flatnonzero(cluster.needed))


def test_counts_of_bytedance_megascale() -> None:
    """Jiang et al., NSDI 2024, 3.6: 32 ports down (64 NICs of 200G), 32 up of twice a NIC; 64 servers a set."""
    graph = build_cluster(load_cluster("megascale-12k")).graph
    assert kinds(graph)["leaf"] == 1_536 // 64 * 8
    below = [name for name in graph["leaf5.3"] if name.startswith("node")]
    above = [name for name in graph["leaf5.3"] if name.startswith("spine")]
    assert (len(below), len(above)) == (64, 32)
    down, up = graph.edges[below[0], "leaf5.3"]["capacity"], graph.edges["leaf5.3", above[0]]["capacity"]
    assert up == pytest.approx(2 * down * 0.88)  # of which load balancing reaches 88 %
    spine_down = [name for name in graph[above[0]] if name.startswith("leaf")]
    assert len(spine_down) == 32


# --- dragonfly -------------------------------------------------------------------------------------------------------


def test_counts_of_the_dragonfly_of_its_paper() -> None:
    """Kim et al., ISCA 2008, figure 5: p = h = 2, a = 4 makes 9 groups, 36 routers, N = 72, one link between groups."""
    cluster = build(DRAGONFLY)
    assert cluster.gpu_count == 72
    assert kinds(cluster.graph)["router"] == 36
    links = Counter(edge["kind"] for *_, edge in cluster.graph.edges(data=True))
    assert (links["local"], links["global"]) == (9 * 6, 36)
    pairs = {
        tuple(sorted((a.split(".")[0], b.split(".")[0])))
        for a, b, edge in cluster.graph.edges(data=True)
        if edge["kind"] == "global"
    }
    assert len(pairs) == 36
    ports = Counter(end for a, b, edge in cluster.graph.edges(data=True) if edge["kind"] == "global" for end in (a, b))
    assert set(ports.values()) == {2}


@given(st.integers(0, 71), st.integers(0, 71))
def test_minimal_routes_of_a_dragonfly(src: int, dst: int) -> None:
    """At most local, global, local; the one global link joins the two groups."""
    if src == dst:
        return
    cluster = _DRAGONFLY
    links = [
        link
        for link in route(cluster, src, dst)
        if "router" in link.split(" -> ")[0] and "router" in link.split(" -> ")[1]
    ]
    crossing = [link for link in links if len({end.split(".")[0] for end in link.split(" -> ")}) == 2]
    assert len(links) <= 3
    assert len(crossing) == (src // 8 != dst // 8)
    for link in crossing:
        assert [int(end.split(".")[0].removeprefix("router")) for end in link.split(" -> ")] == [src // 8, dst // 8]


_DRAGONFLY = build(DRAGONFLY)


def test_parallel_global_links_add_up() -> None:
    """Two groups of 2 routers with 2 links each: 4 links, as palm tree order puts two on each pair of routers."""
    cluster = build(DRAGONFLY | {"groups": 2, "routers_per_group": 2, "global_bandwidth": "100 Gbps"})
    cables = {(a, b): edge["capacity"] for a, b, edge in cluster.graph.edges(data=True) if edge["kind"] == "global"}
    assert sum(cables.values()) == pytest.approx(4 * 12.5e9)
    assert set(cables.values()) == {25e9}
