"""The cluster graph and its routes: worked examples, laws on random small machines, and networkx as an oracle."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.errors import TopologyError
from simulator.physics.cluster import ClusterGraph, build_cluster, describe, index_graph, require_connected
from simulator.physics.wiring.families import graph_of as draw_topology
from simulator.scenario.topology import Cluster

NVLINK, NIC, SWITCH = 0.6e-6, 1.0e-6, 0.1e-6  # seconds
SCALE_UP = {"bandwidth": "300 GB/s", "latency": "0.6 us", "efficiency": 0.8}
CARD = {"bandwidth": "200 Gbps", "latency": "1 us", "efficiency": 0.96}
BASE: dict[str, Any] = {"gpus_per_node": 2, "scale_up": SCALE_UP, "nic": CARD, "switch_latency": "0.1 us"}
RAILS = BASE | {"kind": "rail_clos", "nodes": 4, "nodes_per_leaf": 2, "spines": 2}
PODS = RAILS | {"nodes": 8, "tiers": 3, "nodes_per_pod": 4, "cores": 4}
TREE = BASE | {"kind": "fat_tree", "nodes": 4, "nodes_per_leaf": 1, "spines": 2}


def describe_machine(topology: dict[str, Any]) -> Cluster:
    """Describe a machine with a topology."""
    return Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": topology})


def build(topology: dict[str, Any], *, merge: bool = True) -> ClusterGraph:
    """Build a machine with a topology."""
    return build_cluster(describe_machine(topology), merge=merge)


def graph_of(topology: dict[str, Any]) -> nx.Graph[str]:
    """Draw a machine's graph without indexing it, as a copy that can be edited."""
    return draw_topology(describe_machine(topology).topology).copy()


def route(cluster: ClusterGraph, src: int, dst: int) -> dict[str, float]:
    """Find one route as link name -> share."""
    found = cluster.routes(np.array([src]), np.array([dst]))
    return {cluster.link_name(int(i)): float(share) for i, share in zip(found.link, found.share, strict=True)}


def counts(topology: dict[str, Any]) -> tuple[int, int, int]:
    """Count leaf, spine and core switches on the graph."""
    kinds = Counter(node["kind"] for _, node in graph_of(topology).nodes(data=True))
    return kinds["leaf"], kinds["spine"], kinds["core"]


# --- worked examples -------------------------------------------------------------------------------------------------


def test_route_inside_a_node_crosses_the_nvlink_switch() -> None:
    """Two GPUs of a node meet in its NVSwitch, at 300 GB/s * 0.8."""
    cluster = build(RAILS)
    assert route(cluster, 2, 3) == {"gpu2 -> node1.nvswitch": 1.0, "node1.nvswitch -> gpu3": 1.0}
    link = cluster.link_between("gpu2", "node1.nvswitch")
    assert cluster.capacity[link] == pytest.approx(240e9)
    assert cluster.routes(np.array([2]), np.array([3])).latency[0] == pytest.approx(NVLINK)


def test_route_under_one_leaf_stays_there() -> None:
    """GPU 0 and GPU 2 are local GPU 0 of nodes 0 and 1: NIC 0, leaf 0.0, NIC 0, at 25 GB/s * 0.96."""
    cluster = build(RAILS)
    assert route(cluster, 0, 2) == {
        "gpu0 -> node0.nic0": 1.0,
        "node0.nic0 -> leaf0.0": 1.0,
        "leaf0.0 -> node1.nic0": 1.0,
        "node1.nic0 -> gpu2": 1.0,
    }
    assert cluster.capacity[cluster.link_between("node0.nic0", "leaf0.0")] == pytest.approx(24e9)
    assert cluster.routes(np.array([0]), np.array([2])).latency[0] == pytest.approx(NIC + SWITCH)


def test_ideal_spraying_splits_equally_over_the_spines() -> None:
    """Leaf 0.0 to leaf 1.0 has a path over each of two spines: half of the traffic on each, three switches in all."""
    cluster = build(RAILS, merge=False)
    shares = route(cluster, 0, 4)
    assert {link: share for link, share in shares.items() if "spine" in link} == {
        "leaf0.0 -> spine0": 0.5,
        "leaf0.0 -> spine1": 0.5,
        "spine0 -> leaf1.0": 0.5,
        "spine1 -> leaf1.0": 0.5,
    }
    assert sum(shares.values()) == 6  # hops
    assert cluster.routes(np.array([0]), np.array([4])).latency[0] == pytest.approx(NIC + 3 * SWITCH)


