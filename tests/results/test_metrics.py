"""Figures of a step, worked out by hand on a small job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simulator.engine.iteration import simulate_step
from simulator.physics.program.steps import StepProgram
from simulator.physics.schedules.tables import build_table
from simulator.records import StepResult
from simulator.results.metrics import job_peak, step_figures
from simulator.scenario.scenario import Scenario
from tests.engine.programs import pipeline, program
from tests.small import load_small

PEAK = 16 * 312e12  # 16 A100, dense bf16


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    """4 layers of hidden 1024, 16 sequences of 1024 tokens, tp 4, pp 2, dp 2."""
    return load_small(tmp_path)


def plan_of_the_job(step_time: float, executed_flops: float) -> tuple[StepProgram, StepResult]:
    """Two ranks, 8 microbatches of 1F1B with F = B/2: bubble 1/9 of the step."""
    table = build_table("1f1b", pp=2, num_microbatches=8)
    unit = step_time / (8 + 1) / 3
    plan = pipeline(table, lambda action: unit if action.kind == "F" else 2 * unit, blocking=True)
    return replace(plan, executed_flops=executed_flops), simulate_step(plan)


def test_utilisations_by_hand(scenario: Scenario) -> None:
    """Per token: matmuls 2 · (4 layers · (4 h² + 2 h · 4h) + h · V), attention 4 layers · 4 h s; three times for B.

    4 · 12 · 1024² + 1024 · 32,000 = 83,099,648 parameters in matmuls, twice that in FLOPs: 166,199,296. Attention
    16 · 1024 · 1024 = 16,777,216, masked 16 · 1024 · 512.5 = 8,396,800. Times 3 times 16,384 tokens.
    """
    step_time = 0.012
    plan, result = plan_of_the_job(step_time, executed_flops=PEAK * step_time / 4)
    figures = step_figures(scenario, plan, result)
    model, causal = (3 * 16384 * (166_199_296 + attention) for attention in (16_777_216, 8_396_800))
    assert job_peak(scenario) == PEAK
    assert figures["step_time_s"] == pytest.approx(step_time)
    assert figures["tokens_per_s"] == pytest.approx(16384 / step_time)
    assert figures["tokens_per_s_per_gpu"] == pytest.approx(1024 / step_time)
    assert figures["model_flops"] == model
    assert figures["mfu"] == pytest.approx(model / (PEAK * step_time))
    assert figures["mfu_causal"] == pytest.approx(causal / (PEAK * step_time))
    assert figures["mfu_6nd"] == pytest.approx(6 * scenario.model.active_parameters * 16384 / (PEAK * step_time))
    assert figures["hfu"] == pytest.approx(0.25)
    assert figures["breakdown_s"]["ideal_compute"] == pytest.approx(figures["mfu_causal"] * step_time, rel=1e-12)


def test_bubbles_are_those_of_the_schedule(scenario: Scenario) -> None:
    """p = 2, m = 8: fraction 1/9, overhead 1/8, and the theory beside them."""
    plan, result = plan_of_the_job(0.009, executed_flops=0.0)
    figures = step_figures(scenario, plan, result)
    assert figures["bubble_fraction"] == pytest.approx(1 / 9)
    assert figures["bubble_overhead"] == pytest.approx(1 / 8)
    assert figures["bubble_fraction_theory"] == pytest.approx(1 / 9)
    assert figures["bubble_overhead_theory"] == pytest.approx(1 / 8)
    assert sum(figures["breakdown_s"].values()) == figures["step_time_s"] == result.step_time


def test_work_that_was_counted_is_passed_on(scenario: Scenario) -> None:
    """Events and solves of the record are figures, so that a change of speed shows."""
    result = StepResult(1.0, (8, 8), (), events=12, solves=3)
    figures = step_figures(scenario, program([], []), result)
    assert (figures["events"], figures["solves"]) == (12, 3)
