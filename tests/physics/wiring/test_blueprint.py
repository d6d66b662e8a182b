"""Blueprints: drawn as networkx would build them, read back, and safe against edits that would hit thousands."""

from __future__ import annotations

import pickle
from typing import Any

import networkx as nx
import numpy as np
import pytest

from simulator.physics.wiring.blueprint import Blueprint, Sort, draw, survey
from simulator.physics.wiring.families import FAMILIES, graph_of
from simulator.scenario.topology import Cluster

SCALE_UP = {"bandwidth": "300 GB/s", "latency": "0.6 us"}
NIC = {"bandwidth": "200 Gbps", "latency": "1 us"}
CLOS = {"nodes": 4, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 2, "scale_up": SCALE_UP, "nic": NIC}
MACHINES: list[dict[str, Any]] = [
    {"kind": "nvlink_box", "nodes": 2, "scale_up": SCALE_UP},
    {"kind": "nvlink_box", "fabric": "cube_mesh", "scale_up": SCALE_UP},
    {"kind": "rail_clos"} | CLOS,
    {"kind": "rail_clos", "tiers": 3, "cores": 2, "nodes_per_pod": 2} | CLOS,
    {"kind": "fat_tree"} | CLOS,
    {"kind": "dual_plane"} | CLOS,
    {"kind": "nvl72", "racks": 2, "nic": NIC, "switch_ports": 64, "scale_up": SCALE_UP},
    {"kind": "torus", "dims": [3, 4, 2], "gpus_per_node": 2, "link": SCALE_UP},
    {
        "kind": "dragonfly", "groups": 3, "routers_per_group": 2, "nodes_per_router": 1, "global_links": 1,
        "gpus_per_node": 2, "scale_up": SCALE_UP, "nic": NIC,
    },
    {"kind": "explicit", "gpus": 2, "links": [{"between": ["gpu0", "gpu1"], "bandwidth": "1 GB/s"}]},
]  # fmt: skip


def plan(topology: dict[str, Any]) -> Blueprint:
    """Plan a machine."""
    cluster = Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": topology})
    return FAMILIES[topology["kind"]](cluster.topology)


@pytest.mark.parametrize("topology", MACHINES, ids=lambda topology: topology["kind"])
def test_drawing_gives_what_networkx_builds(topology: dict[str, Any]) -> None:
    """Oracle: the same vertices and edges added one by one through networkx's own methods."""
    blueprint = plan(topology)
    expected: nx.Graph[str] = nx.Graph(**blueprint.facts)
    for v, name in enumerate(blueprint.names):
        numbers = {key: int(column[v]) for key, column in blueprint.columns.items() if column[v] >= 0}
        expected.add_node(name, kind=blueprint.kinds[v], **numbers)
    for (a, b), sort in zip(blueprint.ends.tolist(), blueprint.sort.tolist(), strict=True):
        expected.add_edge(blueprint.names[a], blueprint.names[b], **blueprint.sorts[sort]._asdict())
    drawn = draw(blueprint)
    assert nx.utils.graphs_equal(drawn, expected)
    assert drawn.number_of_edges() == expected.number_of_edges() == len(blueprint.ends)
    assert list(nx.bfs_edges(drawn, "gpu0"))  # networkx's algorithms run on it


@pytest.mark.parametrize("topology", MACHINES, ids=lambda topology: topology["kind"])
def test_surveying_a_drawing_gives_the_blueprint_back(topology: dict[str, Any]) -> None:
    """Reading a drawn graph and drawing it again gives the same graph, and the same again after a pickle."""
    graph = draw(plan(topology))
    again = survey(graph)
    assert nx.utils.graphs_equal(draw(again), graph)
    assert nx.utils.graphs_equal(pickle.loads(pickle.dumps(graph)), graph)
    assert again.facts == graph.graph


def test_shared_attributes_cannot_be_changed_but_those_of_a_copy_can() -> None:
    """A change of one edge would be one of all its kind; in a copy it is its own."""
    graph = graph_of(Cluster.model_validate(
        {"name": "test", "accelerator": "a100-80gb", "topology": MACHINES[2]}
    ).topology)  # fmt: skip
    edge = graph.edges["leaf0.0", "spine0"]
    for change in (lambda: edge.update(capacity=1.0), lambda: edge.__setitem__("capacity", 1.0), edge.clear):
        with pytest.raises(TypeError, match=r"edit a graph\.copy"):
            change()
    with pytest.raises(TypeError, match="share their attributes"):
        graph.add_edge("leaf0.0", "spine0", capacity=1.0)
    copy = graph.copy()
    copy.edges["leaf0.0", "spine0"]["capacity"] = 1.0
    assert copy.edges["leaf0.0", "spine1"]["capacity"] == graph.edges["leaf0.0", "spine0"]["capacity"] > 1.0


def test_links_are_resorted_and_removed_by_number() -> None:
    """Half the capacity makes a new sort of link; a removed one is gone from both arrays."""
    blueprint = Blueprint({})
    vertices = blueprint.add_vertices("switch", ["a", "b", "c"])
    blueprint.add_links(Sort("link", 8.0, 0.0), vertices[:2], vertices[1:])
    blueprint.resort(np.array([1]), 0.5)
    assert blueprint.capacity().tolist() == [8.0, 4.0]
    blueprint.remove_links(np.array([0]))
    assert (blueprint.ends.tolist(), blueprint.capacity().tolist()) == ([[1, 2]], [4.0])
    assert (blueprint.number("c"), blueprint.number("d")) == (2, None)
