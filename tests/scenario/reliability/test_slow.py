"""Slow machines and links: how much they lose, and sources that mean nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from simulator.scenario.reliability.slow import SlowSource


def source(**fields: Any) -> SlowSource:
    """Half a per cent of nodes at 0.9 of their speed, or what `fields` say."""
    given = {"name": "slow", "kind": "slow_node", "share": 0.005, "speed": 0.9, **fields}
    return SlowSource.model_validate({name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({}, (10, 10)),
        ({"speed": {"between": [0.5, 0.9]}}, (10, 50)),
        ({"kind": "slow_nic", "speed": None, "capacity": 0.25}, (75, 75)),
        ({"kind": "degraded_link", "speed": None, "capacity": {"between": [0.1, 1.0]}}, (1, 90)),
        ({"speed": 0.001}, (99, 99)),
        # a job at 0.1 to 0.8 of its speed: steps take 1/0.8 - 1 = 25 % to 1/0.1 - 1 = 900 % longer
        ({"kind": "job", "speed": {"between": [0.1, 0.8]}}, (25, 900)),
    ],
)
def test_severity_is_what_is_lost_in_whole_per_cent(fields: dict[str, Any], severity: tuple[int, int]) -> None:
    """Least and most; something is always lost, and never all."""
    assert source(**fields).severity == severity


def test_what_is_written_is_read_back() -> None:
    """A source with all its fields in JSON gives the same source."""
    full = source(rate="1 per 1000 node-days", duration={"median": "1 h", "sigma": 1}, detection="1 d", swap=True)
    assert SlowSource.model_validate_json(full.model_dump_json(exclude_none=True)) == full


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speed": None}, "a slow_node needs its speed"),
        ({"speed": 1.5}, "speed"),
        ({"speed": 0}, "speed"),
        ({"speed": {"between": [0.9, 0.5]}}, r"write the lower end first: \[0.5, 0.9\]"),
        ({"speed": None, "capacity": 0.5}, "write speed: 0.5"),
        ({"kind": "slow_nic"}, "write capacity: 0.9"),
        ({"kind": "slow_rack"}, "kind"),
        ({"share": None}, "never happens"),
        ({"share": 1.5}, "share"),
        ({"rate": "-1 per day"}, "is negative"),
        ({"swap": True}, "never found; write its detection"),
        ({"kind": "job", "swap": True, "detection": "1 h"}, "for which no spare is kept"),
    ],
)
def test_sources_that_mean_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    """Each names the fix."""
    with pytest.raises(ValidationError, match=message):
        source(**fields)


def test_its_rate_may_change() -> None:
    """A bad week and a burn-in, as of failures; of a rate that there is."""
    window = {"from": "1 d", "until": "8 d", "factor": 5}
    slow = source(rate="1 per 100 node-days", windows=[window], burn_in={"factor": 4, "decay": "7 d"})
    assert (slow.windows[0].until, slow.burn_in and slow.burn_in.factor) == (8 * 86400.0, 4)
    assert SlowSource.model_validate(slow.model_dump(mode="json", by_alias=True)) == slow
    with pytest.raises(ValidationError, match="windows or a burn_in of a rate that it has not"):
        source(share=0.1, rate=None, windows=[window])
