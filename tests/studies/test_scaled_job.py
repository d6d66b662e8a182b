"""Weak scaling of a whole scenario: batch, cluster, storage and spares grow with dp."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import LayoutError
from simulator.scenario.scenario import Scenario, load
from simulator.studies.scaled_job import nearest_replicas, neighbours, replica_gpus, with_replicas
from tests.small import load_small


def test_twice_the_replicas_on_twice_the_cluster(tmp_path: Path) -> None:
    """16 GPUs on 2 of 3 nodes become 32 on 4 of 6; the batch of a replica stays 8, the storage doubles."""
    small = load_small(tmp_path, reliability={"spares": 1})
    twice = with_replicas(small, 4)
    assert (twice.gpus, twice.cluster.topology.nodes, twice.job_gpus) == (32, 6, 32)
    assert twice.training.global_batch_size == 32
    assert twice.num_microbatches == small.num_microbatches
    assert twice.cluster.storage is not None
    assert twice.cluster.storage.write_bandwidth == 20e9
    assert twice.reliability is not None
    assert twice.reliability.spares.hot == 2
    assert twice.training.tokens == small.training.tokens
    assert small.steps == pytest.approx(2 * (twice.steps or 0), abs=2)


def test_the_same_number_changes_nothing(tmp_path: Path) -> None:
    """dp as it is."""
    small = load_small(tmp_path)
    assert with_replicas(small, 2) is small


def test_the_result_is_a_scenario_file(tmp_path: Path) -> None:
    """What was scaled can be written, read and run."""
    scaled = with_replicas(load_small(tmp_path), 8)
    assert Scenario.model_validate(scaled.resolved()).gpus == 64


def test_upper_tiers_grow_and_pods_do_not() -> None:
    """GPT-4's four spines per rail for 3,200 nodes are eight for twice as many, and still 20 nodes a leaf."""
    gpt4 = load("gpt4-a100")
    twice = with_replicas(gpt4, 416).cluster.topology
    assert twice.nodes == 6400
    assert twice.model_dump()["spines"] == 8
    assert twice.model_dump()["nodes_per_leaf"] == 20


def test_phases_scale_too(tmp_path: Path) -> None:
    """A phase's batch and its ramp keep their size per replica."""
    ramp = {"from": 4, "increment": 4, "samples": 64.0}
    phases = [
        {"name": "one", "tokens": "1e9 tokens", "ramp": ramp},
        {"name": "two", "tokens": "1e9 tokens", "global_batch_size": 8},
    ]
    training = {"tokens": None, "phases": phases}
    first, second = with_replicas(load_small(tmp_path, training=training), 4).training.phases
    assert first.ramp is not None
    assert (first.ramp.from_, first.ramp.increment) == (8, 8)
    assert second.global_batch_size == 16


def test_the_nearest_number_that_the_experts_allow() -> None:
    """GPT-4's experts are split over 16 of tp 8 · dp ranks: of dp about 26 it is 32, not 26."""
    gpt4 = load("gpt4-a100")
    with pytest.raises(LayoutError):
        with_replicas(gpt4, 26)
    near = nearest_replicas(gpt4, 26)
    assert near is not None
    assert near.parallelism.dp == 32
    assert replica_gpus(gpt4) == 120
    assert [found.parallelism.dp for found in neighbours(gpt4, 40)] == [32, 48]


def test_what_cannot_grow() -> None:
    """A list of nodes is one placement, and no replica is none."""
    with pytest.raises(LayoutError, match="placement"):
        with_replicas(load("tp8-vs-tp16/nvl72-tp8"), 8)
    with pytest.raises(LayoutError, match="dp 0"):
        with_replicas(load("gpt4-a100"), 0)