def test_equal_spines_are_one_trunk_with_their_bandwidth_added_up() -> None:
    """A leaf with two NICs of 24 GB/s below has 2 * 24 GB/s above, over two spines."""
    cluster = build(RAILS)
    shares = route(cluster, 0, 4)
    assert shares["leaf0.0 -> spine0..spine1"] == shares["spine0..spine1 -> leaf1.0"] == 1.0
    trunk = cluster.link_between("leaf0.0", "spine0")
    assert trunk == cluster.link_between("leaf0.0", "spine1")
    assert cluster.capacity[trunk] == pytest.approx(48e9)
    assert cluster.graph.edges["leaf0.0", "spine0"]["capacity"] == pytest.approx(24e9)


def test_pxn_changes_rail_over_nvlink() -> None:
    """GPU 0 reaches rail 1 of another node through GPU 1 beside it; without PXN the spines change the rail."""
    assert set(route(build(RAILS), 0, 3)) == {
        "gpu0 -> node0.nvswitch",
        "node0.nvswitch -> gpu1",
        "gpu1 -> node0.nic1",
        "node0.nic1 -> leaf0.1",
        "leaf0.1 -> node1.nic1",
        "node1.nic1 -> gpu3",
    }
    without = route(build(RAILS | {"pxn": False}), 0, 3)
    assert "leaf0.0 -> spine0..spine1" in without
    assert "spine0..spine1 -> leaf0.1" in without


def test_rails_with_their_own_spines_meet_only_over_nvlink_or_cores() -> None:
    """Spines per rail join no two rails: PXN does, or a core tier."""
    planes = RAILS | {"spine_groups": "per_rail"}
    assert counts(planes) == (4, 4, 0)
    assert "node0.nvswitch -> gpu1" in route(build(planes), 0, 5)
    with pytest.raises(TopologyError, match=r"gpu0 \(node 0\) to gpu5 \(node 2\)"):
        route(build(planes | {"pxn": False}), 0, 5)
    joined = build(planes | {"pxn": False, "tiers": 3, "cores": 2})
    assert any("core" in link for link in route(joined, 0, 5))


def test_routes_between_pods_climb_to_the_cores() -> None:
    """Five switches: leaf, spine, core, spine, leaf."""
    cluster = build(PODS)
    shares = route(cluster, 0, 8)
    assert {link for link in shares if "core" in link} == {
        "spine0..spine1 -> core0..core3",
        "core0..core3 -> spine2..spine3",
    }
    assert sum(shares.values()) == 8
    assert cluster.routes(np.array([0]), np.array([8])).latency[0] == pytest.approx(NIC + 5 * SWITCH)


def test_gpus_share_a_nic_where_there_are_fewer() -> None:
    """With 2 NICs for 4 GPUs, GPUs 0 and 1 use NIC 0, GPUs 2 and 3 NIC 1; sharing a rail needs no PXN."""
    cluster = build(RAILS | {"gpus_per_node": 4, "nic": CARD | {"per_node": 2}})
    assert cluster.rail.tolist() == [0, 0, 1, 1] * 4
    assert "node0.nic0 -> leaf0.0" in route(cluster, 0, 5)
    assert "node0.nic0 -> leaf0.0" in route(cluster, 1, 4)
    assert "gpu2 -> node0.nic1" in route(cluster, 0, 6)


def test_oversubscription_cuts_the_bandwidth_above() -> None:
    """Under 7 : 1 a leaf with 2 * 24 GB/s below has 48 / 7 above, over two spines; the spine above as told."""
    tree = graph_of(TREE | {"oversubscription": [7]})
    assert tree.edges["leaf0", "spine1"]["capacity"] == pytest.approx(48e9 / 7 / 2)
    # A pod of 2 leaf groups x 2 rails gives each of 2 spines 4 * 24 GB/s from below; 1 : 4 of that goes up to 2 cores.
    pods = graph_of(PODS | {"oversubscription": [1, 4]})
    assert pods.degree["spine0"] == 4 + 2
    assert pods.edges["spine0", "core2"]["capacity"] == pytest.approx(4 * 24e9 / 4 / 2)


