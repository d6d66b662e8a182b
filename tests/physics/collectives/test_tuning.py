"""The catalogue of collectives: every platform finds its numbers, and unknown ones NCCL's constants."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from simulator.physics.collectives.tuning import PLAIN, Tuning, architecture_of, catalogue, tuning_of
from simulator.scenario.scenario import accelerator_names

WITHOUT = {"tpu-v4", "tpuv4"}  # no NCCL


def test_every_gpu_has_an_architecture() -> None:
    """Each accelerator that runs NCCL or RCCL; the others run with plain constants."""
    assert {name for name in accelerator_names() if not architecture_of(name)} <= WITHOUT
    assert tuning_of("no such chip") is PLAIN
    for platform in catalogue()["platforms"]:
        assert tuning_of(platform) is not PLAIN


def test_every_architecture_says_where_its_numbers_come_from() -> None:
    """Sources, and errors of the fit unless it is a prior."""
    for entry in catalogue()["architectures"].values():
        assert entry["source"]
        assert "errors" in entry or entry["source"][0].startswith("prior")


def test_fitted_numbers_are_plausible() -> None:
    """Within what the mechanism allows: links are not beaten by a tenth, hops take microseconds."""
    for platform in catalogue()["platforms"]:
        tuning = tuning_of(platform)
        assert 0.5 < tuning.nvls_efficiency <= tuning.ring_efficiency <= 1.05
        assert 0.2 < tuning.ll_share < 0.6
        assert 0 <= tuning.ring_fill < 10e-6
        assert 0.5 < tuning.network_hop < 2


def test_unknown_fields_are_refused() -> None:
    """A misspelt number must not be ignored."""
    with pytest.raises(ValidationError):
        Tuning(ring_fil="2 us")  # type: ignore[call-arg]
