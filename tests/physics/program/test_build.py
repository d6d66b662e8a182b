"""The assembled program: FLOPs, messages between the right stages, placement, fused chains."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.iteration import simulate_step
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.flops import forward_flops_per_token, step_flops
from simulator.physics.kernels import memory_bound_time
from simulator.physics.program.build import build_program
from simulator.physics.program.steps import Body, Chain, Join, Shared, Start, StepProgram
from simulator.physics.schedules.tables import Action, parse_action
from simulator.scenario.conditions import Condition, SlowGpu, SlowNode
from simulator.scenario.scenario import Scenario
from simulator.scenario.transformer import Transformer
from tests.physics.shapes import cluster, gpt, make_scenario

MACHINE = cluster(nodes=4)
GRAPH = build_cluster(MACHINE)


def scenario(model: Transformer | None = None, **changes: Any) -> Scenario:
    """Build a scenario of a GPT of 8 layers on 4 nodes of 8 GPUs."""
    return make_scenario(model or gpt(num_layers=8), MACHINE, **changes)


def build(
    model: Transformer | None = None, conditions: tuple[Condition, ...] = (), *, folded: bool = True, **changes: Any
) -> StepProgram:
    """Build its program."""
    machine = build_cluster(MACHINE, conditions) if conditions else GRAPH
    made = scenario(model, **changes).model_copy(update={"conditions": conditions})
    return build_program(made, machine, folded=folded)


SCHEDULES = st.sampled_from(["gpipe", "1f1b", {"kind": "interleaved", "vpp": 2}])


# --- FLOPs -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    tp=st.sampled_from([1, 2, 4]),
    pp=st.sampled_from([2, 4]),
    dp=st.sampled_from([1, 2]),
    schedule=SCHEDULES,
    recompute=st.sampled_from(["none", "selective", "full"]),
    attention=st.sampled_from(["flash", "unfused"]),
    micro=st.sampled_from([1, 2]),
)
def test_executed_flops(tp: int, pp: int, dp: int, schedule: Any, recompute: str, attention: str, micro: int) -> None:
    """Model FLOPs, and once more the forward pass of what is recomputed: all layers, or their attention cores."""
    fields: dict[str, Any] = {"schedule": schedule, "recompute": recompute, "attention": attention}
    made = scenario(tp=tp, pp=pp, dp=dp, global_batch_size=16, micro_batch_size=micro, **fields)
    model, tokens = made.model, made.training.tokens_per_step
    layers = forward_flops_per_token(model, 256) - 2 * model.vocab_size * model.hidden_size
    cores = model.num_layers * 4 * 256 * model.hidden_size
    again = {"none": 0.0, "selective": cores if attention == "unfused" else 0.0, "full": layers}[recompute]
    executed = build_program(made, GRAPH).executed_flops
    assert executed == pytest.approx(step_flops(model, made.training) + again * tokens, rel=1e-12)


# --- the schedule ----------------------------------------------------------------------------------------------------


def messages(program: StepProgram) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Tell who sends and who receives what: key to (rank, call)."""
    sent, received = {}, {}
    for rank, tasks in enumerate(program.tasks):
        for task in tasks:
            if task.send is not None:
                assert task.send[1:] not in sent
                sent[task.send[1:]] = (rank, task.send.call)
            if task.receive is not None:
                assert task.receive[1:] not in received
                received[task.receive[1:]] = (rank, task.receive.call)
    return sent, received


@settings(max_examples=10)
@given(pp=st.sampled_from([2, 4]), schedule=SCHEDULES)
def test_messages_go_to_the_neighbouring_stage(pp: int, schedule: Any) -> None:
    """Every message is sent once and received once: forward from stage s - 1 to s, backward from s + 1.

    Stage s lives on rank s mod pp, so with two chunks the last rank sends to the first.
    """
    program = build(pp=pp, dp=1, global_batch_size=8, schedule=schedule)
    stages = pp * program.vpp
    sent, received = messages(program)
    assert sent.keys() == received.keys()
    assert len(sent) == 2 * (stages - 1) * 8
    for (kind, stage, microbatch), (rank, call) in received.items():
        source = stage - 1 if kind == "F" else stage + 1
        assert 0 <= microbatch < 8
        assert rank == stage % pp
        assert sent[kind, stage, microbatch] == (source % pp, call)
        assert call.members == (source % pp, stage % pp)


