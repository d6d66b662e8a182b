"""The table of one collective: sizes, bandwidths, and clear messages for bad input."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import LayoutError, ScenarioError
from simulator.studies.collectives import collective_table


def test_table_doubles_from_smallest_to_largest() -> None:
    """1 KiB to 10 KiB: 1, 2, 4, 8; algbw is size over time, busbw 2 · 15/16 of it; two domains of 8."""
    found = collective_table("h100-roce-512", "all_reduce", 16, "1 KiB", "10 KiB")
    assert [row.size for row in found.rows] == [1024, 2048, 4096, 8192]
    assert found.domains == 2
    assert found.tuning == "hopper"
    for row in found.rows:
        assert row.algbw == pytest.approx(row.size / row.time)
        assert row.busbw == pytest.approx(row.algbw * 2 * 15 / 16)


def test_large_messages_reach_what_is_measured() -> None:
    """8 H100: NVLS 480 GB/s at 8 GiB (NVIDIA/nccl issue 1455), a ring 365; within 8 %."""
    best = collective_table("h100-roce-512", "all_reduce", 8, "8 GiB", "8 GiB").rows[0]
    ring = collective_table("h100-roce-512", "all_reduce", 8, "8 GiB", "8 GiB", "ring").rows[0]
    assert best.algorithm == "nvls"
    assert best.busbw == pytest.approx(480e9, rel=0.08)
    assert ring.busbw == pytest.approx(365e9, rel=0.08)


def test_names_of_nccl_tests_are_understood() -> None:
    """As nccl-tests spells them."""
    assert collective_table("selene-a100", "alltoall", 8, "1 MiB", "1 MiB").op == "all_to_all"
    assert collective_table("selene-a100", "sendrecv", 2, "1 MiB", "1 MiB").rows[0].algorithm == "direct"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"op": "all_redcue"}, ScenarioError, "did you mean 'all_reduce'"),
        ({"algorithm": "rnig"}, ScenarioError, "did you mean 'ring'"),
        ({"gpus": 1}, LayoutError, "at least two"),
        ({"gpus": 10**6}, LayoutError, "is more than the 4480 of selene-a100"),
        ({"op": "send_recv", "gpus": 3}, LayoutError, "between two"),
        ({"smallest": "3"}, ScenarioError, "min: unit: '3' has no unit"),
        ({"smallest": "2 GiB", "largest": "1 GiB"}, ScenarioError, "2 GiB is more than max 1 GiB"),
        ({"smallest": "0 B"}, ScenarioError, "at least one byte"),
        ({"op": "all_gather", "algorithm": "tree"}, LayoutError, "tree cannot run all_gather"),
        ({"name": "no-such-cluster"}, ScenarioError, "no-such-cluster"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """One message with the value, what is allowed, and the likely fix."""
    with pytest.raises(error, match=message):
        collective_table(**{"name": "selene-a100", "op": "all_reduce", "gpus": 16, **changes})
