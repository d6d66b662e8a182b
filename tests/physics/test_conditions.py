"""Conditions on the graph: speeds, weak and missing links, NICs that others take over, another job's traffic."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from simulator.errors import TopologyError
from simulator.physics.cluster import ClusterGraph, build_cluster, index_graph
from simulator.scenario.conditions import Condition
from simulator.scenario.topology import Cluster

LIST: TypeAdapter[Any] = TypeAdapter(tuple[Condition, ...])
RAILS: dict[str, Any] = {
    "kind": "rail_clos", "nodes": 4, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 2,
    "scale_up": {"bandwidth": "240 GB/s"}, "nic": {"bandwidth": "24 GB/s"},
}  # fmt: skip
PLANES = RAILS | {"kind": "dual_plane"}
TREE = RAILS | {"kind": "fat_tree"}


def build(*conditions: dict[str, Any], topology: dict[str, Any] = RAILS, merge: bool = True) -> ClusterGraph:
    """Build a small machine under conditions."""
    cluster = Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": topology})
    return build_cluster(cluster, LIST.validate_python(list(conditions)), merge=merge)


def removed(a: str, b: str) -> dict[str, Any]:
    """Remove a link."""
    return {"kind": "removed_link", "between": [a, b]}


def route(cluster: ClusterGraph, src: int, dst: int) -> dict[str, float]:
    """Find one route as link name -> share."""
    found = cluster.routes(np.array([src]), np.array([dst]))
    return {cluster.link_name(int(i)): float(share) for i, share in zip(found.link, found.share, strict=True)}


def capacity(cluster: ClusterGraph, tail: str, head: str) -> float:
    """Bytes/s of a directed link or of the trunk that it is in."""
    return float(cluster.capacity[cluster.link_between(tail, head)])


def test_speeds_multiply_and_others_stay_healthy() -> None:
    """GPU 3 is slow by itself and in a slow node: 0.9 * 0.5."""
    cluster = build(
        {"kind": "slow_gpu", "gpu": 3, "speed": 0.9}, {"kind": "slow_node", "node": 1, "speed": 0.5},
    )  # fmt: skip
    assert cluster.speed.tolist() == [1, 1, 0.5, 0.45, 1, 1, 1, 1]
    assert (build().speed == 1).all()
    assert build().platform == "a100-80gb"


def test_a_slow_nic_slows_its_way_to_the_leaf_only() -> None:
    """NIC 1 of node 2 at half: its cable to leaf 1.1, both ways; the PCIe link and other NICs stay."""
    cluster = build({"kind": "slow_nic", "node": 2, "nic": 1, "capacity": 0.5})
    assert capacity(cluster, "node2.nic1", "leaf1.1") == capacity(cluster, "leaf1.1", "node2.nic1") == 12e9
    assert capacity(cluster, "gpu5", "node2.nic1") == capacity(cluster, "node2.nic0", "leaf1.0") == 24e9
    assert cluster.graph.edges["node2.nic1", "leaf1.1"]["capacity"] == 12e9


def test_a_slow_nic_of_two_planes_slows_both_ports() -> None:
    """Each port has half of 24 GB/s, and keeps half of that; both are one trunk of 12 GB/s."""
    cluster = build({"kind": "slow_nic", "node": 0, "nic": 0, "capacity": 0.5}, topology=PLANES)
    assert cluster.graph.edges["node0.nic0", "leaf0.0.a"]["capacity"] == 6e9
    assert capacity(cluster, "node0.nic0", "leaf0.0.a") == 12e9


def test_a_degraded_uplink_splits_only_what_it_touches() -> None:
    """Spines 0 and 1 come apart; the two cables of leaf 0.0 have 24 and 6 GB/s of the 24 of a healthy one."""
    cluster = build({"kind": "degraded_link", "between": ["spine0", "leaf0.0"], "capacity": 0.25})
    assert capacity(cluster, "leaf0.0", "spine0") == 6e9
    assert capacity(cluster, "leaf0.0", "spine1") == 24e9
    assert route(cluster, 0, 4)["leaf0.0 -> spine0"] == 0.5


def test_a_removed_nic_link_moves_the_gpu_to_the_nearest_nic() -> None:
    """GPU 5 of node 2 takes NIC 0 and shares it with GPU 4; its rail is 0 now, and PXN brings traffic there."""
    cluster = build(removed("node2.nic1", "leaf1.1"))
    assert cluster.rail.tolist() == [0, 1, 0, 1, 0, 0, 0, 1]
    assert "gpu5 -> node2.nic0" in route(cluster, 5, 0)
    assert cluster.graph.has_edge("gpu5", "node2.nic0")
    found = route(cluster, 1, 5)  # from rail 1 to rail 0: handed to gpu0 first
    assert found["node0.nvswitch -> gpu0"] == found["gpu0 -> node0.nic0"] == found["node2.nic0 -> gpu5"] == 1


def test_where_rails_do_not_meet_the_receiver_hands_over() -> None:
    """Node 2 has only rail 0 left: its GPU 4 reaches GPU 1 through GPU 0 beside it, and GPU 1 answers the same way."""
    cluster = build(removed("node2.nic1", "leaf1.1"), topology=RAILS | {"spine_groups": "per_rail"})
    there = route(cluster, 4, 1)
    assert there["gpu4 -> node2.nic0"] == there["node0.nic0 -> gpu0"] == there["gpu0 -> node0.nvswitch"] == 1
    assert there["node0.nvswitch -> gpu1"] == 1
    assert route(cluster, 1, 4)["gpu0 -> node0.nic0"] == 1


@pytest.mark.parametrize(("lost", "taken"), [(0, 1), (1, 0), (2, 1), (3, 2)])
def test_the_nearest_nic_is_by_number_and_the_lower_of_two(lost: int, taken: int) -> None:
    """Of NICs 0 to 3: 0 -> 1, 1 -> 0 (not 2), 2 -> 1 (not 3), 3 -> 2; losing the PCIe link is the same."""
    topology = RAILS | {"gpus_per_node": 4}
    for cut in ((f"node1.nic{lost}", f"leaf0.{lost}"), (f"gpu{4 + lost}", f"node1.nic{lost}")):
        assert build(removed(*cut), topology=topology).rail[4 + lost] == taken


def test_a_nic_of_two_planes_keeps_its_other_port() -> None:
    """Without its port in plane a, everything of NIC 0 goes over plane b, also on the far side."""
    cluster = build(removed("node0.nic0", "leaf0.0.a"), topology=PLANES)
    assert cluster.rail[0] == 0
    found = route(cluster, 0, 4)
    assert found["node0.nic0 -> leaf0.0.b"] == found["leaf1.0.b -> node2.nic0"] == 1
    assert not any(".a" in link for link in found)


def test_nics_can_be_lost_one_after_the_other_but_not_the_last() -> None:
    """The second loss leaves node 2 without a NIC; the message says which entry and which GPU."""
    with pytest.raises(TopologyError, match=r"conditions\[1\]: gpu4 loses node2.nic0, the last NIC of node 2"):
        build(removed("node2.nic1", "leaf1.1"), removed("node2.nic0", "leaf1.0"))


@pytest.mark.parametrize(
    ("topology", "leaf"), [(TREE, "leaf0"), (RAILS | {"pxn": False}, "leaf0.0"), (RAILS, "leaf0.0")]
)
def test_removing_what_disconnects_names_two_gpus(topology: dict[str, Any], leaf: str) -> None:
    """A leaf loses both uplinks: nothing under it reaches the other leaves, not even with PXN."""
    with pytest.raises(TopologyError, match=r"conditions: the removed links leave no route from gpu\d+ \(node"):
        build(removed(leaf, "spine0"), removed(leaf, "spine1"), topology=topology)


def test_one_missing_uplink_disconnects_nothing() -> None:
    """The other spine carries everything of the leaf."""
    assert route(build(removed("leaf0.0", "spine0")), 0, 4)["leaf0.0 -> spine1"] == 1


def test_parting_two_leaves_that_both_reach_the_rest_is_seen() -> None:
    """Three leaves under two spines: leaf 1 keeps only spine 0, leaf 2 only spine 1; both still reach leaf 0."""
    topology = TREE | {"nodes": 3, "nodes_per_leaf": 1}
    with pytest.raises(TopologyError, match=r"no route from gpu[2-5]"):
        build(removed("leaf1", "spine1"), removed("leaf2", "spine0"), topology=topology)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (removed("leaf0.0", "spine7"), r"conditions\[0\]: 'spine7' is not in the cluster; did you mean 'spine"),
        (removed("leef0.0", "spine1"), "'leef0.0' is not in the cluster"),
        (removed("leaf0.0", "leaf0.1"), "there is no link leaf0.0 - leaf0.1; .*leaf0.0 has links to node0.nic0"),
        ({"kind": "degraded_link", "between": ["gpu0", "spine0"], "capacity": 0.5}, "no link gpu0 - spine0"),
        ({"kind": "slow_nic", "node": 1, "nic": 5, "capacity": 0.5}, "node 1 has node1.nic0, node1.nic1"),
        ({"kind": "slow_gpu", "gpu": 8, "speed": 0.5}, "gpu8 is not in the cluster; the last is gpu7"),
        ({"kind": "slow_node", "node": 4, "speed": 0.5}, "node 4 is not in the cluster; the last is node 3"),
        ({"kind": "background", "nodes": [0, 4], "rate": "1 GB/s"}, "node 4 is not a whole node"),
    ],
)
def test_unknown_elements_are_named(condition: dict[str, Any], words: str) -> None:
    """One line with the entry, the element and what there is instead."""
    with pytest.raises(TopologyError, match=words):
        build(condition)


def test_background_traffic_takes_its_rate_off_the_links_that_it_uses() -> None:
    """A ring over nodes 0 and 2: GPUs 0 and 1 send to 4 and 5 and back, 5 GB/s on every link of the way, each way."""
    cluster = build({"kind": "background", "nodes": [0, 2], "rate": "5 GB/s"})
    healthy = build()
    for tail, head in (("gpu0", "node0.nic0"), ("leaf0.1", "node0.nic1"), ("leaf1.0", "spine1"), ("spine0", "leaf0.0")):
        assert capacity(cluster, tail, head) == pytest.approx(capacity(healthy, tail, head) - 5e9)
    assert capacity(cluster, "node1.nic0", "leaf0.0") == 24e9
    assert capacity(cluster, "gpu0", "node0.nvswitch") == 240e9


def test_a_ring_loads_one_direction_only() -> None:
    """Nodes 0, 2, 1 in a ring: 0 -> 2 climbs over the spines, 2 -> 1 too, 1 -> 0 stays under the leaf."""
    cluster = build({"kind": "background", "nodes": [0, 2, 1], "rate": "5 GB/s"})
    assert capacity(cluster, "leaf0.0", "spine0") == pytest.approx(48e9 - 5e9)
    assert capacity(cluster, "spine0", "leaf0.0") == pytest.approx(48e9 - 5e9)
    again = build({"kind": "background", "nodes": [0, 2, 3], "rate": "5 GB/s"})
    assert capacity(again, "node2.nic0", "leaf1.0") == pytest.approx(24e9 - 5e9)


def test_all_to_all_sends_equal_parts_to_the_others() -> None:
    """6 GB/s over three others: the leaf's uplink carries 2 * 2/3 of it, as each of 2 GPUs has 2 of 3 beyond."""
    cluster = build({"kind": "background", "nodes": "0-3", "pattern": "all_to_all", "rate": "6 GB/s"})
    assert capacity(cluster, "gpu0", "node0.nic0") == pytest.approx(24e9 - 6e9)
    assert capacity(cluster, "leaf0.0", "spine0") == pytest.approx(48e9 - 2 * 4e9)