def test_task_receives_what_its_action_needs() -> None:
    """1F1B on 2 ranks: forwards of stage 1 and backwards of stage 0 receive, in the order of the table."""
    program = build(pp=2, dp=1, global_batch_size=3)
    assert [[task.name for task in tasks] for tasks in program.tasks] == [
        ["0F0", "0F1", "0B0", "0F2", "0B1", "0B2"],
        ["1F0", "1B0", "1F1", "1B1", "1F2", "1B2"],
    ]
    for task in (task for tasks in program.tasks for task in tasks):
        action = parse_action(task.name)
        needs = (action.stage, action.kind) in ((1, "F"), (0, "B"))
        assert (task.receive[1:] if task.receive else None) == (
            (action.kind, action.stage, action.microbatch) if needs else None
        )


def test_one_stage_sends_nothing() -> None:
    """Without a pipeline there are no messages."""
    assert messages(build(pp=1, dp=4, global_batch_size=8)) == ({}, {})


def launches(body: Body) -> Counter[str]:
    """Count what a body starts, by what the call does."""
    return Counter(step.call.name for step in body if isinstance(step, Start))


@pytest.mark.parametrize(("schedule", "vpp"), [("1f1b", 1), ({"kind": "interleaved", "vpp": 2}, 2)])
def test_first_forward_and_last_backward_of_every_stage(schedule: Any, vpp: int) -> None:
    """Gathers are awaited in the first forward of each chunk, gradients start in its last backward, nowhere else."""
    optimizer = {"zero_stage": 1, "overlap_param_gather": True}
    program = build(pp=2, dp=4, global_batch_size=16, schedule=schedule, optimizer=optimizer)
    for rank, tasks in enumerate(program.tasks):
        assert launches(program.prologue[rank]) == {"dp.all_gather": vpp}
        waits = [task.name for task in tasks if any(isinstance(step, Join) for step in task.body)]
        starts = [task.name for task in tasks if launches(task.body)]
        stages = range(rank, 2 * vpp, 2)
        assert sorted(waits) == sorted(str(Action(stage, "F", 0)) for stage in stages)
        assert sorted(starts) == sorted(str(Action(stage, "B", 3)) for stage in stages)


@pytest.mark.parametrize(
    ("schedule", "blocking"), [("gpipe", True), ("1f1b", True), ({"kind": "interleaved", "vpp": 2}, False)]
)
def test_interleaved_schedules_do_not_block_on_messages(schedule: Any, blocking: bool) -> None:
    """Megatron overlaps messages in the interleaved schedule only."""
    assert build(pp=2, dp=1, global_batch_size=4, schedule=schedule).blocking_p2p is blocking


def test_rank_classes() -> None:
    """One class for each pipeline rank, standing for tp · cp · dp GPUs."""
    program = build(tp=2, cp=2, pp=4, dp=2, global_batch_size=8)
    assert program.rank_counts == (8, 8, 8, 8)
    assert len(program.tasks) == len(program.prologue) == len(program.epilogue) == 4


# --- fusing ----------------------------------------------------------------------------------------------------------


def test_private_collectives_are_fused_with_their_kernels() -> None:
    """Only this class takes part in its tensor parallelism: a task is one chain, its exposed time told apart."""
    program = build(tp=8, pp=2, dp=2, global_batch_size=8)
    (step,) = program.tasks[0][0].body
    assert isinstance(step, Chain)
    parts = dict(step.parts)
    assert set(parts) == {"compute", "exposed_tp"}
    assert sum(parts.values()) == pytest.approx(step.seconds) == pytest.approx(sum(s.seconds for s in step.segments))
    for segment in step.segments:
        assert segment.kernel == (segment.state == "compute") == (segment.call is None)
        assert segment.call is None or segment.seconds == segment.call.seconds
    assert not any(one.kernel and two.kernel for one, two in pairwise(step.segments))  # kernels in a row are one


def test_chains_know_the_constraints_of_their_collectives() -> None:
    """Tensor parallelism over two nodes meets gradients on the NICs: one chain, and those who share know it."""
    program = build(gpt(num_layers=8, num_attention_heads=16), tp=16, dp=2, global_batch_size=8)
    (step,) = program.tasks[0][0].body
    assert isinstance(step, Chain)
    calls = [segment.call for segment in step.segments if segment.call is not None]
    assert len(calls) > 4 * 8  # gathers and reductions of eight layers, and those of embedding and output
    assert step.constraints == frozenset[int]().union(*(call.constraints for call in calls))
    assert all(step.constraints & start.call.constraints for start in starts(program.tasks[0][-1].body))


def starts(body: Body) -> list[Start]:
    """What a body puts beside compute."""
    found = [step for step in body if isinstance(step, Start)]
    assert found
    return found


