"""Which GPU each rank runs on.

Pinned by tests/physics/program/test_placement.py.
"""

from __future__ import annotations

import numpy as np

from simulator.errors import LayoutError
from simulator.physics.cluster import ClusterGraph
from simulator.physics.collectives.groups import IntArray
from simulator.scenario.parallelism import Parallelism
from simulator.scenario.scenario import Scenario


def place(scenario: Scenario, cluster: ClusterGraph) -> IntArray:
    """GPU of every rank [ranks]: nodes are filled one after another, in the order that `placement` gives.

    Raises
    ------
    LayoutError
        Nodes that are not there, or too few of them.
    """
    split, per_node = scenario.parallelism, cluster.gpus_per_node
    ranks = np.arange(split.world_size)
    if split.placement == "contiguous":
        return ranks
    aware = split.placement == "leaf_aware"
    nodes = leaf_aware_nodes(split, cluster) if aware else np.asarray(split.placement)
    if nodes.max(initial=-1) * per_node >= cluster.gpu_count:
        raise LayoutError(f"placement names node {nodes.max()}; the cluster has {cluster.gpu_count // per_node} nodes")
    if len(nodes) * per_node < len(ranks):
        raise LayoutError(f"placement lists {len(nodes)} nodes of {per_node} GPUs; the job has {len(ranks)} ranks")
    return nodes[ranks // per_node] * per_node + ranks % per_node


def leaf_aware_nodes(split: Parallelism, cluster: ClusterGraph) -> IntArray:
    """Nodes in the order in which ranks fill them: a pipeline stage under as few leaves as there is room for.

    Whole leaves go to the stages first; what is left of each stage goes, largest first, under the leaf with the least
    room that takes it all, or is spread over the emptiest.
    """
    per_node, pp = cluster.gpus_per_node, split.pp or 1
    stage_nodes, rest = divmod(split.world_size // pp, per_node)
    order = np.arange(-(-split.world_size // per_node))
    if rest or split.order.split("-")[-1] != "pp":
        return order  # stages share nodes: there is nothing to keep together
    leaf = cluster.leaf[np.arange(0, cluster.gpu_count, per_node)]
    free = [np.flatnonzero(leaf == each).tolist() for each in np.unique(leaf).tolist()]
    stages: list[list[int]] = [[] for _ in range(pp)]
    for stage in stages:
        while whole := _largest_within(free, stage_nodes - len(stage)):
            stage += whole
            free.remove(whole)
    for stage in sorted(stages, key=len):
        while (wanted := stage_nodes - len(stage)) > 0:
            room = min((nodes for nodes in free if len(nodes) >= wanted), key=len, default=max(free, key=len))
            stage += room[:wanted]
            del room[:wanted]
            free = [nodes for nodes in free if nodes]
    return np.array([node for stage in stages for node in stage])


def _largest_within(free: list[list[int]], wanted: int) -> list[int] | None:
    """The largest set of free nodes below one leaf that a stage takes whole; the first of equals."""
    return max((nodes for nodes in free if len(nodes) <= wanted), key=len, default=None)