def test_a_poorly_balanced_fabric_keeps_less_of_its_links() -> None:
    """`fabric_efficiency` acts between switches and spares the NICs."""
    tree = graph_of(TREE | {"fabric_efficiency": 0.5})
    assert tree.edges["leaf0", "spine0"]["capacity"] == pytest.approx(24e9 * 0.5)
    assert tree.edges["node0.nic0", "leaf0"]["capacity"] == pytest.approx(24e9)


def test_a_fat_tree_serves_all_nics_of_a_node_from_one_leaf() -> None:
    """There are no rails to keep to: other local numbers meet in the same leaves."""
    assert set(route(build(TREE), 0, 3)) == {
        "gpu0 -> node0.nic0",
        "node0.nic0 -> leaf0",
        "leaf0 -> spine0..spine1",
        "spine0..spine1 -> leaf1",
        "leaf1 -> node1.nic1",
        "node1.nic1 -> gpu3",
    }


def test_a_rack_is_one_scale_up_domain() -> None:
    """NVL72: all trays of a rack over NVLink, rails of 4 NICs a tray between racks."""
    racks = BASE | {"kind": "nvl72", "racks": 2, "gpus_per_node": 4, "switch_ports": 64}
    cluster = build(racks)
    assert cluster.domain.tolist() == [0] * 72 + [1] * 72
    assert cluster.node_of[[0, 4, 143]].tolist() == [0, 1, 35]
    assert route(cluster, 0, 71) == {"gpu0 -> rack0.nvswitch": 1.0, "rack0.nvswitch -> gpu71": 1.0}
    assert "gpu1 -> node0.nic1" in route(cluster, 0, 73)  # PXN stays in the tray
    with pytest.raises(TopologyError, match="no route"):
        route(build(racks | {"nic": None}), 0, 73)


def test_boxes_are_not_connected() -> None:
    """Two NVSwitch boxes without a fabric: routes inside, none between."""
    boxes = build({"kind": "nvlink_box", "nodes": 2, "gpus_per_node": 16, "scale_up": SCALE_UP})
    assert len(route(boxes, 0, 15)) == 2
    with pytest.raises(TopologyError, match=r"no route from gpu0 \(node 0\) to gpu16 \(node 1\)"):
        route(boxes, 0, 16)
    with pytest.raises(TopologyError, match="gpu0"):
        require_connected(boxes)
    require_connected(build(RAILS))


def test_numbering_of_gpus_nodes_domains_and_leaves() -> None:
    """GPU g is local GPU g % 2 of node g // 2; leaves are numbered group by group, rail by rail."""
    cluster = build(RAILS)
    assert cluster.gpu_count == 8
    assert cluster.node_of.tolist() == cluster.domain.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cluster.rail.tolist() == [0, 1] * 4
    assert cluster.leaf.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert (cluster.in_network_reduction, cluster.pxn) == (False, True)


SUPERPOD = BASE | {"kind": "rail_clos", "gpus_per_node": 8, "switch_ports": 64, "nodes_per_leaf": 32}


@pytest.mark.parametrize(
    ("units", "expected"),
    [(1, (8, 4, 0)), (2, (16, 8, 0)), (3, (24, 16, 0)), (4, (32, 16, 0)), (8, (64, 32, 0))],
)
def test_switch_counts_of_two_tier_superpods(units: int, expected: tuple[int, int, int]) -> None:
    """NVIDIA DGX H100 (1 to 4 units) and B200 (8) SuperPOD reference architectures, compute fabric component counts."""
    assert counts(SUPERPOD | {"nodes": 32 * units}) == expected


@pytest.mark.parametrize(("units", "expected"), [(16, (128, 128, 64)), (32, (256, 256, 128)), (64, (512, 512, 256))])
def test_switch_counts_of_three_tier_superpods(units: int, expected: tuple[int, int, int]) -> None:
    """NVIDIA DGX B200 SuperPOD reference architecture, larger component counts."""
    topology = SUPERPOD | {"nodes": 32 * units, "tiers": 3, "nodes_per_pod": 128}
    assert counts(topology) == expected