def test_collectives_of_several_classes_stay_apart() -> None:
    """One slow GPU makes two classes of every tp group, itself or a partner and the rest: they meet in each collective.

    A slow node makes two classes of nodes, and its tp groups stay whole.
    """
    slow = build(tp=4, pp=2, dp=4, conditions=(SlowGpu(kind="slow_gpu", gpu=5, speed=0.5),))
    for tasks in slow.tasks:
        shared = [step.call for step in tasks[0].body if isinstance(step, Shared)]
        assert shared
        assert all(len(call.members) == 2 for call in shared)
    node = build(tp=4, pp=2, dp=4, conditions=(SlowNode(kind="slow_node", node=0, speed=0.5),))
    assert len(node.tasks) == 4
    assert all(isinstance(step, Chain) for tasks in node.tasks for step in tasks[0].body)


def test_slow_gpus_take_longer_for_kernels_alone() -> None:
    """At half its speed twice as long; collectives, and what the host does, as ever."""
    slow = SlowNode(kind="slow_node", node=0, speed=0.5)
    program, healthy = build(tp=8, dp=4, conditions=(slow,)), build(tp=8, dp=4)
    (chain,), (one,), (other,) = (each.tasks[own][0].body for each, own in ((healthy, 0), (program, 0), (program, 1)))
    assert isinstance(chain, Chain)
    assert isinstance(one, Chain)
    assert isinstance(other, Chain)
    times = sorted((dict(one.parts), dict(other.parts)), key=lambda parts: parts["compute"])
    assert times[0] == pytest.approx(dict(chain.parts))
    assert times[1]["compute"] == pytest.approx(2 * times[0]["compute"])
    assert times[1]["exposed_tp"] == pytest.approx(times[0]["exposed_tp"])


def test_recomputation_is_told_apart() -> None:
    """Kernels done again count as recomputation, as long as the forward pass of the same layers."""
    program = build(pp=2, dp=1, recompute="full", global_batch_size=4)
    forward, backward = (
        dict(chain.parts) for task in program.tasks[1][:2] for chain in task.body if isinstance(chain, Chain)
    )
    plain = build(pp=2, dp=1, global_batch_size=4)
    (chain,) = plain.tasks[1][1].body
    assert isinstance(chain, Chain)
    assert backward["compute"] == pytest.approx(dict(chain.parts)["compute"])
    assert 0 < backward["recomputation"] < forward["compute"]


def test_epilogue_ends_with_the_optimizer() -> None:
    """The gradient norm is met by all rank classes; the kernels after it are the optimizer's."""
    program = build(pp=4, dp=2, global_batch_size=8)
    for end in program.epilogue:
        norm = next(step for step in end if isinstance(step, Shared) and step.call.name == "gradient_norm")
        assert norm.call.members == (0, 1, 2, 3)
        assert (
            norm.call
            is next(
                step for step in program.epilogue[0] if isinstance(step, Shared) and step.call.name == "gradient_norm"
            ).call
        )
        last = end[-1]
        assert isinstance(last, Chain)
        assert set(dict(last.parts)) == {"optimizer"}


def test_latency_of_the_gradient_norm() -> None:
    """8 bytes over 4 nodes of 8, NCCL's tree in LL: 6.8 + 2 · (7 · 0.6 + 2 · 5.0) = 35.2 µs; one GPU needs none."""

    def norm(**changes: Any) -> float:
        steps = [
            step for step in build(**changes).epilogue[0] if isinstance(step, Shared) and step.call.axis == "world"
        ]
        return sum(phase.latency for step in steps for phase in step.call.phases)

    assert norm(tp=4, pp=4, dp=2) == pytest.approx(35.2e-6)
    assert norm(tp=8) == pytest.approx((6.8 + 2 * 7 * 0.6) * 1e-6)
    assert norm(dp=1) == 0


# --- placement -------------------------------------------------------------------------------------------------------


def step_time(machine: ClusterGraph, made: Scenario) -> float:
    """Simulate one step."""
    return simulate_step(build_program(made, machine)).step_time


def test_placement_decides_what_crosses_the_spine() -> None:
    """Nodes 0 and 1 share a leaf; 0 and 2 do not, and a spine of 8 to 1 slows the gradients between them."""
    machine = build_cluster(cluster(nodes=4, kind="fat_tree", oversubscription=[8]))
    near, far = (scenario(dp=16, placement=nodes) for nodes in ((0, 1), (0, 2)))
    assert step_time(machine, near) < step_time(machine, far)


# --- the whole step --------------------------------------------------------------------------------------------------


