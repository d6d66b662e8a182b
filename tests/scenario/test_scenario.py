"""Loading a scenario: names resolved, overrides applied, a degree derived, a dump that loads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from simulator.errors import LayoutError, ScenarioError
from simulator.physics.collectives.algorithms import ALGORITHMS
from simulator.scenario.scenario import load, load_cluster, model_names
from simulator.scenario.training import Algorithm
from tests.small import load_small


def test_a_shipped_name_is_resolved() -> None:
    """The cluster file, the catalogue model and the accelerator stand in the scenario."""
    scenario = load("megatron-175b-1024")
    assert scenario.cluster.name == "selene-a100"
    assert scenario.model.num_layers == 96
    assert scenario.accelerator.name == "a100-80gb"
    assert scenario.gpus == 1024
    assert scenario.num_microbatches == 96  # 1,536 sequences / 16 replicas
    assert scenario.steps == 95_368  # 300e9 / (1,536 · 2,048) = 95,367.4: the last step is partly filled


def test_an_override_derives_the_degree_anew() -> None:
    """A degree left out follows from the job's GPUs."""
    scenario = load("megatron-175b-1024", ["parallelism.dp=null", "parallelism.pp=4"])
    assert scenario.parallelism.dp == 32


def test_a_job_is_not_larger_than_its_cluster() -> None:
    """More GPUs than there are is an error that names both."""
    with pytest.raises(LayoutError, match=r"job_gpus 9,999 are more than the 4,480"):
        load("megatron-175b-1024", ["job_gpus=9999"])


def test_a_huggingface_config_is_a_model(tmp_path: Path) -> None:
    """A config.json beside the scenario is read; one that is no JSON is refused by name."""
    config = {
        "model_type": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "vocab_size": 50257,
        "n_positions": 1024,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert (
        load(
            "megatron-175b-1024", [f"model={path}", "parallelism={tp: 4, pp: 4}", "training.schedule=1f1b"]
        ).model.hidden_size
        == 768
    )
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ScenarioError, match="not JSON"):
        load("megatron-175b-1024", [f"model={path}"])


def test_the_dump_loads_again(tmp_path: Path) -> None:
    """The resolved scenario is a scenario file that resolves to itself."""
    resolved = load_small(tmp_path).resolved()
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps(resolved), encoding="utf-8")
    assert load(path).resolved() == resolved


def test_unknown_names_offer_the_nearest() -> None:
    """Clusters and models."""
    with pytest.raises(ScenarioError, match="did you mean 'a100-25k'"):
        load_cluster("a100-25kk")
    with pytest.raises(ScenarioError, match="did you mean 'gpt3-175b'"):
        load("megatron-175b-1024", ["model=gpt3-175"])
    assert len(model_names()) > 40


def test_an_override_reaches_into_the_files_that_a_scenario_names() -> None:
    """A shipped cluster or model can be varied without a copy; a wrong field of it is refused as one of its own."""
    scenario = load("gpt4-a100", ["cluster.topology.nodes=12800", "model.vocab_size=51200"])
    assert scenario.cluster.gpus == 102_400
    assert scenario.model.vocab_size == 51_200
    with pytest.raises(ScenarioError, match="did you mean 'nodes'"):
        load("gpt4-a100", ["cluster.topology.nodess=12800"])


def test_an_imbalance_of_nothing_is_refused() -> None:
    """Without experts on several ranks there is nothing to unbalance; one rank cannot receive more than all."""
    with pytest.raises(LayoutError, match="needs experts on several ranks"):
        load("llama-65b-2048", ["training.expert_imbalance=0.2"])
    with pytest.raises(LayoutError, match="use less than 15"):
        load("gpt4-a100", ["training.expert_imbalance=15"])


def test_a_capacity_of_experts() -> None:
    """It needs experts; with them it is taken as it is."""
    with pytest.raises(
        LayoutError, match=r"expert_capacity_factor 1\.25 needs a mixture-of-experts model; leave it out"
    ):
        load("llama-65b-2048", ["training.expert_capacity_factor=1.25"])
    loaded = load("gpt4-a100", ["training.expert_capacity_factor=1.25", "training.expert_padding=true"])
    assert (loaded.training.expert_capacity_factor, loaded.training.expert_padding) == (1.25, True)
    with pytest.raises(ScenarioError, match="expert_capacity_factor: -1 must be more than 0"):
        load("gpt4-a100", ["training.expert_capacity_factor=-1"])
    with pytest.raises(ScenarioError, match="expert_padding true needs a capacity to pad to"):
        load("gpt4-a100", ["training.expert_padding=true"])


def test_an_axis_can_be_given_any_algorithm_there_is() -> None:
    """What the scenario may name is what collectives have."""
    assert set(get_args(Algorithm)) == set(ALGORITHMS)
