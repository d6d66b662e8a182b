"""Backwards cut in I and W: nothing is lost, and what others wait for is in I; what found schedules are told."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from simulator.physics.operations import Collective, Kernel, Launch
from simulator.physics.program.bodies import Bodies, Counted
from simulator.physics.program.profile import action_times
from simulator.physics.stages import cut
from simulator.scenario.stacks import read_stacks
from tests.physics.shapes import gpt, make_rank

STACK = read_stacks()["generic"]


def bodies_of(stages: int = 2, **training: Any) -> Bodies:
    """Bodies of a small GPT of four layers on tp 2 and dp 2."""
    rank = make_rank(gpt(num_layers=4), **training, tp=2, dp=2, pp=stages)
    return Bodies(rank, cut(rank.model, stages), STACK)


def names(body: list[Counted]) -> Counter[str]:
    """How often each kernel, collective and launch occurs."""
    return Counter(getattr(each.operation, "name", getattr(each.operation, "tag", "")) for each in body)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stage", [0, 1])
def test_halves_are_the_whole(stage: int, last: bool) -> None:
    """I and W together run what B runs, once each."""
    bodies = bodies_of(optimizer={"zero_stage": 1})
    own = bodies.stages[stage]
    whole = bodies.backward(own, last=last)
    halves = [bodies.backward(own, last=last, kind=kind) for kind in "IW"]
    assert names(halves[0]) + names(halves[1]) == names(whole)


def test_weight_gradients_and_their_reduction_are_in_w() -> None:
    """W has the wgrad GEMMs and the launches of gradients; I has all collectives on the way back, but no wgrad."""
    bodies = bodies_of(optimizer={"zero_stage": 1})
    half, weight = (bodies.backward(bodies.stages[1], last=True, kind=kind) for kind in "IW")
    assert not any(name.endswith(".wgrad") for name in names(half))
    assert not any(isinstance(each.operation, Launch) for each in half)
    assert any(isinstance(each.operation, Collective) and each.operation.axis == "tp" for each in half)
    kernels = [each.operation.name for each in weight if isinstance(each.operation, Kernel)]
    assert kernels
    assert all(name.endswith(".wgrad") for name in kernels)
    assert any(isinstance(each.operation, Launch) for each in weight)


def test_recomputation_comes_before_i() -> None:
    """The gradient of the input needs the activations again; W finds them there."""
    bodies = bodies_of(recompute="full")
    half, weight = (bodies.backward(bodies.stages[1], last=False, kind=kind) for kind in "IW")
    assert any(each.state == "recomputation" for each in half)
    assert not any(each.state == "recomputation" for each in weight)


def test_times_of_a_stage_add_up_to_its_whole_backward() -> None:
    """F, I and W of the kernels; a forward's matmuls are done twice in backward, half of that in W."""
    bodies = bodies_of()
    times = action_times(bodies, bodies.stages[0])
    whole = sum(
        e.operation.seconds for e in bodies.backward(bodies.stages[0], last=False) if isinstance(e.operation, Kernel)
    )
    assert times.input + times.weight == pytest.approx(whole)
    assert 0.3 < times.weight / times.forward < 1.5
    assert 0.5 < times.input / times.forward < 2.5
