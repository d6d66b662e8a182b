"""Classes of components: counted by hand, and their members stand for all of them in a simulated step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from simulator.engine.iteration import simulate_step
from simulator.errors import ScenarioError
from simulator.physics.campaign.classes import KINDS, Orbits, orbits, rank_classes
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.program.build import build_program
from simulator.physics.program.placement import place
from simulator.scenario.conditions import Condition, DegradedLink, SlowGpu, SlowNic, SlowNode
from simulator.scenario.scenario import Scenario
from simulator.scenario.topology import Cluster
from tests.physics.shapes import cluster, gpt, make_scenario


def _job(machine: Cluster, **split: int) -> tuple[Scenario, ClusterGraph]:
    model = gpt(num_layers=8, tied_embeddings=False)
    return make_scenario(model, machine, global_batch_size=16, **split), build_cluster(machine)


def _classes(scenario: Scenario, graph: ClusterGraph) -> np.ndarray:  # type: ignore[type-arg]
    return rank_classes(graph, [(place(scenario, graph), build_program(scenario, graph).class_of_rank)])


def _found(kind: str, machine: Cluster, **split: int) -> Orbits:
    scenario, graph = _job(machine, **split)
    return orbits(graph, _classes(scenario, graph), kind)


def test_stages_are_classes() -> None:
    """tp 8, pp 2, dp 2 on 4 nodes: 16 GPUs, 2 nodes and 16 NICs of either stage; members are the first two of each."""
    machine = cluster(nodes=5)
    assert _found("slow_gpu", machine, tp=8, pp=2, dp=2) == Orbits("slow_gpu", (16, 16), (((0,), (1,)), ((16,), (17,))))
    assert _found("slow_node", machine, tp=8, pp=2, dp=2) == Orbits("slow_node", (2, 2), (((0,), (1,)), ((2,), (3,))))
    nics = _found("slow_nic", machine, tp=8, pp=2, dp=2)
    assert (nics.counts, nics.members[1]) == ((16, 16), ((2, 0), (2, 1)))


def test_a_node_of_two_stages_is_a_class_of_its_own() -> None:
    """tp 4, pp 2, dp 1 on one node: GPUs of two classes, but one class of nodes; their NICs differ by their GPUs."""
    machine = cluster(nodes=2)
    assert _found("slow_gpu", machine, tp=4, pp=2, dp=1).counts == (4, 4)
    assert _found("slow_node", machine, tp=4, pp=2, dp=1).counts == (1,)
    assert _found("slow_nic", machine, tp=4, pp=2, dp=1).counts == (4, 4)


def test_links_are_told_apart_by_what_hangs_below() -> None:
    """A fat tree of leaves for two nodes: stage 0 below leaf 0, stage 1 below leaf 1, nobody below leaf 2."""
    machine = cluster(nodes=6, kind="fat_tree", spines=2, switch_ports=None)
    found = _found("degraded_link", machine, tp=8, pp=2, dp=2)
    assert (found.counts, found.members[0]) == ((2, 2), (("leaf0", "spine0"), ("leaf0", "spine1")))


def test_a_phase_with_another_split_splits_classes() -> None:
    """Stages in the first phase, all alike in the second: two classes. Unused GPUs have none."""
    machine = cluster(nodes=5)
    first, graph = _job(machine, tp=8, pp=2, dp=2)
    second, _ = _job(machine, tp=8, pp=1, dp=4)
    placed = [(place(own, graph), build_program(own, graph).class_of_rank) for own in (second, first)]
    classes = rank_classes(graph, placed)
    assert classes.tolist() == [0] * 16 + [1] * 16 + [-1] * 8
    assert rank_classes(graph, placed[:1]).tolist() == [0] * 32 + [-1] * 8


def test_conditions_are_those_of_a_scenario() -> None:
    """Ten per cent lost are 0.9 of the speed or capacity; a class with one member has no second."""
    machine = cluster(nodes=2)
    for kind, condition in (
        ("slow_gpu", SlowGpu(kind="slow_gpu", gpu=1, speed=0.9)),
        ("slow_node", SlowNode(kind="slow_node", node=1, speed=0.9)),
        ("slow_nic", SlowNic(kind="slow_nic", node=0, nic=1, capacity=0.9)),
    ):
        own = _found(kind, machine, tp=8, dp=2)
        assert own.condition(own.member(0, 1), 10) == condition
    wired = cluster(nodes=4, kind="fat_tree", spines=2, switch_ports=None)
    links = _found("degraded_link", wired, tp=8, dp=4)
    link = DegradedLink(kind="degraded_link", between=("leaf0", "spine0"), capacity=0.9)
    assert links.condition(links.member(0), 10) == link
    assert Orbits("slow_node", (1,), (((5,),),)).member(0, 1) == (5,)


def test_what_is_not_there_cannot_be_slow() -> None:
    """A box has no NICs and no links between switches."""
    topology = {"kind": "nvlink_box", "gpus_per_node": 8, "scale_up": {"bandwidth": "100 GB/s"}}
    machine = Cluster.model_validate({"name": "box", "accelerator": "h100", "topology": topology})
    for kind in ("slow_nic", "degraded_link"):
        with pytest.raises(ScenarioError, match=f"kind {kind}: the job uses no such component"):
            _found(kind, machine, tp=8, dp=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "split", [{"tp": 8, "pp": 2, "dp": 2}, {"tp": 4, "pp": 2, "dp": 4}, {"tp": 2, "pp": 1, "dp": 16}]
)
def test_any_member_makes_the_step_as_slow(kind: str, split: dict[str, int]) -> None:
    """Oracle: the unfolded step with one member of a class slow takes as long as with another one."""
    machine = cluster(nodes=4, kind="fat_tree", spines=2, switch_ports=None)
    model = gpt(num_layers=2, tied_embeddings=False)
    scenario, graph = make_scenario(model, machine, global_batch_size=32, **split), build_cluster(machine)
    found = orbits(graph, _classes(scenario, graph), kind)
    for members in found.members:
        times = [_step(scenario, found.condition(one, 40)) for one in members]
        assert all(a == pytest.approx(b, rel=1e-9) for a, b in pairwise(times))


def _step(scenario: Scenario, condition: Condition) -> float:
    graph = build_cluster(scenario.cluster, (condition,))
    return simulate_step(build_program(scenario, graph, folded=False)).step_time