def test_background_traffic_that_leaves_nothing_is_refused() -> None:
    """Two jobs of 12 GB/s fill the 24 GB/s of a NIC."""
    job = {"kind": "background", "nodes": [0, 1], "rate": "12 GB/s"}
    assert capacity(build(job), "gpu0", "node0.nic0") == 12e9
    with pytest.raises(TopologyError, match=r"24 GB/s leaves nothing of gpu0 -> node0.nic0 with its 24 GB/s; lower"):
        build(job, job)


@given(st.data())
def test_merging_stays_exact_under_any_weak_links(data: st.DataObject) -> None:
    """The trunks of a damaged machine carry what its cables carry, and their capacity is the cables' sum."""
    graph = build().graph
    cables = [pair for pair in graph.edges if graph.edges[pair]["kind"] == "leaf-spine"]
    weak = data.draw(st.lists(st.sampled_from(cables), max_size=3, unique=True))
    conditions = [{"kind": "degraded_link", "between": list(pair), "capacity": 0.5} for pair in weak]
    whole, apart = build(*conditions), build(*conditions, merge=False)
    src, dst = np.nonzero(~np.eye(8, dtype=bool))
    trunk = np.empty(len(apart.capacity), dtype=np.int64)
    for a, b in graph.edges:
        for tail, head in ((a, b), (b, a)):
            trunk[apart.link_between(tail, head)] = whole.link_between(tail, head)
    loads = []
    for cluster, name in ((whole, np.arange(len(whole.capacity))), (apart, trunk)):
        found = cluster.routes(src, dst)
        table = np.zeros((len(src), len(whole.capacity)))
        np.add.at(table, (found.pair, name[found.link]), found.share)
        loads.append(table)
    np.testing.assert_allclose(loads[0], loads[1], atol=1e-12)
    np.testing.assert_allclose(np.bincount(trunk, weights=apart.capacity), whole.capacity)


