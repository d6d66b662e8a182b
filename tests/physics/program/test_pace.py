"""A stack's pace: kernels stretched by its factor, the host as a lower bound, the slowest rank on top."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simulator.physics.cluster import build_cluster
from simulator.physics.program.build import build_program
from simulator.physics.program.pace import with_attention
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
    assert with_attention(a100, flash1).kernels.default_attention == "flash1"
    assert with_attention(a100, flash1) is with_attention(a100, flash1)
    assert with_attention(a100, generic.model_copy(update={"attention_kernel": "flash99"})) is a100
    assert with_attention(a100, generic) is a100


def test_slow_attention() -> None:
    """A Triton kernel at two thirds of the speed: efficiencies over 1.5."""
    a100 = find_accelerator("a100")
    slow = with_attention(a100, read_stacks()["generic"].model_copy(update={"attention_slowdown": 1.5}))
    name = a100.kernels.default_attention
    before, after = a100.kernels.attention[name], slow.kernels.attention[name]
    for dtype, model in before.items():
        assert after[dtype].forward_efficiency == pytest.approx(model.forward_efficiency / 1.5)
