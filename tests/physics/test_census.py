"""What stands in a cluster: bisection against networkx's maximum flow on the whole graph and published figures."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.physics.census import bisection, oversubscription, tiers
from simulator.physics.cluster import ClusterGraph, build_cluster, index_graph
from simulator.physics.wiring.families import graph_of
from simulator.scenario.scenario import load_cluster
from simulator.scenario.topology import Cluster
from tests.physics.test_routes import MACHINES

TORUS = {"kind": "torus", "dims": [4, 3, 2], "gpus_per_node": 1, "link": {"bandwidth": "50 GB/s"}}


def whole_flow(cluster: ClusterGraph) -> float:
    """Maximum flow from the first half of the GPUs to the second, on every link of the graph."""
    graph: nx.DiGraph[Any] = nx.DiGraph()
    for a, b, edge in cluster.graph.edges(data=True):
        graph.add_edge(a, b, capacity=edge["capacity"])
        graph.add_edge(b, a, capacity=edge["capacity"])
    half = cluster.gpu_count // 2
    graph.add_edges_from(("from", f"gpu{g}") for g in range(half))
    graph.add_edges_from((f"gpu{g}", "to") for g in range(half, cluster.gpu_count))
    return float(nx.maximum_flow_value(graph, "from", "to"))


@pytest.mark.parametrize("topology", [*MACHINES.values(), TORUS], ids=[*MACHINES, "torus"])
def test_bisection_is_the_maximum_flow_of_the_whole_graph(topology: dict[str, Any]) -> None:
    """Oracle: networkx on every vertex and link; the cut's links add up to the flow."""
    cluster = build_cluster(Cluster.model_validate({"name": "t", "accelerator": "a100-80gb", "topology": topology}))
    found = bisection(cluster)
    assert found is not None
    assert found.bandwidth == pytest.approx(whole_flow(cluster))
    capacity = {tier.kind: tier.most for tier in tiers(cluster.blueprint)}
    assert sum(links * capacity[kind] for kind, links in found.cut.items()) == pytest.approx(found.bandwidth)


@given(st.data())
@settings(max_examples=25)
def test_bisection_of_damaged_machines(data: st.DataObject) -> None:
    """Oracle: the same with cables slowed and cut at random."""
    topology = Cluster.model_validate({"name": "t", "accelerator": "a100-80gb", "topology": MACHINES["rails"]}).topology
    graph = graph_of(topology).copy()
    for a, b in data.draw(st.lists(st.sampled_from(list(graph.edges)), max_size=5, unique=True)):
        if data.draw(st.booleans()) or "gpu" in a:
            graph.edges[a, b]["capacity"] *= 0.25
        else:
            graph.remove_edge(a, b)
    cluster = index_graph(graph)
    found = bisection(cluster)
    assert found is not None
    assert found.bandwidth == pytest.approx(whole_flow(cluster))


@pytest.mark.parametrize(
    ("name", "terabytes", "efficiency"),
    [
        ("tpu-v4-pod", 24.0, 1.0),  # Google Cloud: 24 TB/s a pod
        ("dgx-h100-superpod", 512 * 50e-3, 0.95),  # full bisection: half of 1,024 GPUs at 400 Gb/s each
        ("a100-25k", 12_800 * 25e-3, 0.96),
    ],
)
def test_published_bisection(name: str, terabytes: float, efficiency: float) -> None:
    """Full-bisection fabrics carry half of the NICs at once; the torus's was fitted to the figure."""
    found = bisection(build_cluster(load_cluster(name)))
    assert found is not None
    assert found.bandwidth == pytest.approx(terabytes * 1e12 * efficiency)


@pytest.mark.parametrize(
    ("gpus", "bandwidth", "both_ways"), [(16, "150 GB/s", 2.4e12), (8, "450 GB/s", 3.6e12)], ids=["DGX-2", "HGX H100"]
)
def test_published_bisection_of_boxes(gpus: int, bandwidth: str, both_ways: float) -> None:
    """NVIDIA counts both directions: DGX-2 2.4 TB/s, HGX H100 3.6 TB/s."""
    topology = {"kind": "nvlink_box", "gpus_per_node": gpus, "scale_up": {"bandwidth": bandwidth}}
    found = bisection(build_cluster(Cluster.model_validate({"name": "t", "accelerator": "h100", "topology": topology})))
    assert found is not None
    assert 2 * found.bandwidth == pytest.approx(both_ways)
    assert found.cut == {"nvlink": gpus // 2}


def test_boxes_that_are_apart_have_no_bisection_bandwidth() -> None:
    """Two boxes: nothing crosses; one GPU alone has no halves."""
    box = {"kind": "nvlink_box", "nodes": 2, "scale_up": {"bandwidth": "1 GB/s"}}
    found = bisection(build_cluster(Cluster.model_validate({"name": "t", "accelerator": "h100", "topology": box})))
    assert found is not None
    assert (found.bandwidth, found.cut) == (0.0, {})
    one = box | {"nodes": 1, "gpus_per_node": 1}
    cluster = build_cluster(Cluster.model_validate({"name": "t", "accelerator": "h100", "topology": one}))
    assert bisection(cluster) is None


def test_oversubscription_of_meta() -> None:
    """Llama 3, section 3.3.1: 1 : 7 between pods; 16 cables down and 18 up of a leaf, at 88 % of their rate."""
    found = oversubscription(build_cluster(load_cluster("meta-24k-roce")).blueprint)
    assert found == pytest.approx({"leaf": 16 / 18 / 0.88, "spine": 7.0})