def test_conditions_and_an_edited_copy_of_the_graph_agree() -> None:
    """Oracle: halving a cable and cutting another by hand, in networkx, gives the same index."""
    cluster = build(
        {"kind": "degraded_link", "between": ["leaf0.0", "spine0"], "capacity": 0.5}, removed("leaf1.1", "spine1")
    )
    graph = build().graph.copy()
    graph.edges["leaf0.0", "spine0"]["capacity"] *= 0.5
    graph.remove_edge("leaf1.1", "spine1")
    assert nx.utils.graphs_equal(cluster.graph, graph)
    edited = index_graph(graph)
    for src, dst in ((0, 4), (1, 5), (5, 1), (0, 7)):
        assert route(cluster, src, dst) == route(edited, src, dst)
    for a, b in graph.edges:
        assert capacity(cluster, a, b) == capacity(edited, a, b)


def test_only_a_sound_fabric_is_nonblocking() -> None:
    """A weak, busy or missing uplink, or hashing, can hold up what the NICs let in."""
    uplink = {"kind": "degraded_link", "between": ["leaf0.0", "spine0"], "capacity": 0.5}
    assert build().nonblocking
    assert build({"kind": "slow_nic", "node": 0, "nic": 0, "capacity": 0.5}).nonblocking
    assert not build(uplink).nonblocking
    assert not build(uplink, topology=RAILS | {"oversubscription": [0.5]}).nonblocking  # half the cables would do
    assert not build(removed("leaf0.0", "spine0")).nonblocking
    assert not build(topology=RAILS | {"oversubscription": [2]}).nonblocking
    assert not build(topology=RAILS | {"routing": "ecmp"}).nonblocking
    assert build(topology=PLANES).nonblocking
    assert not build(topology=PLANES | {"oversubscription": [2]}).nonblocking
    torus = {"kind": "torus", "dims": [3, 3], "gpus_per_node": 1, "link": {"bandwidth": "50 GB/s"}}
    assert not build(topology=torus).nonblocking