def test_ports_of_a_three_tier_superpod_add_up() -> None:
    """16 units: 4,096 cables in each tier, so every spine and core has 64 ports' worth of bandwidth."""
    graph = graph_of(SUPERPOD | {"nodes": 512, "tiers": 3, "nodes_per_pod": 128})
    port = 24e9
    total = {name: sum(edge["capacity"] for *_, edge in graph.edges(name, data=True)) for name in graph}
    for kind, ports in (("leaf", 64), ("spine", 64), ("core", 64)):
        switches = [name for name, node in graph.nodes(data=True) if node["kind"] == kind]
        assert [total[name] / port for name in switches] == pytest.approx([ports] * len(switches))


def test_describe_counts_on_the_graph() -> None:
    """The summary of a small machine, line by line."""
    assert describe(build(PODS | {"oversubscription": [1, 4]})) == [
        ("GPUs", "16"),
        ("nodes", "8 of 2 GPUs"),
        ("scale-up domains", "8 of 2 GPUs"),
        ("scale-up bandwidth", "240 GB/s per GPU and direction"),
        ("NICs", "16, 24 GB/s each per direction"),
        ("leaf switches", "8"),
        ("spine switches", "4"),
        ("core switches", "4"),
        ("leaf oversubscription", "1 : 1"),
        ("spine oversubscription", "4 : 1"),
        ("links", "72"),  # 16 NVLink + 16 PCIe + 16 NIC + 8 leaves x 2 spines + 4 spines x 2 cores
    ]


# --- explicit graphs -------------------------------------------------------------------------------------------------


def wires(*links: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """Write out a graph whose links carry 1 GB/s."""
    written = [{"between": link, "bandwidth": "1 GB/s", "latency": "1 us"} for link in links]
    return {"kind": "explicit", "gpus": 2, "gpus_per_node": 1, "links": written} | fields


def test_an_explicit_graph_takes_shortest_paths_in_equal_parts() -> None:
    """A diamond with two short arms and a detour: half over each arm, nothing over the detour."""
    diamond = wires(
        ("gpu0", "a"), ("gpu0", "b"), ("a", "gpu1"), ("b", "gpu1"), ("a", "c"), ("c", "gpu1"),
        switches=["a", "b", "c"],
    )  # fmt: skip
    found = build(diamond)
    assert route(found, 0, 1) == {"gpu0 -> a": 0.5, "gpu0 -> b": 0.5, "a -> gpu1": 0.5, "b -> gpu1": 0.5}
    assert found.routes(np.array([0]), np.array([1])).latency[0] == pytest.approx(2e-6)


def test_gpus_of_an_explicit_graph_forward() -> None:
    """A ring of four GPUs, as a torus has: opposite corners split over both ways round; nvlink makes domains."""
    ring = wires(("gpu0", "gpu1"), ("gpu1", "gpu2"), ("gpu2", "gpu3"), ("gpu3", "gpu0"), gpus=4)
    shares = route(build(ring), 0, 2)
    assert shares == dict.fromkeys(("gpu0 -> gpu1", "gpu1 -> gpu2", "gpu0 -> gpu3", "gpu3 -> gpu2"), 0.5)
    ring["links"][2]["kind"] = "nvlink"
    assert build(ring).domain.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (wires(("gpu0", "gpu2")), r"'gpu2' is neither a switch nor one of gpu0 to gpu1"),
        (wires(("gpu0", "a"), ("a", "gpu0"), switches=["a"]), r"a - gpu0 is there twice"),
        (wires(("gpu0", "gpu0")), r"gpu0 - gpu0 is a loop"),
        (wires(switches=["a", "a"]), "'a' is there twice"),
        (wires(switches=["gpu1"]), "'gpu1' is there twice, or is a GPU"),
    ],
)
def test_faults_of_an_explicit_graph_name_the_element(topology: dict[str, Any], words: str) -> None:
    """Unknown vertices, doubles and loops are refused by name."""
    with pytest.raises(ValidationError, match=words):
        build(topology)


def test_a_disconnected_explicit_graph_names_both_gpus() -> None:
    """Islands may be built; asking for a route between them fails."""
    islands = build(wires(("gpu0", "a"), ("gpu1", "b"), switches=["a", "b"]))
    with pytest.raises(TopologyError, match=r"from gpu0 \(node 0\) to gpu1 \(node 1\)"):
        route(islands, 0, 1)


