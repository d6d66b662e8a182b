"""A stack's pace: kernels stretched by its factor, the host as a lower bound, the slowest rank on top."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simulator.physics.cluster import build_cluster
from simulator.physics.program.build import build_program
from simulator.physics.program.pace import pace_of, with_kernels
from simulator.physics.program.steps import Chain
from simulator.scenario.hardware import find_accelerator
from simulator.scenario.scenario import Scenario, fit
from simulator.scenario.stacks import Stack, read_stacks

CLUSTER = {
    "name": "box",
    "accelerator": "a100",
    "topology": {"kind": "nvlink_box", "scale_up": {"bandwidth": "300 GB/s", "efficiency": 0.8}},
}
MODEL = {"num_layers": 2, "hidden_size": 1024, "num_attention_heads": 8, "vocab_size": 32000}


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Seconds by state of the first forward action under a stack with some fields changed."""

    def seconds(**changes: Any) -> dict[str, float]:
        stack = read_stacks()["generic"].model_copy(update=changes)
        monkeypatch.setattr(Scenario, "stack", property(lambda _: stack))
        training = {"sequence_length": 1024, "global_batch_size": 8}
        scenario = fit(Scenario(name="x", cluster=CLUSTER, model=MODEL, training=training))
        program = build_program(scenario, build_cluster(scenario.cluster))
        found: dict[str, float] = {}
        for chain in program.tasks[0][0].body:
            assert isinstance(chain, Chain)
            for state, time in chain.parts:
                found[state] = found.get(state, 0.0) + time
        return found

    return seconds


def test_efficiency_stretches_kernels(step: Any) -> None:
    """At 80 % a forward pass takes 1.25 times as long."""
    assert step(compute_efficiency=0.8)["compute"] == pytest.approx(1.25 * step()["compute"])


def test_an_action_takes_at_least_its_launches(step: Any) -> None:
    """At a millisecond a launch the action lasts its kernels in milliseconds; CUDA graphs take the host away."""
    slow = step(launch_overhead=1e-3)
    assert sum(slow.values()) == pytest.approx(round(1e3 * sum(slow.values())) * 1e-3)
    assert slow["host"] > 0
    assert slow["compute"] == step()["compute"]
    assert "host" not in step(launch_overhead=1e-3, cuda_graphs=True)
    assert "host" not in step(launch_overhead=1e-9)


def test_a_blocking_host_comes_on_top(step: Any) -> None:
    """A job of eight GPUs waits for each launch where the stack does from eight on, and not where it does from nine."""
    blocked = step(launch_overhead=1e-3, launch_blocking_gpus=8)
    launches = round(1e3 * sum(step(launch_overhead=1e-3).values()))
    assert blocked["host"] == pytest.approx(launches * 1e-3)
    assert blocked["compute"] == step()["compute"]
    assert step(launch_overhead=1e-3, launch_blocking_gpus=9) == step(launch_overhead=1e-3)
    assert "host" not in step(launch_overhead=1e-3, launch_blocking_gpus=8, cuda_graphs=True)


def test_checked_collectives_wait_for_each_member_across_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers with two all-reduces each and the embedding's over tp 4: 5 · 4 · 10 ms; nothing inside a node."""

    def seconds(nodes: int, check: float) -> float:
        stack = read_stacks()["generic"].model_copy(update={"collective_check": check})
        monkeypatch.setattr(Scenario, "stack", property(lambda _: stack))
        nic = {"bandwidth": "400 Gbps", "per_node": 8}
        kind = (
            {"kind": "rail_clos", "nodes": nodes, "nic": nic, "nodes_per_leaf": 2, "tiers": 1}
            if nodes > 1
            else {"kind": "nvlink_box"}
        )
        cluster = {**CLUSTER, "topology": {**CLUSTER["topology"], **kind}}
        split = {"tp": 4, "pp": 2, "sequence_parallel": False}
        training = {"sequence_length": 1024, "global_batch_size": 8}
        scenario = fit(
            Scenario(name="x", cluster=cluster, model={**MODEL, "num_layers": 4}, parallelism=split, training=training)
        )
        body = build_program(scenario, build_cluster(scenario.cluster)).tasks[0][0].body
        return sum(time for chain in body if isinstance(chain, Chain) for state, time in chain.parts if state == "host")

    assert seconds(2, 10e-3) == pytest.approx(0.2, rel=0.02)
    assert seconds(1, 10e-3) == seconds(2, 0.0) == 0


