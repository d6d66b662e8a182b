"""Folded = unfolded on every span: one simulated rank of each class does what every rank of the class would do.

Each case is a small job under some condition, simulated twice: folded, and with every rank and every group for itself.
Rank r of the second run must do what class `class_of_rank[r]` does in the first, to 1e-9 of the step. A chain of the
folded run may be several spans of the unfolded one, because a collective inside a class is a meeting of ranks there.

The numbers of classes are worked out in the comments. A stage is a grid (tp index, dp index): one odd rank leaves four
kinds of ranks in its stage, itself, those beside it in its tp group, those in its dp group, and the rest; and each of
them has its own kind of partner in the other stages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from simulator.engine.iteration import simulate_step
from simulator.physics.cluster import build_cluster
from simulator.physics.program.build import build_program
from simulator.physics.program.steps import StepProgram
from simulator.records import Span, StepResult
from simulator.scenario.conditions import Background, Condition, DegradedLink, RemovedLink, SlowGpu, SlowNic, SlowNode
from simulator.scenario.topology import Cluster
from simulator.scenario.transformer import Transformer
from tests.physics.shapes import cluster, gpt, make_scenario

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """A job, what is wrong with its cluster, and the number of classes of its ranks."""

    machine: Cluster
    fields: dict[str, Any]
    classes: int | None
    conditions: tuple[Condition, ...] = ()
    model: Transformer = field(default_factory=lambda: gpt(tied_embeddings=False))

    def program(self, *, folded: bool) -> StepProgram:
        """Build the program."""
        scenario = make_scenario(
            self.model, self.machine, **{"global_batch_size": 16, "collectives": RINGS, **self.fields}
        )
        scenario = scenario.model_copy(update={"conditions": self.conditions})
        return build_program(scenario, build_cluster(self.machine, self.conditions), folded=folded)


CLOS = cluster(nodes=4)  # 32 GPUs in two pairs of nodes; leaves by rail, non-blocking
FAT = cluster(nodes=4, kind="fat_tree", spines=2, switch_ports=None)
WIDE = cluster(nodes=4, kind="fat_tree", oversubscription=[7])
RAILS = cluster(nodes=4, oversubscription=[7])
LONG = cluster(nodes=8, kind="fat_tree", nic={"bandwidth": "10 GB/s", "latency": "3 us"}, switch_latency="1 us")
LARGE = cluster(nodes=8)
HASHED = cluster(nodes=4, spines=4, switch_ports=None, routing="ecmp")
HASHED_FAT = cluster(
    nodes=4, kind="fat_tree", spines=4, switch_ports=None, oversubscription=[2], routing="ecmp", routing_seed=1
)

SMALL_NODES = cluster(nodes=8, gpus_per_node=4, nodes_per_leaf=1, kind="fat_tree", spines=2, oversubscription=[7])

GRID: dict[str, Any] = {"tp": 4, "pp": 2, "dp": 4}  # two stages of two nodes each
INTERLEAVED: dict[str, Any] = {"schedule": {"kind": "interleaved", "vpp": 2}}
ACROSS: dict[str, Any] = {"placement": (0, 2, 1, 3)}  # every stage under both leaves
DEEP = gpt(num_layers=8, tied_embeddings=False)
MIXTURE = gpt(tied_embeddings=False, moe={"num_experts": 16, "top_k": 2, "ffn_hidden_size": 256})
HEADS = gpt(tied_embeddings=False, num_attention_heads=16)
TIED = gpt()
BROAD = gpt(tied_embeddings=False, num_attention_heads=32, hidden_size=4096, ffn_hidden_size=11008)
RINGS = {axis: "ring" for axis in ("tp", "cp", "dp", "edp")}

SLOW = (SlowGpu(kind="slow_gpu", gpu=5, speed=0.7),)
SLOW_NODE = (SlowNode(kind="slow_node", node=2, speed=0.7),)
WEAK_NIC = (SlowNic(kind="slow_nic", node=1, nic=2, capacity=0.25),)
LOST_NIC = (RemovedLink(kind="removed_link", between=("node1.nic2", "leaf0.2")),)
WEAK_LEAF = (DegradedLink(kind="degraded_link", between=("leaf0", "spine0"), capacity=0.3),)
WEAK_RAIL = (DegradedLink(kind="degraded_link", between=("leaf0.1", "spine0"), capacity=0.3),)
OTHERS = (Background(kind="background", nodes=(0, 2), rate="1 GB/s"),)

HEALTHY = {
    "grid": Case(CLOS, GRID, 2),
    "fastest algorithms": Case(CLOS, {**GRID, "collectives": {}}, 2),
    "tied embeddings": Case(CLOS, GRID, 2, model=TIED),
    "gpipe": Case(CLOS, {**GRID, "schedule": "gpipe"}, 2),
    "interleaved": Case(CLOS, {**GRID, **INTERLEAVED}, 2, model=DEEP),
    "many microbatches": Case(CLOS, {**GRID, "global_batch_size": 96}, 2),
    "four stages": Case(CLOS, {"tp": 2, "pp": 4, "dp": 4}, 4),
    "hierarchical": Case(CLOS, {**GRID, **ACROSS, "collectives": {"dp": "hierarchical"}}, 2),
    # both trees over 4 nodes: 0 and 3 are root of one and leaf of the other, 1 and 2 have two children in one of them;
    # messages beside them make that matter
    "tree": Case(LARGE, {"tp": 8, "pp": 2, "dp": 4, "collectives": {"dp": "tree"}}, 4),
    **{kind: Case(WIDE, {**GRID, "schedule": kind}, 2, model=DEEP) for kind in ("zb-h1", "zbv", "dualpipev")},
    "dualpipe": Case(CLOS, {**GRID, "schedule": "dualpipe"}, 2, model=DEEP),
    "shard groups": Case(WIDE, {**GRID, **ACROSS, "optimizer": {"zero_stage": 3, "shard_group": 2}}, 2),
    "1 to 7": Case(WIDE, GRID, 2),
    # exchanges over cp crowd the uplinks; the host's gaps must not depend on whether those crowds are one class
    "1 to 7, a host that launches": Case(
        SMALL_NODES, {"tp": 4, "cp": 2, "pp": 4, "dp": 1, "stack": "megatron-core-2024"}, 4, model=BROAD
    ),
    "1 to 7, no pipeline": Case(WIDE, {"tp": 4, "dp": 8}, 1),
    "1 to 7, stages across": Case(WIDE, {**GRID, **ACROSS}, 2),
    "experts in a node": Case(CLOS, {"tp": 2, "pp": 2, "dp": 8, "ep": 4}, 2, model=MIXTURE),
    "experts across leaves": Case(WIDE, {"tp": 2, "dp": 16, "ep": 16}, 1, model=MIXTURE),
    "experts of one rank": Case(CLOS, {"tp": 2, "pp": 2, "dp": 8, "ep": 4, "etp": 1}, 2, model=MIXTURE),
    "tp over two nodes": Case(CLOS, {"tp": 16, "dp": 2, "global_batch_size": 8}, 1, model=HEADS),
    "zigzag": Case(CLOS, {"tp": 2, "cp": 4, "pp": 2, "dp": 2}, 2),
}

UNEVEN = {
    # a kind for each place in the cp group, in either stage; so over two nodes
    "contiguous": Case(CLOS, {"tp": 2, "cp": 4, "pp": 2, "dp": 2, "cp_split": "contiguous"}, 8),
    "contiguous over nodes": Case(CLOS, {"tp": 4, "cp": 4, "pp": 2, "dp": 1, "cp_split": "contiguous"}, 8),
    # an ep group has 4 ranks on either of two nodes: the hot one and 3 beside it, and as its tokens come to its node on
    # its own rail (PXN), the one on that rail and 3 others on the other node
    "hot expert": Case(CLOS, {"tp": 2, "dp": 16, "ep": 8, "expert_imbalance": 0.5}, 4, model=MIXTURE),
    "hot expert with a capacity": Case(
        CLOS, {"tp": 2, "dp": 16, "ep": 8, "expert_imbalance": 0.5, "expert_capacity_factor": 1.25}, 4, model=MIXTURE
    ),
    "hot expert, once a node": Case(
        CLOS, {"tp": 2, "dp": 16, "ep": 8, "expert_imbalance": 0.5, "stack": "nemo-2025"}, None, model=MIXTURE
    ),
    # edp pairs of ranks in the same place of nodes 0 and 1, below one leaf, and of 2 and 4, below two: longer wires
    "rings of different hop counts": Case(
        LONG, {"tp": 1, "dp": 32, "ep": 16, "placement": (0, 2, 1, 4), "global_batch_size": 32}, 2, model=MIXTURE
    ),
    "stages of different hop counts": Case(LONG, {**GRID, "placement": (0, 1, 2, 4)}, 2),
    # stages of 3 nodes, leaves of 4: pipelines are under leaves 0012, 0112 and 0122, and no two of 12 nodes are alike
    "stages and leaves": Case(
        cluster(nodes=12, nodes_per_leaf=4, kind="fat_tree", oversubscription=[7]),
        {"tp": 8, "pp": 4, "dp": 3, "global_batch_size": 12}, 12,
    ),
    "stages and leaves by rail": Case(
        cluster(nodes=12, nodes_per_leaf=4, oversubscription=[7]),
        {"tp": 8, "pp": 4, "dp": 3, "global_batch_size": 12}, 12,
    ),
    # stages of 2 nodes, leaves of 3: pipelines are under leaves 0012 and 0112, and no two of 8 nodes are alike
    "two nodes a stage, leaves of three": Case(
        cluster(nodes=8, nodes_per_leaf=3, kind="fat_tree", oversubscription=[4]), {"tp": 8, "pp": 4, "dp": 2}, 8
    ),
}  # fmt: skip

BROKEN = {
    "slow GPU": Case(CLOS, GRID, 8, SLOW),
    "slow GPU, tied embeddings": Case(CLOS, GRID, 8, SLOW, model=TIED),
    "slow GPU, zero 1": Case(CLOS, {**GRID, "optimizer": {"zero_stage": 1, "overlap_param_gather": True}}, 8, SLOW),
    "slow GPU, zero 2": Case(CLOS, {**GRID, "optimizer": {"zero_stage": 2}}, 8, SLOW),
    "slow GPU, zero 3": Case(CLOS, {**GRID, "optimizer": {"zero_stage": 3}}, 8, SLOW),
    # of the dp group: itself, the other of its shard group, the other of its replica group, and the last
    "slow GPU, shard groups": Case(WIDE, {**GRID, "optimizer": {"zero_stage": 1, "shard_group": 2}}, 16, SLOW),
    # a slow rank of the tp group of a hot expert's: no number derived, but it folds
    "slow GPU, hot expert": Case(
        CLOS, {"tp": 2, "dp": 16, "ep": 8, "expert_imbalance": 0.5}, None, SLOW, model=MIXTURE
    ),
    # nodes 2 and 3 are the second stage; each of its nodes has its partner in the first
    "slow node": Case(CLOS, GRID, 4, SLOW_NODE),
    # its GPU, the 3 beside it in the tp group, its dp group and the rest, and their partners
    "weak NIC": Case(CLOS, GRID, 8, WEAK_NIC),
    # all messages stay inside nodes: only the ring slows down, and all of it alike
    "weak NIC, no pipeline": Case(CLOS, {"tp": 4, "dp": 8}, 2, WEAK_NIC),
    # GPUs 9 and 10 share a NIC, but one of them is on its rail and the other is not
    "lost NIC": Case(CLOS, GRID, None, LOST_NIC),
    # a fat tree's leaf has all of its nodes' traffic: a stage each, none of its ranks is worse off than another
    "weak leaf": Case(FAT, GRID, 2, WEAK_LEAF),
    "weak leaf, no pipeline": Case(FAT, {"tp": 4, "dp": 8}, 1, WEAK_LEAF),
    # GPUs 1 and 9 are on that rail (tp index 1, dp 0 and 2); 6 are beside them, 2 in their dp group, and then the rest
    "weak rail": Case(RAILS, GRID, 8, WEAK_RAIL),
    # no message alone feels that the uplink of rail 1 has 12 GB/s instead of 13.3, but two at once do
    "rail a little weaker": Case(
        cluster(nodes=4, oversubscription=[1.5], spines=1, switch_ports=None),
        GRID,
        8,
        (DegradedLink(kind="degraded_link", between=("leaf0.1", "spine0"), capacity=0.9),),
    ),
    # a hash gives every pair of GPUs a path of its own: what is alike is alike by chance
    "hashed paths, clos": Case(HASHED, GRID, None),
    "hashed paths, fat tree": Case(HASHED_FAT, {**GRID, **ACROSS}, None),
    "background": Case(WIDE, {**GRID, **ACROSS}, 2, OTHERS),
}

SLOWER = {
    "slow GPU, many microbatches": Case(CLOS, {**GRID, "global_batch_size": 160}, 8, SLOW),
    "tp over two nodes, pipeline": Case(LARGE, {"tp": 16, "pp": 2, "dp": 2}, 2, model=HEADS),
    "slow GPU, tp over two nodes": Case(LARGE, {"tp": 16, "pp": 2, "dp": 2}, 8, SLOW, model=HEADS),
    "weak NIC, tp over two nodes": Case(LARGE, {"tp": 16, "pp": 2, "dp": 2}, 8, WEAK_NIC, model=HEADS),
    "slow GPU, four stages": Case(CLOS, {"tp": 2, "pp": 4, "dp": 4}, 16, SLOW),
    "slow GPU, zero 3, no overlap": Case(
        CLOS, {**GRID, "optimizer": {"zero_stage": 3, "overlap_grad_reduce": False}}, 8, SLOW
    ),
    **{
        f"slow GPU, {kind}": Case(WIDE, {**GRID, "schedule": kind, "global_batch_size": 64}, 8, SLOW, model=DEEP)
        for kind in ("zb-h1", "zbv", "dualpipe", "dualpipev")
    },
    "slow GPU, interleaved": Case(CLOS, {**GRID, **INTERLEAVED}, 8, SLOW, model=DEEP),
    "128 GPUs": Case(
        cluster(nodes=16, nodes_per_leaf=4, oversubscription=[4]),
        {"tp": 8, "pp": 4, "dp": 4, "global_batch_size": 32}, None, SLOW + WEAK_NIC,
    ),
    "128 GPUs, mixture": Case(
        cluster(nodes=16, nodes_per_leaf=4, kind="fat_tree", oversubscription=[2]),
        {"tp": 2, "pp": 2, "dp": 32, "ep": 16, "global_batch_size": 128}, None, SLOW, model=MIXTURE,
    ),
}  # fmt: skip

CASES = {**HEALTHY, **UNEVEN, **BROKEN}


# --- the two runs -----------------------------------------------------------------------------------------------------


def by_rank(result: StepResult) -> dict[tuple[int, str], list[Span]]:
    """Spans of every rank's streams in order."""
    found: dict[tuple[int, str], list[Span]] = {}
    for span in sorted(result.spans, key=lambda span: (span.start, span.end)):
        found.setdefault((span.rank, span.stream), []).append(span)
    return found