# --- edited graphs ---------------------------------------------------------------------------------------------------


def test_a_lost_cable_leaves_the_other_spine() -> None:
    """Without leaf0.0 - spine0 the pair goes over spine 1, in both directions; other pairs still use both."""
    graph = graph_of(RAILS)
    graph.remove_edge("leaf0.0", "spine0")
    cluster = index_graph(graph)
    assert route(cluster, 0, 4)["leaf0.0 -> spine1"] == 1.0
    assert route(cluster, 4, 0)["leaf1.0 -> spine1"] == 1.0
    assert route(cluster, 1, 5)["leaf0.1 -> spine0"] == 0.5


def test_a_slow_cable_keeps_its_share() -> None:
    """Ideal spraying does not look at bandwidth: the slow spine still gets half, and has its own link."""
    graph = graph_of(RAILS)
    graph.edges["leaf0.0", "spine0"]["capacity"] /= 4
    cluster = index_graph(graph)
    assert route(cluster, 0, 4)["leaf0.0 -> spine0"] == 0.5
    assert cluster.capacity[cluster.link_between("spine0", "leaf0.0")] == pytest.approx(6e9)
    assert cluster.capacity[cluster.link_between("spine1", "leaf0.0")] == pytest.approx(24e9)


def test_paths_have_no_valleys() -> None:
    """Leaf 0.0 up only to spine 1 and leaf 1.0 only to spine 0: a third leaf could forward, but switches do not."""
    graph = graph_of(RAILS)
    graph.remove_edges_from([("leaf0.0", "spine0"), ("leaf1.0", "spine1")])
    cluster = index_graph(graph)
    assert nx.has_path(graph, "leaf0.0", "leaf1.0")
    with pytest.raises(TopologyError, match="from gpu0"):
        route(cluster, 0, 4)


def test_unequal_cables_between_equal_switches_stay_apart() -> None:
    """Two spines and two cores alike but for slow diagonals: four cables, two trunks, each of one speed."""
    graph = graph_of(PODS | {"cores": 2})
    graph.add_edges_from(
        [(f"spine{s}", f"core{c}") for s in range(4) for c in range(2)], kind="spine-core", latency=SWITCH
    )
    for spine in range(4):
        graph.edges[f"spine{spine}", f"core{spine % 2}"]["capacity"] = 1e9
        graph.edges[f"spine{spine}", f"core{1 - spine % 2}"]["capacity"] = 3e9
    cluster = index_graph(graph)
    slow, fast = cluster.link_between("spine0", "core0"), cluster.link_between("spine0", "core1")
    assert (cluster.capacity[slow], cluster.capacity[fast]) == (2e9, 6e9)
    found = cluster.routes(np.array([0]), np.array([8]))
    assert found.share[found.link == slow].tolist() == found.share[found.link == fast].tolist() == [0.5]


@pytest.mark.parametrize("lost", [("gpu1", "node0.nic1"), ("gpu1", "node0.nvswitch"), ("gpu0", "node0.nvswitch")])
def test_pxn_needs_a_whole_neighbour(lost: tuple[str, str]) -> None:
    """Where the neighbour on the other rail cannot forward, the spines change the rail."""
    graph = graph_of(RAILS)
    graph.remove_edge(*lost)
    shares = route(index_graph(graph), 0, 3)
    assert "gpu0 -> node0.nic0" in shares
    assert "leaf0.0 -> spine0..spine1" in shares


def test_a_cut_off_gpu_has_no_route() -> None:
    """A GPU without its NIC reaches its node and nothing else."""
    graph = graph_of(RAILS)
    graph.remove_edge("gpu0", "node0.nic0")
    cluster = index_graph(graph)
    assert cluster.leaf.tolist()[:2] == [-1, 1]
    assert len(route(cluster, 0, 1)) == 2
    with pytest.raises(TopologyError, match="from gpu4"):
        route(cluster, 4, 0)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda graph: graph.edges["leaf0.0", "spine0"].update(capacity=0.0), "leaf0.0 - spine0 has capacity 0.0"),
        (lambda graph: graph.remove_node("gpu3"), "gpu3 is missing"),
        (lambda graph: graph.add_edge("gpu0", "node1.nic0", capacity=1.0, latency=0.0), "gpu0 hangs on both"),
        (lambda graph: graph.add_edge("gpu0", "leaf0.0", capacity=1.0, latency=0.0), "knows no link like gpu0 - leaf"),
    ],
)
def test_faults_of_an_edited_graph_name_the_element(edit: Any, words: str) -> None:
    """Indexing refuses dead links and wiring that up-down routing cannot follow."""
    graph = graph_of(RAILS)
    edit(graph)
    with pytest.raises(TopologyError, match=words):
        index_graph(graph)


