"""Which GPU each rank runs on: in order, as listed, or so that stages stay together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import LayoutError
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.program.placement import leaf_aware_nodes, place
from simulator.scenario.parallelism import Parallelism
from tests.physics.shapes import cluster, gpt, make_scenario

MACHINE = cluster(nodes=4)
GRAPH = build_cluster(MACHINE)


def placed(**fields: Any) -> list[int]:
    """Place a job on four nodes, two below each leaf."""
    gpus: list[int] = place(make_scenario(gpt(), MACHINE, **fields), GRAPH).tolist()
    return gpus


def test_ranks_fill_nodes_in_order() -> None:
    """Contiguous: rank r on GPU r. Node numbers: nodes 2 and 0 of eight GPUs each."""
    assert placed(dp=16) == list(range(16))
    assert placed(dp=16, placement=(2, 0)) == [*range(16, 24), *range(8)]
    assert placed(dp=12, placement=(2, 0)) == [*range(16, 24), *range(4)]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [((0, 4), r"names node 4; the cluster has 4 nodes"), ((1,), r"lists 1 nodes of 8 GPUs; the job has 16 ranks")],
)
def test_impossible_placements(nodes: tuple[int, ...], message: str) -> None:
    """Nodes that are not there, and too few."""
    with pytest.raises(LayoutError, match=message):
        placed(dp=16, placement=nodes)


# --- stages and leaves -----------------------------------------------------------------------------------------------


def leaves_of_stages(nodes: Any, split: Parallelism, per_node: int, per_leaf: int) -> list[int]:
    """Number of leaves that each stage is below."""
    of_stage = np.asarray(nodes).reshape(split.pp, -1)
    assert of_stage.size * per_node == split.world_size
    return [len(np.unique(stage // per_leaf)) for stage in of_stage]


def test_stages_stay_below_one_leaf() -> None:
    """Stages of 2 nodes, leaves of 3: in order they are 01, 23 and 45, of which 23 is below both.

    Leaf-aware: 01 and 34, and what is left of either leaf: 2 and 5.
    """
    machine = build_cluster(cluster(nodes=6, nodes_per_leaf=3))
    split = Parallelism(tp=8, pp=3, dp=2)
    assert leaf_aware_nodes(split, machine).tolist() == [0, 1, 3, 4, 2, 5]


def test_whole_leaves_go_first() -> None:
    """Leaves of 2 nodes, stages of 3: one leaf each, and half of the next; the fourth leaf is not needed."""
    machine = build_cluster(cluster(nodes=8, nodes_per_leaf=2))
    split = Parallelism(tp=8, pp=2, dp=3)
    nodes = leaf_aware_nodes(split, machine)
    assert leaves_of_stages(nodes, split, 8, 2) == [2, 2]
    assert leaves_of_stages(range(6), split, 8, 2) == [2, 2]
    assert sorted(nodes.tolist())[:2] == [0, 1]


@pytest.mark.parametrize(
    ("per_leaf", "leaves", "aware", "order"), [(32, 98, 7, 7), (20, 160, 11, 12), (20, 156, 12, 12)]
)
def test_stages_of_208_nodes(per_leaf: int, leaves: int, aware: int, order: int) -> None:
    """15 stages of 208 nodes: 6.5 leaves of 32 nodes, so 7 however they lie; 10.4 leaves of 20, so 11 at least.

    In order, stage s begins on node 8 s of 20 of a leaf: one that begins on the 16th, with 4 left, needs 12. With 150
    leaves taken whole, 8 nodes of each stage are left, two times 8 to a leaf: 8 leaves more. Of 156 leaves just 6 are
    left: 12 stages fit, and three are spread over the rest.
    """
    machine = build_cluster(cluster(nodes=leaves * per_leaf, gpus_per_node=1, nodes_per_leaf=per_leaf, kind="fat_tree"))
    split = Parallelism(tp=1, pp=15, dp=208)
    nodes = leaf_aware_nodes(split, machine)
    assert len(np.unique(nodes)) == 15 * 208
    assert max(leaves_of_stages(nodes, split, 1, per_leaf)) == aware
    assert max(leaves_of_stages(range(15 * 208), split, 1, per_leaf)) == order


def test_stages_that_share_nodes_are_left_in_order() -> None:
    """Half a node each, or stages that are not the slowest axis: nothing to keep together."""
    assert leaf_aware_nodes(Parallelism(tp=4, pp=4, dp=1), GRAPH).tolist() == [0, 1]
    mixed = Parallelism(tp=8, pp=2, dp=2, order="tp-cp-ep-pp-dp")
    assert leaf_aware_nodes(mixed, GRAPH).tolist() == [0, 1, 2, 3]
    assert placed(tp=4, pp=4, dp=1, placement="leaf_aware") == list(range(16))


MACHINES: dict[int, ClusterGraph] = {
    per_leaf: build_cluster(cluster(nodes=24, gpus_per_node=2, nodes_per_leaf=per_leaf))
    for per_leaf in (1, 2, 3, 5, 8, 24)
}


@given(st.sampled_from(sorted(MACHINES)), st.integers(1, 8), st.integers(1, 8))
def test_every_rank_has_a_gpu_of_its_own(per_leaf: int, pp: int, nodes: int) -> None:
    """Whatever the sizes: nobody shares, ranks of a node stay together, and stages are below no more leaves in all."""
    if pp * nodes > 24:
        nodes = 24 // pp
    split = Parallelism(tp=2, pp=pp, dp=nodes, placement="leaf_aware")
    found = leaf_aware_nodes(split, MACHINES[per_leaf])
    assert len(set(found.tolist())) == len(found) == pp * nodes
    assert found.max() < 24
    aware, order = (leaves_of_stages(each, split, 2, per_leaf) for each in (found, range(pp * nodes)))
    assert sum(aware) <= sum(order)
