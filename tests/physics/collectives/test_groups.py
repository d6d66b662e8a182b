"""Rings and trees on the links: what each link carries, against closed forms."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.collectives import laying
from simulator.physics.collectives.groups import Groups, Pattern, _double_tree, _ring_edges, _tree_parents, by_shape
from simulator.scenario.topology import Cluster
from tests.physics.shapes import cluster

FOUR_NODES = build_cluster(cluster(nodes=4))


def usage(machine: ClusterGraph, pattern: Pattern) -> dict[str, float]:
    """Name the links of a pattern, all groups added up."""
    found: dict[str, float] = defaultdict(float)
    for link, use in zip(pattern.links.tolist(), pattern.usage.tolist(), strict=True):
        found[machine.link_name(link)] += use
    return dict(found)


def groups(members: Any, machine: ClusterGraph = FOUR_NODES) -> Groups:
    """Build groups from lists of GPUs."""
    return Groups(machine, np.array(members))


def of_kind(found: dict[str, float], tail: str, head: str) -> list[float]:
    """Return the usage of all links from one kind of device to another."""
    return [use for name, use in found.items() if tail in name.split(" -> ")[0] and head in name.split(" -> ")[1]]


# --- where groups lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "shape", "regular"),
    [
        ([[0, 1, 2, 3]], (4, 1, 4), True),
        ([[0, 1, 8, 9]], (4, 2, 2), True),
        ([[9, 0, 8, 1]], (4, 2, 2), True),
        ([[0, 8, 16, 24], [1, 9, 17, 25]], (4, 4, 1), True),
        ([[0, 1, 2, 8]], (4, 2, 1), False),
    ],
)
def test_shape(members: list[list[int]], shape: tuple[int, int, int], regular: bool) -> None:
    """Members, scale-up domains, and the least number of members in a domain."""
    found = groups(members)
    assert tuple(found.shape) == shape
    assert found.shape.regular is regular


# --- rings -----------------------------------------------------------------------------------------------------------


def test_ring_in_a_node_uses_every_port_once() -> None:
    """Eight GPUs: each sends to the next over its own port and the switch; no NIC is touched."""
    found = usage(FOUR_NODES, groups([range(8)]).ring_edges)
    ports = {f"gpu{g} -> node0.nvswitch" for g in range(8)} | {f"node0.nvswitch -> gpu{g}" for g in range(8)}
    assert found == dict.fromkeys(ports, 1.0)


def test_tensor_parallelism_over_two_nodes_uses_all_sixteen_nics() -> None:
    """Eight channels: each NIC carries an eighth of the rate out and in; NVLink ports 7/8."""
    found = usage(FOUR_NODES, groups([range(16)]).ring_edges)
    nics = {f"node{n}.nic{i} -> leaf0.{i}" for n in range(2) for i in range(8)}
    assert {name: found[name] for name in nics} == dict.fromkeys(nics, 1 / 8)
    assert of_kind(found, "leaf", "nic") == [1 / 8] * 16
    assert of_kind(found, "gpu", "nvswitch") == of_kind(found, "nvswitch", "gpu") == [7 / 8] * 16


def test_data_parallel_ring_sends_all_through_one_nic() -> None:
    """One member a node: each NIC carries the whole rate, NVLink nothing."""
    found = usage(FOUR_NODES, groups([[3, 11, 19, 27]]).ring_edges)
    assert of_kind(found, "nic", "leaf") == of_kind(found, "leaf", "nic") == [1.0] * 4
    assert of_kind(found, "gpu", "nvswitch") == []


def test_groups_of_a_class_add_up() -> None:
    """Two groups that both cross from node 0 to node 1 and back over the same leaves' trunks and their own NICs."""
    machine = build_cluster(cluster(nodes=4, kind="fat_tree", nodes_per_leaf=2))
    one = usage(machine, groups([[0, 16]], machine).ring_edges)
    two = usage(machine, groups([[0, 16], [1, 17]], machine).ring_edges)
    trunks = [name for name in two if "spine" in name]
    assert trunks
    assert [two[name] for name in trunks] == [2 * one[name] for name in trunks]
    assert two["node0.nic0 -> leaf0"] == one["node0.nic0 -> leaf0"] == 1.0