@pytest.mark.parametrize(
    ("src", "dst", "words"),
    [([1], [1], "GPU 1 sends to itself"), ([0], [8], "GPU 8 is not one of 0 to 7"), ([-1], [0], "GPU -1"),
     ([0, 1], [2], "equally long")],
)  # fmt: skip
def test_wrong_pairs_are_refused(src: list[int], dst: list[int], words: str) -> None:
    """Only pairs of two different GPUs have routes."""
    with pytest.raises(ValueError, match=words):
        build(RAILS).routes(np.array(src), np.array(dst))


def test_links_are_found_by_their_ends_and_named() -> None:
    """Both directions of every edge are different links; a stranger is refused."""
    cluster = build(RAILS)
    there, back = cluster.link_between("gpu0", "node0.nic0"), cluster.link_between("node0.nic0", "gpu0")
    assert (there ^ 1, cluster.link_name(back)) == (back, "node0.nic0 -> gpu0")
    with pytest.raises(TopologyError, match=r"no link between 'gpu0' and 'leaf0\.0'"):
        cluster.link_between("gpu0", "leaf0.0")


def test_no_pairs_need_no_links() -> None:
    """An empty question has an empty answer."""
    nothing = np.empty(0, dtype=np.int64)
    assert [len(part) for part in build(RAILS).routes(nothing, nothing)] == [0, 0, 0, 0]


# --- laws and oracles on random small machines -----------------------------------------------------------------------


