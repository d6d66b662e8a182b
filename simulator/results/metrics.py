"""What a step means: figures as functions of records.

Every key carries its unit in its name and means what docs/definitions.md says.

Pinned by tests/results/test_metrics.py.
"""

from __future__ import annotations

from typing import Any

from simulator.physics.flops import step_flops, step_flops_6nd
from simulator.physics.program.steps import StepProgram
from simulator.physics.schedules.closed_forms import ideal_bubble_fraction, ideal_bubble_overhead
from simulator.records import StepResult
from simulator.results.waterfall import breakdown
from simulator.scenario.scenario import Scenario
from simulator.scenario.units import FlopPerSecond


def job_peak(scenario: Scenario) -> FlopPerSecond:
    """Dense peak of all job GPUs in the compute precision."""
    return scenario.gpus * scenario.accelerator.peak_flops[scenario.training.precision]


def step_figures(scenario: Scenario, program: StepProgram, result: StepResult) -> dict[str, Any]:
    """Figures of one step: the `step` object of the JSON output."""
    peak, time = job_peak(scenario), result.step_time
    model, training = scenario.model, scenario.training
    causal = step_flops(model, training, causal=True)
    schedule, pp = training.schedule, scenario.parallelism.pp or 1
    together = schedule.synchronous
    parts = breakdown(result, program.table, causal / peak, synchronous=together)
    shape = schedule.kind, pp, scenario.num_microbatches, schedule.vpp
    return {
        "step_time_s": time,
        "tokens_per_s": training.tokens_per_step / time,
        "tokens_per_s_per_gpu": training.tokens_per_step / time / scenario.gpus,
        "mfu": step_flops(model, training) / (peak * time),
        "mfu_causal": causal / (peak * time),
        "mfu_6nd": step_flops_6nd(model, training) / (peak * time),
        "hfu": program.executed_flops / (peak * time),
        "bubble_fraction": parts["bubble"] / time,
        "bubble_overhead": parts["bubble"] / (time - parts["bubble"]),
        "bubble_fraction_theory": ideal_bubble_fraction(*shape, synchronous=together),
        "bubble_overhead_theory": ideal_bubble_overhead(*shape, synchronous=together),
        "breakdown_s": parts,
        "model_flops": step_flops(model, training),
        "rank_classes": len(program.rank_counts),
        "coflow_classes": len(program.coflows),
        "link_classes": program.link_classes,
        "periods_skipped": result.skipped,
        "events": result.events,
        "solves": result.solves,
    }
