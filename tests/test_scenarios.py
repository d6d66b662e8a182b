"""Every shipped scenario and topology works, names its sources and is compared with published figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulator.physics.cluster import build_cluster
from simulator.scenario.scenario import load, load_cluster
from simulator.scenario.shipped import shipped_names
from simulator.studies.simulate import simulate

LARGE = [name for name in shipped_names("scenarios") if name.startswith("gpt4")]
SMALL = [name for name in shipped_names("scenarios") if name not in LARGE and "/" not in name]


def check(name: str) -> dict[str, Any]:
    """What holds for any scenario; returns its figures."""
    scenario = load(name)
    assert scenario.description
    assert scenario.source
    simulation = simulate(scenario)
    figures = json.loads(json.dumps(simulation.figures(), allow_nan=False))
    step = figures["step"]
    assert sum(step["breakdown_s"].values()) == step["step_time_s"]
    assert all(seconds >= 0 for seconds in step["breakdown_s"].values())
    assert 0 < step["mfu_causal"] <= step["mfu"] <= step["hfu"] * (1 + 1e-9) < 1
    assert all(stage["total_bytes"] <= figures["memory"]["capacity_bytes"] for stage in figures["memory"]["stages"])
    assert all(entry["simulated"] is not None and entry["source"] for entry in figures["expected"])
    if "campaign" in figures:
        assert figures["campaign"]["effective_mfu"] <= step["mfu"] * (1 + 1e-12)
    return figures


@pytest.mark.parametrize("name", SMALL)
def test_a_scenario_runs(name: str) -> None:
    """It fits, its parts add up, and no figure is impossible."""
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_scenario_runs(name: str) -> None:
    """The same for the runs on some 10,000 GPUs."""
    check(name)


@pytest.mark.parametrize("place", ["roce", "nvl72"])
def test_doubling_tensor_parallelism_costs_tokens(place: str) -> None:
    """With the same batch TP 16 runs twice the microbatches, each with the same collectives on half the work."""
    step = {tp: check(f"tp8-vs-tp16/{place}-tp{tp}")["step"] for tp in (8, 16)}
    assert step[16]["tokens_per_s"] < 0.9 * step[8]["tokens_per_s"]
    share = {tp: found["breakdown_s"]["exposed_tp"] / found["step_time_s"] for tp, found in step.items()}
    assert share[16] > 1.2 * share[8]


def drop(place: str, *changes: str) -> float:
    """Tokens/s/GPU of TP 16 over those of TP 8, less one, of the 3.6B model."""
    tokens = {
        tp: simulate(load(f"tp8-vs-tp16/nanotron-3.6b-{place}-tp{tp}", changes)).step_figures["tokens_per_s_per_gpu"]
        for tp in (8, 16)
    }
    return float(tokens[16] / tokens[8] - 1)


def test_tensor_parallelism_across_nodes_costs_what_was_published() -> None:
    """-43 % in the Ultra-Scale Playbook (micro batch 12 -> 16), -47 % in its grid (16 both); not in an NVL72 rack."""
    same = ("training.micro_batch_size=16", "training.global_batch_size=256")
    assert drop("h100") == pytest.approx(-0.43, abs=0.08)
    assert drop("h100", *same) == pytest.approx(6308.15 / 11855.46 - 1, abs=0.08)
    assert drop("nvl72") > -0.35
    assert drop("nvl72", *same) > -0.35


@pytest.mark.parametrize("name", shipped_names("topologies"))
def test_a_topology_builds(name: str) -> None:
    """It has a source and as many GPUs as it says."""
    cluster = load_cluster(name)
    assert cluster.source
    assert build_cluster(cluster).gpu_count == cluster.gpus
