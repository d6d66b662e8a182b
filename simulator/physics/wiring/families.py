"""`FAMILIES`: kind of topology -> function from its description to its blueprint; `graph_of` draws any of them.

Pinned by tests/physics/test_cluster.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import networkx as nx

from simulator.physics.wiring.blueprint import Blueprint, draw
from simulator.physics.wiring.direct import dragonfly, explicit, nvlink_box, torus
from simulator.physics.wiring.switched import dual_plane, fat_tree, nvl72, rail_clos
from simulator.scenario.topology import Topology

if TYPE_CHECKING:
    Graph = nx.Graph[str]

FAMILIES: dict[str, Callable[[Any], Blueprint]] = {
    "nvlink_box": nvlink_box,
    "nvl72": nvl72,
    "rail_clos": rail_clos,
    "fat_tree": fat_tree,
    "dual_plane": dual_plane,
    "torus": torus,
    "dragonfly": dragonfly,
    "explicit": explicit,
}
"""Topology families: `kind` -> function from its description to its blueprint."""


def graph_of(topology: Topology) -> Graph:
    """Draw the networkx graph of a topology."""
    return draw(FAMILIES[topology.kind](topology))