@st.composite
def machines(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a small switched machine whose GPUs all reach each other."""
    kind = draw(st.sampled_from(["rail_clos", "fat_tree", "nvl72"]))
    gpus_per_node = draw(st.integers(1, 4))
    tiers = draw(st.sampled_from([2, 3]))
    nodes_per_leaf = draw(st.integers(1, 3))
    topology = BASE | {"kind": kind, "gpus_per_node": gpus_per_node, "nodes_per_leaf": nodes_per_leaf, "tiers": tiers}
    topology["nic"] = CARD | {"per_node": draw(st.integers(1, gpus_per_node))}
    topology["spines"] = draw(st.integers(1, 4))
    if kind == "nvl72":
        topology |= {"racks": draw(st.integers(2, 4)), "gpus_per_rack": 2 * gpus_per_node}
    else:
        topology["nodes"] = draw(st.integers(max(2, nodes_per_leaf), 8))
    if tiers == 3:
        topology |= {"cores": draw(st.integers(1, 6)), "nodes_per_pod": nodes_per_leaf * draw(st.integers(1, 3))}
        topology["oversubscription"] = [draw(st.sampled_from([1, 2.5])), draw(st.sampled_from([1, 7]))]
    if kind != "fat_tree":
        topology["spine_groups"] = draw(st.sampled_from(["shared", "per_rail"]) if tiers == 3 else st.just("shared"))
        topology["pxn"] = draw(st.booleans())
    return topology


@st.composite
def damaged(draw: st.DrawFn) -> nx.Graph[str]:
    """Draw a machine's graph with up to three links between switches slowed or cut."""
    graph = graph_of(draw(machines()))
    fabric = [(a, b) for a, b, edge in graph.edges(data=True) if edge["kind"] in {"leaf-spine", "spine-core"}]
    for a, b in draw(st.lists(st.sampled_from(fabric), max_size=3, unique=True)):
        if draw(st.booleans()):
            graph.edges[a, b]["capacity"] *= 0.25
        else:
            graph.remove_edge(a, b)
    return graph


def some_pairs(cluster: ClusterGraph, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Choose up to 24 ordered pairs of GPUs that have a route; cut links may leave some without."""
    src, dst = np.nonzero(~np.eye(cluster.gpu_count, dtype=bool))
    chosen = np.random.default_rng(seed).permutation(len(src))[:24]
    reached = chosen[[_has_route(cluster, int(src[i]), int(dst[i])) for i in chosen]]
    return src[reached], dst[reached]


def _has_route(cluster: ClusterGraph, src: int, dst: int) -> bool:
    try:
        cluster.routes(np.array([src]), np.array([dst]))
    except TopologyError:
        return False
    return True


@given(machines())
@settings(max_examples=30, deadline=None)
def test_what_enters_a_vertex_leaves_it(topology: dict[str, Any]) -> None:
    """Flow is conserved: one unit leaves the sender, one reaches the receiver, nothing stays between."""
    cluster = build(topology)
    src, dst = np.nonzero(~np.eye(cluster.gpu_count, dtype=bool))
    found = cluster.routes(src, dst)
    balance: dict[tuple[int, str], float] = defaultdict(float)
    for pair, link, share in zip(found.pair.tolist(), found.link.tolist(), found.share.tolist(), strict=True):
        tail, head = cluster.link_name(link).split(" -> ")
        balance[pair, tail] -= share
        balance[pair, head] += share
    left = {place: rest for place, rest in balance.items() if abs(rest) > 1e-9}
    assert left == pytest.approx(
        {(i, f"gpu{a}"): -1.0 for i, a in enumerate(src)} | {(i, f"gpu{b}"): 1.0 for i, b in enumerate(dst)}
    )


@given(machines())
@settings(max_examples=40, deadline=None)
def test_latency_adds_up_and_is_the_same_both_ways(topology: dict[str, Any]) -> None:
    """A route's latency is the sum over its links, and A to B is as far as B to A."""
    cluster = build(topology)
    src, dst = np.nonzero(~np.eye(cluster.gpu_count, dtype=bool))
    there, back = cluster.routes(src, dst), cluster.routes(dst, src)
    summed = np.bincount(there.pair, weights=there.share * cluster.latency[there.link], minlength=len(src))
    np.testing.assert_allclose(there.latency, summed, rtol=1e-12)
    np.testing.assert_allclose(there.latency, back.latency, rtol=1e-12)


@given(damaged(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_trunks_carry_what_their_links_carry(graph: nx.Graph[str], seed: int) -> None:
    """Merging is exact: a trunk's links are alike and share equally, and its share and capacity are their sums."""
    whole, apart = index_graph(graph.copy()), index_graph(graph.copy(), merge=False)
    src, dst = some_pairs(apart, seed)
    assert _table(whole, src, dst, whole) == pytest.approx(_table(apart, src, dst, whole))
    links = defaultdict(list)
    for a, b, edge in graph.edges(data=True):
        for tail, head in ((a, b), (b, a)):
            links[whole.link_between(tail, head)].append((edge["capacity"], edge["latency"]))
    for trunk, alike in links.items():
        assert set(alike) == {(alike[0][0], whole.latency[trunk])}
        assert whole.capacity[trunk] == pytest.approx(len(alike) * alike[0][0])
    assert sorted(links) == list(range(len(whole.capacity)))
    found = apart.routes(src, dst)
    members = defaultdict(set)
    trunk_of = _trunks(apart, whole)
    for pair, link, share in zip(found.pair.tolist(), found.link.tolist(), found.share.tolist(), strict=True):
        members[pair, trunk_of[link]].add(round(share, 9))
    assert {len(shares) for shares in members.values()} <= {1}


def _trunks(apart: ClusterGraph, whole: ClusterGraph) -> dict[int, int]:
    """Map directed links of the unmerged index to the trunks of the merged one."""
    ways = [way for a, b in apart.graph.edges for way in ((a, b), (b, a))]
    return {apart.link_between(a, b): whole.link_between(a, b) for a, b in ways}


def _table(
    cluster: ClusterGraph, src: np.ndarray[Any, Any], dst: np.ndarray[Any, Any], whole: ClusterGraph
) -> dict[tuple[int, int], float]:
    """Add up shares by pair and trunk of `whole`."""
    trunk = _trunks(cluster, whole) if cluster is not whole else {}
    table: dict[tuple[int, int], float] = defaultdict(float)
    found = cluster.routes(src, dst)
    for pair, link, share in zip(found.pair.tolist(), found.link.tolist(), found.share.tolist(), strict=True):
        table[pair, trunk.get(link, link)] += share
    return dict(table)


@given(damaged(), st.data())
@settings(max_examples=60, deadline=None)
def test_shares_agree_with_networkx_counting_paths(graph: nx.Graph[str], data: st.DataObject) -> None:
    """Oracle: list every shortest path between the two leaves with networkx; a link's share is its part of the list."""
    cluster = index_graph(graph, merge=False)
    switches = {name: graph.nodes[name]["kind"] for name in graph if graph.nodes[name]["kind"] in {"spine", "core"}}
    leaves = [name for name in graph if graph.nodes[name]["kind"] == "leaf"]
    src = data.draw(st.integers(0, cluster.gpu_count - 1))
    dst = data.draw(st.integers(0, cluster.gpu_count - 1).filter(lambda gpu: gpu != src))
    if not _has_route(cluster, src, dst):
        return
    shares = {
        link: share for link, share in route(cluster, src, dst).items() if "nic" not in link and "gpu" not in link
    }
    if not shares:
        return
    (start,) = {link.split(" -> ")[0] for link in shares} & set(leaves)
    (end,) = {link.split(" -> ")[1] for link in shares} & set(leaves)
    paths = list(nx.all_shortest_paths(graph.subgraph([*switches, start, end]), start, end))
    expected = Counter(f"{a} -> {b}" for path in paths for a, b in pairwise(path))
    assert shares == pytest.approx({link: count / len(paths) for link, count in expected.items()})


@given(machines().filter(lambda topology: topology["kind"] == "fat_tree"), st.data())
@settings(max_examples=30, deadline=None)
def test_hops_agree_with_networkx(topology: dict[str, Any], data: st.DataObject) -> None:
    """Oracle: in a fat tree, where nothing forwards, the hops of a route are networkx's shortest distance."""
    cluster = build(topology)
    src = data.draw(st.integers(0, cluster.gpu_count - 1))
    dst = data.draw(st.integers(0, cluster.gpu_count - 1).filter(lambda gpu: gpu != src))
    hops = cluster.routes(np.array([src]), np.array([dst])).share.sum()
    assert hops == pytest.approx(nx.shortest_path_length(cluster.graph, f"gpu{src}", f"gpu{dst}"))


@given(st.integers(3, 7), st.data())
@settings(max_examples=30, deadline=None)
def test_explicit_graphs_agree_with_networkx(gpus: int, data: st.DataObject) -> None:
    """Oracle: on any connected graph of GPUs a link's share is its part of networkx's list of shortest paths."""
    chain = [(f"gpu{i}", f"gpu{i + 1}") for i in range(gpus - 1)]
    chords = [(f"gpu{a}", f"gpu{b}") for a in range(gpus) for b in range(a + 2, gpus)]
    cluster = build(wires(*chain, *data.draw(st.lists(st.sampled_from(chords), unique=True)), gpus=gpus))
    paths = list(nx.all_shortest_paths(cluster.graph, "gpu0", f"gpu{gpus - 1}"))
    expected = Counter(f"{a} -> {b}" for path in paths for a, b in pairwise(path))
    assert route(cluster, 0, gpus - 1) == pytest.approx({link: n / len(paths) for link, n in expected.items()})


@pytest.mark.parametrize("ratio", [1, 2, 7])
def test_a_full_permutation_loads_the_uplinks_by_the_oversubscription(ratio: float) -> None:
    """Every GPU sends one NIC's rate to its twin half the machine away: uplinks carry `ratio` times what they can."""
    cluster = build(RAILS | {"nodes": 8, "oversubscription": [ratio]})
    src = np.arange(cluster.gpu_count)
    found = cluster.routes(src, (src + cluster.gpu_count // 2) % cluster.gpu_count)
    load = np.bincount(found.link, weights=24e9 * found.share, minlength=len(cluster.capacity)) / cluster.capacity
    uplink = cluster.link_between("leaf0.0", "spine0")
    assert load.max() == pytest.approx(ratio)
    assert load[[uplink, uplink ^ 1]] == pytest.approx([ratio, ratio])
