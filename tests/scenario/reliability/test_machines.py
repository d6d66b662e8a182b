"""Spares, repairs and lemons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from simulator.scenario.reliability.durations import LogNormal
from simulator.scenario.reliability.machines import Lemons, Repair, Spares


@pytest.mark.parametrize(
    ("written", "left", "standing"),
    [
        ({}, 12, (12, 0)),
        (4, 12, (4, 0)),
        (0, 12, (0, 0)),
        ({"hot": 16, "warm": 48}, 64, (16, 48)),
        ({"warm": 48}, 64, (16, 48)),
        ({"warm": 48}, 8, (0, 48)),
    ],
)
def test_a_bare_number_is_hot_spares_and_none_is_all(written: Any, left: int, standing: tuple[int, int]) -> None:
    """Nodes that the job leaves over are hot spares unless they are said to be warm or their number is stated."""
    spares = Spares.model_validate(written)
    assert spares.standing_by(left) == standing
    assert Spares.model_validate_json(spares.model_dump_json(exclude_none=True)) == spares


def test_airesims_pools() -> None:
    """16 hot, 48 warm after a selection of 3 min, 200 pre-empted after 20 min."""
    spares = Spares.model_validate({"hot": 16, "warm": 48, "preempted": 200})
    assert (spares.swap, spares.selection, spares.preemption) == (LogNormal(0), LogNormal(180.0), LogNormal(1200.0))


def test_the_default_shop_is_airesims() -> None:
    """2 h, of which 80 % take 2 days more: 40.4 h in the mean."""
    shop = Repair()
    assert shop.automatic.mean + shop.escalation * shop.manual.mean == pytest.approx(40.4 * 3600)
    assert (shop.silent_automatic, shop.silent_manual) == (0.4, 0.2)


@pytest.mark.parametrize(
    ("model", "value", "message"),
    [
        (Spares, -1, "hot"),
        (Spares, 2.5, "hot"),
        (Spares, True, "hot"),
        (Spares, {"hot": 1, "cold": 3}, "cold"),
        (Repair, {"escalation": 1.1}, "escalation"),
        (Repair, {"silent_manual": -0.1}, "silent_manual"),
        (Lemons, {"share": 0.1, "factor": 0.5}, "factor"),
        (Lemons, {"share": 1.1, "factor": 5}, "share"),
        (Lemons, {"share": 0.1, "factor": 5, "retire_after": -1}, "retire_after"),
    ],
)
def test_impossible_machines_are_refused(model: type[Spares | Repair | Lemons], value: Any, message: str) -> None:
    """Counts are whole and not negative, probabilities are from 0 to 1, a lemon is no better than the others."""
    with pytest.raises(ValidationError, match=message):
        model.model_validate(value)