def close(a: float, b: float, step: float) -> bool:
    """Compare two times."""
    return abs(a - b) <= TOLERANCE * step


def differences(few: list[Span], many: list[Span], step: float) -> str | None:
    """Say where the spans of a class and of one of its ranks part, if they do; what rounds to no time is left out."""
    few, many = ([span for span in spans if not close(span.start, span.end, step)] for spans in (few, many))
    position = 0
    for span in few:
        parts: Counter[str] = Counter()
        start, reached = None, span.start
        while position < len(many) and (start is None or not close(reached, span.end, step)):
            own = many[position]
            start = own.start if start is None else start
            if own.name != span.name or not close(own.start, reached, step):
                return f"{span} is followed by {own}"
            parts.update(dict(own.parts))
            reached = own.end
            position += 1
        if start is None or not close(start, span.start, step) or not close(reached, span.end, step):
            return f"{span} is from {start} to {reached}"
        own_parts = dict(span.parts)
        for state in own_parts | parts:
            if not close(own_parts.get(state, 0.0), parts.get(state, 0.0), step):
                return f"{span} has the parts {dict(parts)}"
    return None if position == len(many) else f"nothing does {many[position]}"


def check_equal(folded: StepProgram, unfolded: StepProgram) -> None:
    """Compare all spans of both runs: one with every shortcut that there is, one without any."""
    few, many = simulate_step(folded), simulate_step(unfolded, fuse=False, skip=False)
    assert many.step_time == pytest.approx(few.step_time, rel=TOLERANCE)
    spans, others = by_rank(few), by_rank(many)
    streams = {stream for _, stream in spans}
    assert streams == {stream for _, stream in others}
    for rank, own in enumerate(folded.class_of_rank.tolist()):
        single = int(unfolded.class_of_rank[rank])
        for stream in streams:
            found = differences(spans.get((own, stream), []), others.get((single, stream), []), few.step_time)
            assert found is None, f"rank {rank}, class {own}: {found}"


def check(case: Case) -> None:
    """Compare both runs, and count classes."""
    folded, unfolded = case.program(folded=True), case.program(folded=False)
    ranks = len(folded.class_of_rank)
    assert sorted(unfolded.class_of_rank) == list(range(ranks))
    assert np.bincount(folded.class_of_rank).tolist() == list(folded.rank_counts)
    check_equal(folded, unfolded)
    assert len(folded.rank_counts) == case.classes if case.classes else len(folded.rank_counts) < ranks


@pytest.mark.parametrize("name", CASES)
def test_folded_is_unfolded(name: str) -> None:
    """Every span of every rank, and no more classes than the case has kinds of ranks."""
    check(CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOWER)
def test_larger_jobs(name: str) -> None:
    """The same for what takes seconds."""
    check(SLOWER[name])
