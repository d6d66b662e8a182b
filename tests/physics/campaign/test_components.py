"""What a job is made of and what goes down together: counted by hand, and against the networkx graph."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScenarioError
from simulator.physics.campaign.components import ONE, Components, count_components, odds, replica_units
from simulator.physics.cluster import build_cluster
from simulator.scenario.reliability.section import Reliability
from simulator.scenario.scenario import Scenario
from simulator.scenario.topology import Cluster
from tests.physics.shapes import cluster, gpt, make_scenario

EXPERTS = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 512}


def _count(machine: Cluster, **fields: Any) -> Components:
    scenario = make_scenario(gpt(num_layers=8), machine, **fields)
    return count_components(scenario, build_cluster(machine))


def test_rails_have_a_leaf_each() -> None:
    """16 GPUs on 2 of 4 nodes: 16 NICs, 8 rails with a leaf for two nodes each, both lost with it."""
    found = _count(cluster(nodes=4), tp=8, dp=2)
    assert (found.gpus, found.nodes, found.nics) == (16, 2, 16)
    assert found.leaves.tolist() == found.lost_with_leaf.tolist() == [2] * 8
    assert not len(found.racks)


def test_a_fat_tree_leaf_takes_its_nodes() -> None:
    """5 nodes below leaves of 2: two leaves lose two nodes, the third one. Twelve GPUs fill a node and a half."""
    found = _count(cluster(nodes=6, kind="fat_tree"), tp=8, dp=5)
    assert found.lost_with_leaf.tolist() == [2, 2, 1]
    assert odds(found.lost_with_leaf) == (1.0, ((1, pytest.approx(1 / 3)), (2, pytest.approx(2 / 3))))
    part = _count(cluster(nodes=6, kind="fat_tree"), tp=4, dp=3)
    assert (part.gpus, part.nodes, part.nics, part.leaves.tolist()) == (12, 2, 12, [2])


def test_nobody_is_lost_below_two_leaves() -> None:
    """Every NIC of a dual plane has another leaf: 16 leaves for two nodes with 8 NICs, none takes a node."""
    found = _count(cluster(nodes=2, kind="dual_plane"), tp=8, dp=2)
    assert found.leaves.tolist() == [2] * 16
    assert found.lost_with_leaf.tolist() == [0] * 16
    assert odds(found.lost_with_leaf) == (0.0, ONE)


def test_shared_nics_count_once() -> None:
    """Four NICs serve eight GPUs: 8 NICs on two nodes; a job of four GPUs uses two."""
    machine = cluster(nodes=2, nic={"bandwidth": "10 GB/s", "per_node": 4})
    assert _count(machine, tp=8, dp=2).nics == 8
    assert _count(machine, tp=4, dp=1).nics == 2


def test_a_rack_is_a_scale_up_domain_of_nodes() -> None:
    """36 GPUs on trays of 4, 5 trays a domain: 5 + 4 trays. Single nodes are no racks."""
    topology = {
        "kind": "nvl72", "racks": 2, "gpus_per_rack": 20, "gpus_per_node": 4, "nodes_per_leaf": 5, "switch_ports": 64,
        "scale_up": {"bandwidth": "100 GB/s"}, "nic": {"bandwidth": "10 GB/s"},
    }  # fmt: skip
    machine = Cluster.model_validate({"name": "racks", "accelerator": "gb200", "topology": topology})
    found = _count(machine, tp=4, dp=9)
    assert found.known_racks().tolist() == [5, 4]
    plain = _count(cluster(nodes=5), tp=8, dp=5)
    with pytest.raises(ScenarioError, match="a rack is a scale-up domain of several nodes"):
        plain.known_racks()


@given(
    st.sampled_from(["rail_clos", "fat_tree", "dual_plane"]),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([None, 4]),
)
def test_leaves_are_those_of_the_graph(kind: str, job: int, more: int, per_leaf: int, nics: int | None) -> None:
    """Oracle: walk the networkx graph from every job node's NICs; those with no other switch are lost with a leaf."""
    nic = {"bandwidth": "10 GB/s"} | ({} if nics is None else {"per_node": nics})
    nodes = max(job + more, per_leaf)
    machine = cluster(nodes=nodes, kind=kind, nodes_per_leaf=per_leaf, nic=nic)
    found = _count(machine, tp=8, dp=job)
    graph: nx.Graph[str] = build_cluster(machine).graph
    below: dict[str, set[int]] = {}
    alone: dict[str, set[int]] = {}
    for name, vertex in graph.nodes(data=True):
        if vertex["kind"] == "nic" and vertex["node"] < job:
            switches = [other for other in graph[name] if graph.nodes[other]["kind"] == "leaf"]
            for switch in switches:
                below.setdefault(switch, set()).add(vertex["node"])
                alone.setdefault(switch, set()).update({vertex["node"]} if len(switches) == 1 else set())
    assert sorted(found.leaves.tolist()) == sorted(len(nodes) for nodes in below.values())
    assert sorted(found.lost_with_leaf.tolist()) == sorted(len(nodes) for nodes in alone.values())


