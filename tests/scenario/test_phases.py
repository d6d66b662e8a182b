"""Phases and batch ramps: steps by hand, as Megatron counts them, and splits that do not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import LayoutError, ScenarioError
from simulator.scenario.phases import Phase, stretches
from simulator.scenario.scenario import Scenario
from simulator.studies.show import scenario_schema
from tests.small import load_small, small
from tests.studies.json_schema import problems

RECIPE = {"sequence_length": 1024, "global_batch_size": 16, "micro_batch_size": 1}
RAMPED = {"name": "short", "tokens": "1e9 tokens", "ramp": {"from": 4, "increment": 4, "samples": 20000}}
LONG = {"name": "long", "tokens": "1e8 tokens", "sequence_length": 4096, "parallelism": {"cp": 2}}


def loaded(folder: Path, *phases: dict[str, Any]) -> Scenario:
    """The small scenario with these phases in place of its tokens: 16 GPUs, tp 4, pp 2, dp 2."""
    return load_small(folder, training={"tokens": None, "phases": list(phases)})


def test_a_ramp_by_hand() -> None:
    """20,000 sequences in three parts of 6,666 2/3: batches 4, 8, 12, then 16.

    Batch 4 until 6,666.7 are done: 1,667 steps, 6,668. Batch 8 until 13,333.3: (13,333.3 - 6,668)/8 = 833.2, 834 steps,
    13,340. Batch 12 until 20,000: 555 steps, exactly. Then 1e9/1,024 - 20,000 = 956,562.5 sequences: 59,786 steps.
    """
    found = stretches(Phase.model_validate(RAMPED), 0, RECIPE)
    assert [(each.changes["global_batch_size"], each.steps) for each in found] == [
        (4, 1667), (8, 834), (12, 555), (16, 59786)
    ]  # fmt: skip
    assert [each.name for each in found][:2] == ["short, batch 4", "short, batch 8"]
    assert math.fsum(each.changes["tokens"] for each in found) == 1e9


def megatron(start: int, increment: int, samples: float, batch: int, total: float) -> dict[int, int]:
    """Oracle: Megatron-LM's RampupBatchsizeNumMicroBatchesCalculator, step by step."""
    per_increment = samples / ((batch - start) // increment)
    steps: dict[int, int] = {}
    consumed = 0
    while consumed < total:
        size = batch if consumed >= samples else min(start + int(consumed / per_increment) * increment, batch)
        steps[size] = steps.get(size, 0) + 1
        consumed += size
    return steps


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 5), st.integers(1, 300))
def test_a_ramp_is_that_of_megatron(start: int, increment: int, count: int, samples: int) -> None:
    """Law: as many steps of each batch size, in every ramp that ends within the phase."""
    batch = start + increment * count
    total = samples + 5 * batch + 1
    phase = Phase.model_validate(
        {
            "name": "a",
            "tokens": f"{total} tokens",
            "ramp": {"from": start, "increment": increment, "samples": samples},
        }
    )
    recipe = {"sequence_length": 1, "global_batch_size": batch, "micro_batch_size": 1}
    found = {each.changes["global_batch_size"]: each.steps for each in stretches(phase, 0, recipe)}
    assert found == megatron(start, increment, samples, batch, total)


def test_phases_are_scenarios_of_their_own(tmp_path: Path) -> None:
    """Each has its recipe and its steps; what it does not say is as in the scenario; dp follows from the GPUs."""
    scenario = loaded(tmp_path, RAMPED, LONG)
    assert scenario.training.tokens == 1.1e9
    names = [name for name, _ in scenario.phases]
    assert names == ["short, batch 4", "short, batch 8", "short, batch 12", "short, batch 16", "long"]
    steps = [phase.steps for _, phase in scenario.phases]
    assert steps == [1667, 834, 555, 59786, 1526]  # 1e8 / (16 · 4,096) = 1,525.9
    assert scenario.steps == sum(steps)
    long = scenario.phases[-1][1]
    assert (long.parallelism.tp, long.parallelism.cp, long.parallelism.pp, long.parallelism.dp) == (4, 2, 2, 1)
    assert long.parallelism.sequence_parallel
    assert (long.training.sequence_length, long.training.global_batch_size) == (4096, 16)
    assert long.training.phases == ()
    assert long.num_microbatches == 16
    assert all(phase.gpus == 16 for _, phase in scenario.phases)


def test_a_run_without_phases_is_one(tmp_path: Path) -> None:
    """It is the scenario itself."""
    scenario = load_small(tmp_path)
    assert scenario.phases == (("training", scenario),)