def test_group_within_a_node_beside_one_that_leaves_it() -> None:
    """GPUs 0 to 3 keep a closed ring of the full rate; 4, 5, 12 and 13 have two channels of half of it on each NIC."""
    batches = by_shape(FOUR_NODES, np.array([[0, 1, 2, 3], [4, 5, 12, 13]]))
    assert [members.tolist() for members, _ in batches] == [[0], [1]]
    found = {name: use for _, batch in batches for name, use in usage(FOUR_NODES, batch.ring_edges).items()}
    assert [found[f"gpu{g} -> node0.nvswitch"] for g in range(6)] == [1.0] * 4 + [0.5] * 2
    assert sorted(of_kind(found, "nic", "leaf")) == [0.5] * 4


def test_ragged_group_runs_as_many_channels_as_its_smallest_domain() -> None:
    """Three members on node 0, one on node 1: one channel, so one NIC of each carries all of it."""
    found = usage(FOUR_NODES, groups([[0, 1, 2, 8]]).ring_edges)
    assert of_kind(found, "nic", "leaf") == of_kind(found, "leaf", "nic") == [1.0, 1.0]
    assert of_kind(found, "gpu", "nvswitch") == pytest.approx([2 / 3] * 3)


@st.composite
def memberships(draw: st.DrawFn) -> Any:
    """Draw groups of equal size, each an arbitrary set of 32 GPUs in arbitrary order."""
    size = draw(st.integers(2, 12))
    one = st.lists(st.integers(0, 31), min_size=size, max_size=size, unique=True)
    return draw(st.lists(one, min_size=1, max_size=4))