def test_the_slowest_of_eight(step: Any) -> None:
    """sigma · sqrt(2 ln 8) = 1 % · 2.039 of the kernels' time."""
    found = step(jitter=0.01)
    assert found["imbalance"] == pytest.approx(0.01 * math.sqrt(2 * math.log(8)) * found["compute"])


def test_straggling_grows_with_the_job() -> None:
    """Nobody waits alone; 1,000 ranks wait longer than 10, and less than a hundred times as long."""
    stack = Stack.model_validate({**read_stacks()["generic"].model_dump(mode="json"), "jitter": 0.004})
    assert stack.straggling(1) == 0
    assert 1 < stack.straggling(1000) / stack.straggling(10) < 2


def test_a_stack_brings_its_attention() -> None:
    """Where the accelerator has measurements of it; equal questions have one answer."""
    a100, generic = find_accelerator("a100"), read_stacks()["generic"]
    flash1 = generic.model_copy(update={"attention_kernel": "flash1"})
    assert with_kernels(a100, flash1).kernels.default_attention == "flash1"
    assert with_kernels(a100, flash1) is with_kernels(a100, flash1)
    assert with_kernels(a100, generic.model_copy(update={"attention_kernel": "flash99"})) is a100
    assert with_kernels(a100, generic) is a100


def test_slow_attention() -> None:
    """A Triton kernel at two thirds of the speed: efficiencies over 1.5."""
    a100 = find_accelerator("a100")
    slow = with_kernels(a100, read_stacks()["generic"].model_copy(update={"attention_slowdown": 1.5}))
    name = a100.kernels.default_attention
    before, after = a100.kernels.attention[name], slow.kernels.attention[name]
    for dtype, model in before.items():
        assert after[dtype].forward_efficiency == pytest.approx(model.forward_efficiency / 1.5)


def test_libraries_older_than_the_accelerator() -> None:
    """16-bit products take longer on accelerators that the stack names; fp8 and other accelerators are as before."""
    stack = read_stacks()["generic"].model_copy(update={"untuned_gemm": {"h100": 1.25}})
    h100, a100 = find_accelerator("h100"), find_accelerator("a100")
    slow = with_kernels(h100, stack).kernels.gemm
    assert slow["bf16"].efficiency == pytest.approx(h100.kernels.gemm["bf16"].efficiency / 1.25)
    assert slow["fp8"] == h100.kernels.gemm["fp8"]
    assert with_kernels(a100, stack) is a100


MIXTURE = {**MODEL, "moe": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 512}}


def test_graphs_hold_no_dropless_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack with CUDA graphs launches a mixture's kernels by itself, unless experts are padded to a capacity."""
    stack = read_stacks()["generic"].model_copy(update={"launch_overhead": 1e-4, "cuda_graphs": True})
    monkeypatch.setattr(Scenario, "stack", property(lambda _: stack))

    def launch(model: dict[str, Any], **training: Any) -> float:
        recipe = {"sequence_length": 1024, "global_batch_size": 8, **training}
        return pace_of(fit(Scenario(name="x", cluster=CLUSTER, model=model, training=recipe))).launch

    assert launch(MODEL) == 0
    assert launch(MIXTURE) == 1e-4
    assert launch(MIXTURE, expert_capacity_factor=1.0, expert_padding=True) == 0
    assert launch(MIXTURE, cuda_graphs=True) == 0


def test_products_of_experts_are_launched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward of two mixtures has 2 · 2 kernels of 8 products: 7 more launches each."""
    lengths = []
    for expert_launch in (1e-3, 2e-3):
        stack = read_stacks()["generic"].model_copy(update={"launch_overhead": 1e-2, "expert_launch": expert_launch})
        monkeypatch.setattr(Scenario, "stack", property(lambda _, stack=stack: stack))
        training = {"sequence_length": 1024, "global_batch_size": 8}
        made = fit(Scenario(name="x", cluster=CLUSTER, model=MIXTURE, training=training))
        body = build_program(made, build_cluster(made.cluster)).tasks[0][0].body
        lengths.append(sum(chain.seconds for chain in body if isinstance(chain, Chain)))
    assert lengths[1] - lengths[0] == pytest.approx(4 * 7 * 1e-3)