def test_odds_weigh_by_how_often_parts_fail() -> None:
    """Parts of 0, 1, 1 and 4 nodes: equally often, 3/4 take any, one in 2/3; by size the node is one of 6."""
    lost = np.array([0, 1, 1, 4])
    assert odds(lost) == (0.75, ((1, pytest.approx(2 / 3)), (4, pytest.approx(1 / 3))))
    assert odds(lost, lost) == (1.0, ((1, pytest.approx(1 / 3)), (4, pytest.approx(2 / 3))))


# --- replicas ---------------------------------------------------------------------------------------------------------


def _scenario(
    nodes: int, zero: int = 0, shard_group: int | None = None, experts: bool = False, **split: Any
) -> Scenario:
    model = gpt(num_layers=8, **({"moe": EXPERTS} if experts else {}))
    return make_scenario(
        model, cluster(nodes=nodes), optimizer={"zero_stage": zero, "shard_group": shard_group}, **split
    )


def _units(scenario: Scenario) -> tuple[int, int, int, bool]:
    found = replica_units(scenario, build_cluster(scenario.cluster))
    return found.units, found.replicas, found.nodes, found.keeps_state


def test_replicas_that_share_a_node_go_together() -> None:
    """tp 8: one node a stage. tp 4: two replicas meet on every node. Both stages are lost: two nodes a unit."""
    assert _units(_scenario(8, tp=8, pp=2, dp=4)) == (4, 1, 2, True)
    assert _units(_scenario(8, tp=4, pp=2, dp=8)) == (4, 2, 2, True)


def test_replicas_that_share_experts_go_together() -> None:
    """4 experts over tp 8 x dp 4 with etp 8, ep 2: pairs of replicas hold the experts together."""
    assert _units(_scenario(4, experts=True, tp=8, dp=4, ep=2)) == (2, 2, 2, True)


def test_what_is_sharded_over_all_replicas_is_lost_with_one() -> None:
    """ZeRO-1 over dp 4 keeps no second copy; in shard groups of 2 the other group has one."""
    assert _units(_scenario(4, zero=1, tp=8, dp=4))[3] is False
    assert _units(_scenario(4, zero=1, shard_group=2, tp=8, dp=4))[3] is True


def test_a_rack_may_be_so_many_nodes() -> None:
    """Five nodes of the job, racks of two: 2 + 2 + 1, on a cluster of single nodes."""
    machine = cluster(nodes=6)
    scenario = make_scenario(gpt(num_layers=8), machine, tp=8, dp=5)
    scenario = scenario.model_copy(update={"reliability": Reliability(nodes_per_rack=2)})
    assert count_components(scenario, build_cluster(machine)).known_racks().tolist() == [2, 2, 1]


def test_links_are_those_between_nics_and_switches() -> None:
    """Two nodes of 8 NICs: 16 links, of which each NIC has one; in a dual plane 32, and none that is the only one."""
    single, dual = (_count(cluster(nodes=2, kind=kind), tp=8, dp=2) for kind in ("rail_clos", "dual_plane"))
    assert (single.links, single.only_links) == (16, 16)
    assert (dual.links, dual.only_links) == (32, 0)