def test_step_of_one_gpu_is_the_sum_of_its_kernels() -> None:
    """No network, no pipeline: m times forward and backward, then the optimizer."""
    program = build(dp=1, global_batch_size=4)
    chains = [chain for task in program.tasks[0] for chain in task.body if isinstance(chain, Chain)]
    made = scenario(dp=1)
    parameters = made.model.total_parameters
    passes = (4, 4, 8, 34)  # zero, norm and clip the fp32 gradients; Adam and the copy to 16 bits
    end = sum(memory_bound_time(made.accelerator, moved * parameters) for moved in passes)
    expected = sum(chain.seconds for chain in chains) + end
    assert simulate_step(program).step_time == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25)
@given(
    zero_stage=st.integers(0, 3),
    overlap=st.booleans(),
    gather_overlap=st.booleans(),
    pp=st.sampled_from([1, 2]),
    experts=st.booleans(),
)
def test_every_recipe_comes_to_its_end(
    zero_stage: int, overlap: bool, gather_overlap: bool, pp: int, experts: bool
) -> None:
    """No combination of sharding and overlap gets stuck, and spans tile every rank's step."""
    optimizer = {"zero_stage": zero_stage, "overlap_grad_reduce": overlap, "overlap_param_gather": gather_overlap}
    moe = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 256} if experts else None
    fields: dict[str, Any] = {"ep": 4} if experts else {}
    program = build(gpt(num_layers=4, moe=moe), tp=2, pp=pp, dp=8, optimizer=optimizer, **fields)
    result = simulate_step(program)
    for rank in range(pp):
        spans = [span for span in result.spans if span.rank == rank]
        assert sum(span.end - span.start for span in spans) == pytest.approx(result.step_time, rel=1e-9)


def test_zero3_costs_more_than_zero1_where_the_network_is_slow() -> None:
    """Half as much again to move, in every microbatch: 10 GB/s NICs show it."""

    def seconds(zero_stage: int, microbatches: int) -> float:
        sharding = {"zero_stage": zero_stage, "grad_dtype": "bf16"}
        return step_time(GRAPH, scenario(dp=32, global_batch_size=32 * microbatches, optimizer=sharding))

    one, three = seconds(1, 1), seconds(3, 1)
    assert one < three
    assert seconds(3, 4) - three > 3 * (three - one) > 0


# --- coordinates on which load depends --------------------------------------------------------------------------------


def work(program: StepProgram, rank: int) -> float:
    """Seconds of kernels in the first forward of a rank."""
    body = program.tasks[int(program.class_of_rank[rank])][0].body
    return sum(dict(step.parts).get("compute", 0.0) for step in body if isinstance(step, Chain))


def test_later_pieces_of_a_contiguous_cut_take_longer() -> None:
    """Causal attention: piece i of 4 sees i + 1 of 4 pieces, so cp rank 3 works longest; zigzag evens that out."""
    fields: dict[str, Any] = {"tp": 2, "cp": 4, "dp": 4, "global_batch_size": 16, "sequence_length": 4096}
    uneven, even = build(**fields, cp_split="contiguous"), build(**fields, cp_split="zigzag")
    times = [work(uneven, 2 * place) for place in range(4)]
    assert times == sorted(times)
    assert times[0] < times[1] < times[2] < times[3]
    assert len(even.rank_counts) == 1
    assert uneven.rank_counts == (8, 8, 8, 8)


def test_the_hot_expert_takes_longer() -> None:
    """The first rank of an ep group has half as much again to do; the others share the rest, and do equally much."""
    moe = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 2048}
    program = build(gpt(num_layers=4, moe=moe), dp=32, ep=8, expert_imbalance=0.5, global_batch_size=32)
    times = [work(program, rank) for rank in range(8)]
    assert times[0] > times[1]
    assert times[1:] == pytest.approx([times[1]] * 7, rel=1e-12)
    assert len(program.rank_counts) == 2
    assert sorted(program.rank_counts) == [4, 28]


def test_unfolded_every_rank_has_its_program() -> None:
    """As many classes as ranks, one GPU each, and twice the same work; FLOPs of the job are the same."""
    folded, every = build(tp=4, pp=2, dp=4), build(tp=4, pp=2, dp=4, folded=False)
    assert every.rank_counts == (1,) * 32
    assert every.executed_flops == pytest.approx(folded.executed_flops, rel=1e-12)
    assert [work(every, rank) for rank in range(32)] == pytest.approx([work(folded, rank) for rank in range(32)])


def test_gpus_of_a_program_add_up() -> None:
    """Rank classes stand for all job GPUs."""
    assert np.sum(build(tp=2, pp=4, dp=4).rank_counts) == 32