def test_a_phase_may_change_the_tensor_degree(tmp_path: Path) -> None:
    """What followed from tp follows from the new one."""
    scenario = loaded(tmp_path, {"name": "a", "tokens": "1e9 tokens", "parallelism": {"tp": 1}})
    split = scenario.phases[0][1].parallelism
    assert (split.tp, split.dp, split.etp, split.sequence_parallel) == (1, 8, 1, False)


def test_a_resolved_run_is_read_back(tmp_path: Path) -> None:
    """Phases are written out and mean the same; an editor accepts both."""
    scenario = loaded(tmp_path, RAMPED, LONG)
    resolved = scenario.resolved()
    assert resolved["training"]["phases"][0]["ramp"]["from"] == 4
    again = load_small(tmp_path, **resolved)
    assert again.training == scenario.training
    assert again.resolved() == resolved
    schema = scenario_schema()
    assert problems(resolved, schema, schema) == []


@pytest.mark.parametrize(
    ("phases", "error", "message"),
    [
        ((RAMPED, RAMPED), ScenarioError, "'short' is the name of 2 phases"),
        (({**RAMPED, "ramp": {"from": 4, "increment": 5, "samples": 9}},), ScenarioError, "increment that divides 12"),
        (({**RAMPED, "ramp": {"from": 16, "increment": 4, "samples": 9}},), ScenarioError, "start below 16"),
        (({**RAMPED, "ramp": {"from": 4, "increment": 4, "samples": 1e9}},), ScenarioError, "use fewer samples"),
        (
            ({**RAMPED, "ramp": {"from": 0, "increment": 4, "samples": 9}},),
            ScenarioError,
            r"ramp\.from: 0 must be more",
        ),
        (({"name": "a"},), ScenarioError, r"phases\.0\.tokens: required"),
        (({"name": "a", "tokens": "1 tokens", "lr": 1},), ScenarioError, "unknown key 'lr'"),
        (({**RAMPED, "ramp": {"from": 1, "increment": 5, "samples": 9}},), LayoutError, "phase 'short, batch 1': glo"),
        (({**LONG, "parallelism": {"tp": 3}},), LayoutError, "phase 'long': tp 3 × cp 1 × pp 2"),
        (({**LONG, "parallelism": {"dp": 1}},), LayoutError, "= 8 GPUs, but the job has 16; leave dp out"),
        (({**LONG, "parallelism": {}, "global_batch_size": 15},), LayoutError, "phase 'long': global_batch_size 15"),
    ],
)
def test_phases_that_do_not_fit_are_refused(
    phases: tuple[dict[str, Any], ...], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """Each names the phase, the value and the fix, and where it is written."""
    with pytest.raises(error, match=message) as caught:
        loaded(tmp_path, *phases)
    assert "small.yaml" in str(caught.value)


def test_tokens_of_the_run_are_those_of_its_phases(tmp_path: Path) -> None:
    """Two lengths of one run would be two runs."""
    with pytest.raises(ScenarioError, match="tokens: 1e\\+13, but the phases have 1e\\+09 together; leave tokens out"):
        load_small(tmp_path, training={"phases": [RAMPED]})


def test_a_ramp_of_single_steps_is_refused() -> None:
    """Every batch size is simulated once: 20,000 of them would take hours."""
    phase = Phase.model_validate(
        {"name": "a", "tokens": "1e12 tokens", "ramp": {"from": 1, "increment": 1, "samples": 9}}
    )
    with pytest.raises(ValueError, match="makes 19,999 batch sizes on the way; at most 100 are simulated: use 200"):
        stretches(phase, 0, {**RECIPE, "global_batch_size": 20000})


def test_a_phase_may_train_another_model(tmp_path: Path) -> None:
    """By name, as a file, or inline; written out it is read back; a name that is not known says where."""
    vision = {"name": "vision", "tokens": "1e8 tokens"}
    scenario = loaded(tmp_path, LONG, {**vision, "model": "gpt2-medium"})
    assert [own.model.name for _, own in scenario.phases] == ["tiny", scenario.phases[1][1].model.name]
    assert scenario.phases[1][1].model.num_layers == 24
    resolved = scenario.resolved()
    assert load_small(tmp_path, **resolved).training == scenario.training
    schema = scenario_schema()
    assert problems(resolved, schema, schema) == []
    inline = {**small()["model"], "num_layers": 8}
    assert loaded(tmp_path, {**vision, "model": inline}).phases[0][1].model.num_layers == 8
    with pytest.raises(ScenarioError, match=r"training\.phases\.0\.model.*no model file.*gpt2-mediun"):
        loaded(tmp_path, {**vision, "model": "gpt2-mediun"})
    with pytest.raises(LayoutError, match="phase 'vision'"):
        loaded(tmp_path, {**vision, "model": {**inline, "num_layers": 1}})
