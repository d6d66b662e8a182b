"""What a step and a campaign mean: figures as functions of records.

Every key carries its unit in its name and means what docs/definitions.md says.

Pinned by tests/results/test_metrics.py.
"""

from __future__ import annotations

from typing import Any

from simulator.physics.flops import step_flops, step_flops_6nd
from simulator.physics.program.steps import StepProgram
from simulator.physics.schedules.closed_forms import ideal_bubble_fraction, ideal_bubble_overhead
from simulator.records import CampaignResult, StepResult
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


def campaign_figures(scenario: Scenario, campaign: CampaignResult, spare_gpus: int) -> dict[str, Any]:
    """Figures of the whole run: the `campaign` object of the JSON output.

    `effective_mfu` counts the steps that were kept over job GPUs and wall-clock, `effective_mfu_owned` over all GPUs
    paid for: the job's and the spares'. GPU-hours and cost are of owned GPUs.
    """
    kept = step_flops(scenario.model, scenario.training) * campaign.steps
    wall, owned = campaign.wall_clock, scenario.gpus + spare_gpus
    effective = kept / (job_peak(scenario) * wall)
    gpu_hours = owned * wall / 3600
    price = scenario.cluster.price_per_gpu_hour
    time = campaign.time_s
    return {
        "wall_clock_s": wall,
        "effective_mfu": effective,
        "effective_mfu_owned": effective * scenario.gpus / owned,
        "goodput": time["productive"] / wall,
        "failures": sum(campaign.failures.values()),
        "failures_by_class": dict(campaign.failures),
        "lost_work_s": time["lost_work"],
        "checkpoint_s": time["checkpoint"],
        "detection_s": time["detection"],
        "restart_s": time["restart"],
        "waiting_s": time["waiting"],
        "steps": campaign.steps,
        "job_gpus": scenario.gpus,
        "spare_gpus": spare_gpus,
        "gpu_hours": gpu_hours,
        "job_gpu_hours": scenario.gpus * wall / 3600,
        "cost_usd": None if price is None else gpu_hours * price,
    }