@given(memberships())
def test_ring_visits_every_member_once(members: list[list[int]]) -> None:
    """Edges join members of one group, and its shares add up to its size: a ring of n edges, cut into channels.

    All crossings of a domain's border carry the whole rate together.
    """
    found = groups(members)
    ordered, domains = found.ordered
    _, src, dst, share = _ring_edges(ordered, domains, found.shape.local)
    for group in members:
        own = np.isin(src, group) & np.isin(dst, group)
        if len(members) == 1:
            assert own.all()
            assert share.sum() == pytest.approx(len(group))
            leaving: dict[int, float] = defaultdict(float)
            for a, b, part in zip(src.tolist(), dst.tolist(), share.tolist(), strict=True):
                if a // 8 != b // 8:
                    leaving[a // 8] += part
            nodes = {gpu // 8 for gpu in group}
            assert leaving == (pytest.approx(dict.fromkeys(nodes, 1.0)) if len(nodes) > 1 else {})
    assert share.sum() == pytest.approx(sum(map(len, members)))


@given(nodes=st.integers(1, 4), local=st.sampled_from([1, 2, 4, 8]))
def test_members_of_a_regular_ring_send_and_receive_equally(nodes: int, local: int) -> None:
    """Each member sends the whole rate and receives it, summed over channels."""
    if nodes * local == 1:
        return
    found = groups([[8 * node + i for node in range(nodes) for i in range(local)]])
    _, src, dst, share = _ring_edges(*found.ordered, local)
    for end in (src, dst):
        assert np.bincount(end, weights=share)[found.gpus[0]] == pytest.approx(1.0)


def test_connections_of_a_ring() -> None:
    """As many as a domain has members: with weight 8 each of eight channels gets as much as a plain transfer."""
    assert groups([range(16)]).ring_edges.weight == 8
    assert groups([[0, 8, 16, 24]]).ring_edges.weight == 1
    assert groups([[0, 1, 8, 9]]).tree_edges.weight == 4  # two trees


# --- trees -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(2, 40))
def test_double_binary_tree(count: int) -> None:
    """Sanders, Speck and Träff 2009: two spanning trees, and no domain but the root has children in both."""
    edges = _double_tree(count)
    assert len(edges) == 2 * (count - 1)
    first, second = edges[: count - 1], edges[count - 1 :]
    for tree in (first, second):
        assert nx.is_tree(nx.Graph(tree))
        assert len(nx.Graph(tree)) == count
    inner = [{parent for _, parent in tree} for tree in (first, second)]
    roots = {0} | ({count - 1} if count % 2 == 0 else {1})
    assert inner[0] & inner[1] <= roots


@pytest.mark.parametrize("count", [2, 3, 5, 8, 16, 33, 1000])
def test_trees_are_binary_and_shallow(count: int) -> None:
    """At most two children, and no deeper than ceil(log2 n) steps."""
    parents = _tree_parents(count)
    assert max(parents.count(node) for node in range(count)) <= 2
    for start in range(count):
        node, depth = start, 0
        while parents[node] >= 0:
            node, depth = parents[node], depth + 1
        assert node == 0
        assert depth <= int(np.ceil(np.log2(count)))


def test_nccl_tree_of_eight() -> None:
    """NVIDIA/nccl, src/graph/trees.cc, drawn there for 14: 8 is the root's child, 4 and 12 are its; here 8 ranks."""
    assert _tree_parents(8) == [-1, 2, 4, 2, 0, 6, 4, 6]


@pytest.mark.parametrize(("nodes", "local"), [(2, 1), (2, 8), (4, 1), (4, 2), (3, 4)])
def test_trees_carry_every_byte_up_and_down_once(nodes: int, local: int) -> None:
    """Over NICs 2 (N - 1) times the data in all: two trees, half of it up and down each; inside, chains of p - 1."""
    found = usage(FOUR_NODES, groups([[8 * node + i for node in range(nodes) for i in range(local)]]).tree_edges)
    assert sum(of_kind(found, "nic", "leaf")) == pytest.approx(2 * (nodes - 1))
    assert sum(of_kind(found, "leaf", "nic")) == pytest.approx(2 * (nodes - 1))
    assert sum(of_kind(found, "gpu", "nvswitch")) == pytest.approx(2 * nodes * (local - 1))
    assert len(of_kind(found, "nic", "leaf")) == nodes * local


@pytest.mark.parametrize("nodes", [4, 8, 32])
def test_busiest_nic_of_a_tree_sends_the_data_twice(nodes: int) -> None:
    """Inner in one tree (three edges) and a leaf in the other: 3/2 + 1/2; a ring's NICs send 2 (n - 1) / n."""
    machine = build_cluster(cluster(nodes=nodes, gpus_per_node=1))
    found = usage(machine, groups([range(nodes)], machine).tree_edges)
    assert max(of_kind(found, "nic", "leaf")) == pytest.approx(2.0)


def test_a_group_cut_into_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three edges a block: every link still carries what it carries in one."""
    whole = groups([range(16), range(16, 32)])
    expected = whole.ring_edges
    monkeypatch.setattr(laying, "_LARGEST", 3)
    cut = groups([range(16), range(16, 32)]).ring_edges
    assert cut.links.tolist() == expected.links.tolist()
    assert cut.indptr.tolist() == expected.indptr.tolist()
    assert cut.usage == pytest.approx(expected.usage)


# --- rails -----------------------------------------------------------------------------------------------------------


def test_inner_and_outer_groups() -> None:
    """Two nodes of three members: the nodes, and the rails across."""
    found = groups([[0, 1, 2, 8, 9, 10]])
    assert found.inner.gpus.tolist() == [[0, 1, 2], [8, 9, 10]]
    assert found.outer.gpus.tolist() == [[0, 8], [1, 9], [2, 10]]


@pytest.mark.parametrize("fabric", ["cube_mesh", "full_mesh"])
def test_a_box_without_a_switch_carries_a_ring(fabric: str) -> None:
    """Every edge of the ring lies on cables between GPUs, all of them inside the domain."""
    size = 8 if fabric == "cube_mesh" else 4
    topology = {"kind": "nvlink_box", "gpus_per_node": size, "fabric": fabric, "scale_up": {"bandwidth": "150 GB/s"}}
    box = build_cluster(Cluster.model_validate({"name": "box", "accelerator": "v100-32gb", "topology": topology}))
    pattern = Groups(box, np.arange(size)[None]).ring_edges
    assert box.scale_up_links[pattern.links].all()
    assert np.isfinite(pattern.solo_inside).all()
    assert np.isinf(pattern.solo_across).all()
