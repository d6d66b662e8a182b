"""The measured error beside a prediction: nearest by accelerator, stack, kind of model and scale."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.scenario.scenario import load
from simulator.studies import uncertainty as module
from simulator.studies.runs.score import Outcome
from simulator.studies.uncertainty import Validated, error_table, read_errors, uncertainty, write_errors

TABLE = (
    Validated("a100-80gb", "megatron-2021", False, 32, 1920, 7, 0.03, -0.01),
    Validated("a100-80gb", "nanotron-2024", False, 8, 512, 80, 0.05, 0.0),
    Validated("h100", "megatron-2021", False, 8, 64, 9, 0.1, 0.1),
)


def test_nearest_by_accelerator_then_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron's 175B on 1,024 A100 finds the runs of the same stack, and no warning."""
    monkeypatch.setattr(module, "read_errors", lambda: TABLE)
    found, warnings = uncertainty(load("megatron-175b-1024"))
    assert found == {"mape": 0.03, "bias": -0.01, "group": TABLE[0].name, "rows": 7}
    assert warnings == []


def test_outside_validated_ground_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-4 on 24,960 A100 is a mixture of experts and larger than anything measured."""
    monkeypatch.setattr(module, "read_errors", lambda: TABLE)
    found, warnings = uncertainty(load("gpt4-a100"))
    assert found is not None
    (warning,) = warnings
    assert "outside validated ground" in warning
    assert "mixtures of experts" in warning
    assert "24,960 GPUs" in warning


def test_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known."""
    monkeypatch.setattr(module, "read_errors", lambda: ())
    assert uncertainty(load("megatron-175b-1024"))[0] is None


def row(gpus: int, predicted: float, **traits: Any) -> Outcome:
    """An outcome measured at one second."""
    known = {"accelerator": "h100", "stack": "s", "moe": False, "gpus": gpus, **traits}
    return Outcome("a", "g", "s", 1.0, predicted, traits=known)


def test_small_scales_are_joined() -> None:
    """Six rows on 8 GPUs and one on 64: too few for an entry of their own, so seven rows from 8 to 64 GPUs."""
    (entry,) = error_table([*(row(8, 1.1) for _ in range(6)), row(64, 0.9)])
    assert (entry.least_gpus, entry.most_gpus, entry.rows) == (8, 64, 7)
    assert (entry.mape, entry.bias) == (0.1, round(0.5 / 7, 4))


def test_fitted_rows_count_only_without_others() -> None:
    """Five fitted rows at +50 % beside five others at +10 %: 10 %; alone they are an error in sample."""
    others = [row(8, 1.1) for _ in range(5)]
    ours = [Outcome(f"f{i}", "g", "s", 1.0, 1.5, traits=others[0].traits) for i in range(5)]
    (entry,) = error_table([*others, *ours], [each.id for each in ours])
    assert (entry.mape, entry.in_sample) == (0.1, False)
    (alone,) = error_table(ours, [each.id for each in ours])
    assert (alone.mape, alone.in_sample) == (0.5, True)
    assert alone.name.endswith(", in sample")


def test_the_table_can_be_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What is written is what is read; the shipped table is not empty."""
    assert read_errors()
    path = tmp_path / "errors.yaml"
    path.write_text(write_errors(TABLE), encoding="utf-8")
    monkeypatch.setattr(module, "ERRORS", path)
    read_errors.cache_clear()
    try:
        assert read_errors() == TABLE
    finally:
        read_errors.cache_clear()
