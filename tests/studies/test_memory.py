"""`trainsim memory`: the plan agrees with `run`, a scenario that does not fit says what would make it fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.scenario.scenario import load
from simulator.studies.memory import memory_plan
from simulator.studies.simulate import plan_memory
from tests.small import write_small

HUGE: dict[str, Any] = {
    "model": {"num_layers": 64, "hidden_size": 12_288, "num_attention_heads": 96, "ffn_hidden_size": 49_152}
}


def test_plan_is_what_run_shows(tmp_path: Path) -> None:
    """The stages of the plan are those of the simulation; totals nest."""
    path = write_small(tmp_path)
    plan = memory_plan(path)
    assert plan.stages == plan_memory(load(path))
    assert plan.problem is None
    assert plan.changes == ()
    figures = json.loads(json.dumps(plan.figures(), allow_nan=False))
    assert figures["fits"] is True
    for stage in figures["stages"]:
        assert stage["allocated_bytes"] <= stage["reserved_bytes"] <= stage["device_bytes"]
        assert sum(stage["parts_bytes"].values()) == pytest.approx(stage["device_bytes"])
        assert 0 < stage["share_of_capacity"] < 1
    assert figures["largest_parts"][0]["bytes"] >= figures["largest_parts"][1]["bytes"]


def test_microbatches_in_flight_count_whole_ones(tmp_path: Path) -> None:
    """1F1B over 2 ranks holds 2 and 1."""
    figures = memory_plan(write_small(tmp_path)).figures()
    assert [stage["microbatches_in_flight"] for stage in figures["stages"]] == [2.0, 1.0]


def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    """Every change was tried: those that fit come first, and setting one makes the scenario fit."""
    path = write_small(tmp_path, **HUGE)
    plan = memory_plan(path)
    assert plan.problem is not None
    assert plan.fullest.needed > plan.capacity
    assert [change.fits for change in plan.changes] == sorted((change.fits for change in plan.changes), reverse=True)
    for change in plan.changes:
        again = memory_plan(path, change.overrides)
        assert (again.problem is None) == change.fits
        assert again.fullest.needed == change.needed


def test_overrides_are_kept_in_what_is_tried(tmp_path: Path) -> None:
    """A change is tried on top of what `--set` said: here with one moment less precise than the file has it."""
    path = write_small(tmp_path, **HUGE)
    plan = memory_plan(path, ["training.optimizer.state_dtype=bf16"])
    assert not any("state_dtype" in str(change) for change in plan.changes)
    both = ["training.optimizer.state_dtype=bf16", "training.recompute=full"]
    (full,) = [change for change in plan.changes if change.overrides == ("training.recompute=full",)]
    assert full.needed == memory_plan(path, both).fullest.needed
