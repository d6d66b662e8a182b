"""Steps of phases and batch ramps, and what the campaign is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.engine.campaign import simulate_campaign
from simulator.engine.iteration import simulate_step
from simulator.errors import ScenarioError
from simulator.physics.cluster import build_cluster
from simulator.physics.flops import step_flops
from simulator.physics.program.build import build_program
from simulator.scenario.scenario import Scenario
from simulator.studies import phases
from simulator.studies.phases import PreparedRun, Simulated, prepare_run
from simulator.studies.simulate import simulate
from tests.small import load_small

PHASES = [
    {"name": "short", "tokens": "1e8 tokens"},
    {"name": "long", "tokens": "2e7 tokens", "sequence_length": 4096, "global_batch_size": 8},
]


def _prepared(folder: Path, stretches: list[dict[str, Any]] | None = None, **changes: Any) -> PreparedRun:
    training: dict[str, Any] = {} if stretches is None else {"tokens": None, "phases": stretches}
    run = prepare_run(load_small(folder, training=training, **changes))
    assert run is not None
    return run


def _step(scenario: Scenario) -> float:
    return simulate_step(build_program(scenario, build_cluster(scenario.cluster))).step_time


def test_a_run_without_phases_is_one(tmp_path: Path) -> None:
    """All steps of `training`, with the step that was given."""
    scenario = load_small(tmp_path)
    given = Simulated(7.0, np.zeros(16, dtype=np.int64))
    run = prepare_run(scenario, given=given)
    assert run is not None
    (work,) = run.steps.works
    assert (work.name, work.steps, work.step_time) == ("training", scenario.steps, 7.0)
    assert work.flops == step_flops(scenario.model, scenario.training)
    assert prepare_run(load_small(tmp_path, training={"tokens": None}, reliability=None)) is None


def test_every_phase_has_its_own_step(tmp_path: Path) -> None:
    """Steps, seconds and FLOPs of two recipes: 1e8/16,384 and 2e7/32,768 steps, rounded up."""
    run = _prepared(tmp_path, PHASES)
    first, second = run.steps.works
    assert [work.steps for work in (first, second)] == [6104, 611]
    assert len(run.steps.recipes) == 2
    for work in (first, second):
        assert work.step_time == pytest.approx(_step(work.scenario), rel=1e-9)
        assert work.flops == step_flops(work.scenario.model, work.scenario.training)
    assert second.step_time > first.step_time
    plan = run.plan()
    assert [(phase.name, phase.steps) for phase in plan.phases] == [("short", 6104), ("long", 611)]
    assert simulate_campaign(plan, 0, step_times=run.step_times).steps == 6715


def test_a_ramp_is_one_recipe(tmp_path: Path) -> None:
    """Batches of 4, 8, 12 and 16: each simulated, in one recipe whose slowdown they share."""
    ramp = {"from": 4, "increment": 4, "samples": 30000.0}
    run = _prepared(tmp_path, [{"name": "all", "tokens": "1e8 tokens", "ramp": ramp}])
    assert [work.scenario.training.global_batch_size for work in run.steps.works] == [4, 8, 12, 16]
    assert len(run.steps.recipes) == 1
    times = [work.step_time for work in run.steps.works]
    assert times == [pytest.approx(_step(work.scenario), rel=1e-9) for work in run.steps.works]
    assert times == sorted(times)


def test_a_long_ramp_is_interpolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """29 batch sizes of which three are simulated: in between linear in the microbatches, within 1 % of simulating."""
    monkeypatch.setattr(phases, "BATCH_SIZES", 3)
    ramp = {"from": 4, "increment": 2, "samples": 50000.0}
    fields = [{"name": "all", "tokens": "1e8 tokens", "global_batch_size": 60, "ramp": ramp}]
    told: list[float] = []
    scenario = load_small(tmp_path, training={"tokens": None, "phases": fields})
    run = prepare_run(scenario, progress=told.append)
    assert run is not None
    assert (len(run.steps.works), told) == (29, [1 / 3, 2 / 3, 1.0])
    for work in run.steps.works[::7]:
        assert work.step_time == pytest.approx(_step(work.scenario), rel=0.01)


def test_a_phase_may_be_split_otherwise(tmp_path: Path) -> None:
    """tp 4 pp 2, then tp 8 pp 1: slow nodes are told apart by their stage in the first."""
    slow = [{"name": "hosts", "kind": "slow_node", "share": 0.5, "speed": 0.5}]
    stretches = [PHASES[0], {"name": "wide", "tokens": "2e7 tokens", "parallelism": {"tp": 8, "pp": 1}}]
    run = _prepared(tmp_path, stretches, reliability={"slow": slow}, parallelism={"tp": 4, "pp": 2, "dp": 2})
    plan = run.plan()
    assert plan.slow[0].classes == (1, 1)
    wide = run.step_times(1, (("slow_node", 0, 50),))
    assert wide == pytest.approx(run.step_times(1, (("slow_node", 1, 50),)))
    assert simulate_campaign(plan, 1, step_times=run.step_times).time_s["straggling"] > 0


def test_a_run_is_planned_again_with_other_failures(tmp_path: Path) -> None:
    """The steps stay; rates, saves and spares are those of the other scenario."""
    run = _prepared(tmp_path)
    other = load_small(tmp_path, reliability={"failures": [{"name": "x", "rate": "1 per day"}], "spares": 0})
    plan = run.plan(other, every=50)
    assert (plan.failures[0].name, plan.hot.size, plan.phases[0].tiers[0].every) == ("x", 0, 50)
    assert plan.phases[0].step_time == run.plan().phases[0].step_time
    assert run.step_times.simulated == 0


def test_simulate_runs_the_phases(tmp_path: Path) -> None:
    """`simulate` tells the plan that it ran, folded or not."""
    scenario = load_small(tmp_path, training={"tokens": None, "phases": PHASES})
    simulation = simulate(scenario)
    assert simulation.plan is not None
    assert simulation.campaign is not None
    assert [phase.name for phase in simulation.plan.phases] == ["short", "long"]
    assert simulation.campaign.steps == simulation.plan.steps


# --- a measured step --------------------------------------------------------------------------------------------------


def test_a_measured_step_takes_the_place_of_the_simulated_one(tmp_path: Path) -> None:
    """Exactly, and healthy MFU follows from it; the step itself is simulated and reported as before."""
    short = "training.tokens=1e9 tokens"
    plain = simulate(load_small(tmp_path, short))
    found = simulate(load_small(tmp_path, short, "reliability.step_time=60 s"))
    assert found.plan is not None
    assert found.campaign_figures is not None
    assert found.plan.phases[0].step_time == 60.0
    assert found.step_figures == plain.step_figures
    simulated = plain.step_figures["step_time_s"]
    assert found.campaign_figures["healthy_mfu"] == pytest.approx(plain.step_figures["mfu"] * simulated / 60, rel=1e-12)
    assert found.campaign_figures["effective_mfu"] <= found.campaign_figures["healthy_mfu"]


def test_phases_keep_their_proportion_to_the_measured_step(tmp_path: Path) -> None:
    """It is that of the phase with the most steps."""
    plain = _prepared(tmp_path, PHASES).steps
    found = _prepared(tmp_path, PHASES, reliability={"step_time": "60 s"}).steps
    assert found.works[0].step_time == 60.0
    proportion = plain.works[1].step_time / plain.works[0].step_time
    assert found.works[1].step_time == pytest.approx(60 * proportion, rel=1e-12)
    assert [step.seconds for step in found.steps] == [work.step_time for work in found.works]


def test_slow_machines_slow_a_measured_step_as_they_do_the_simulated_one(tmp_path: Path) -> None:
    """By the same factor."""
    slow = {"slow": [{"name": "slow", "kind": "slow_node", "share": 0.5, "speed": 0.5}]}
    state = (("slow_node", 0, 50),)
    times = {}
    for stated in (None, "60 s"):
        run = _prepared(tmp_path, reliability={**slow, "step_time": stated})
        run.plan()
        times[stated] = run.step_times(0, state) / run.step_times(0, ())
    assert times["60 s"] == pytest.approx(times[None], rel=1e-12)
    assert times[None] > 1.1


def test_a_measured_step_faster_than_the_peak_is_refused(tmp_path: Path) -> None:
    """It says what the least is."""
    with pytest.raises(ScenarioError, match="of the peak; state at least"):
        _prepared(tmp_path, reliability={"step_time": "1 ms"})
