"""Exchanges of messages: bytes that arrive are bytes that were sent, loads, rounds, and the two hops of experts."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import LayoutError
from simulator.physics.cluster import build_cluster
from simulator.physics.collectives import exchanges
from simulator.physics.collectives.exchanges import crossing_share, direct, pairwise, two_hop
from simulator.physics.collectives.groups import Groups
from simulator.physics.collectives.plans import Plan, solo_time
from tests.physics.shapes import cluster

MACHINE = build_cluster(cluster(nodes=4, kind="fat_tree"))
FLAT = [1.0] * 8


def groups(members: Any, loads: list[float] | None = None, crossing: float = 1.0) -> Groups:
    """Build one group."""
    return Groups(MACHINE, np.array([members]), None if loads is None else np.array(loads), crossing)


def moved(found: Plan) -> dict[str, float]:
    """Add up bytes on every link per byte of buffer, over all phases."""
    total: dict[str, float] = defaultdict(float)
    for phase in found.phases:
        for pattern, wire in phase.traffic:
            for link, use in zip(pattern.links.tolist(), pattern.usage.tolist(), strict=True):
                total[MACHINE.link_name(link)] += use * wire
    return total


def ports(found: Plan, gpu: int) -> tuple[float, float]:
    """Bytes that a GPU sends into its NVLink switch and takes from it."""
    total, switch = moved(found), f"node{gpu // 8}.nvswitch"
    return total[f"gpu{gpu} -> {switch}"], total[f"{switch} -> gpu{gpu}"]


def loads_of(n: int) -> st.SearchStrategy[list[float]]:
    """Draw relative loads of mean 1."""
    drawn = st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(lambda each: sum(each) > 0)
    return drawn.map(lambda each: [value * n / sum(each) for value in each])


@given(loads_of(8))
def test_a_hot_expert_receives_more(loads: list[float]) -> None:
    """Member j takes in loads[j] / n from each of n - 1 others and sends what the others' experts need; and back."""
    there, back = (direct(groups(range(8), loads), op)[0] for op in ("dispatch", "combine"))
    for j, load in enumerate(loads):
        assert ports(there, j) == pytest.approx(((8 - load) / 8, 7 * load / 8))
        assert ports(back, j) == pytest.approx((7 * load / 8, (8 - load) / 8))


@given(loads_of(8), st.sampled_from(["dispatch", "combine"]))
def test_rounds_move_the_same_bytes(loads: list[float], op: str) -> None:
    """Pairwise and direct exchanges load every link with the same bytes; lock-step is never quicker."""
    together, apart = direct(groups(range(8), loads), op)[0], pairwise(groups(range(8), loads), op)[0]
    assert moved(apart) == pytest.approx(moved(together))
    assert len(apart.phases) == 7
    assert solo_time(apart, 1e9)[0] >= solo_time(together, 1e9)[0] * (1 - 1e-12)


def test_loads_must_have_mean_one() -> None:
    """And be as many as members."""
    for loads in ([1.0] * 7, [2.0] * 8, [-1.0, 3.0, *FLAT[2:]]):
        with pytest.raises(ValueError, match="loads must be 8 numbers of mean 1"):
            groups(range(8), loads)
    with pytest.raises(ValueError, match="crossing must lie in"):
        groups(range(8), None, 0.0)


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they fill the memory; a message is one pair."""
    monkeypatch.setattr(exchanges, "_MOST_PAIRS", 55)
    with pytest.raises(LayoutError, match="all_to_all of 1 groups of 8 GPUs has 56 pairs; at most 55"):
        direct(groups(range(8)), "all_to_all")
    assert direct(groups([0, 1]), "send_recv")


@given(st.sampled_from(["dispatch", "combine"]), st.floats(0.1, 1.0), loads_of(16))
def test_two_hops_cross_once_and_forward(op: str, crossing: float, loads: list[float]) -> None:
    """16 experts on 2 nodes: NICs carry `crossing` of what the direct exchange lays on them, in rails.

    NVLink carries every copy between GPUs of other positions once more.
    """
    members = range(16)
    hops = moved(two_hop(groups(members, loads, crossing), op)[0])
    plain = moved(direct(groups(members, loads), op)[0])
    for node in range(2):
        own, other = (sum(loads[8 * at : 8 * at + 8]) for at in (node, 1 - node))
        leaving = 8 * (other if op == "dispatch" else own) / 16
        out = [name for name in hops if name.startswith(f"node{node}.nic") and "leaf" in name]
        assert sum(hops[name] for name in out) == pytest.approx(crossing * leaving)
        assert sum(plain[name] for name in out) == pytest.approx(leaving)
        forwarded = 7 / 8 * (8 * own / 16 if op == "dispatch" else leaving)
        inside = sum(use for name, use in plain.items() if name.endswith(f"> node{node}.nvswitch"))
        total = sum(use for name, use in hops.items() if name.endswith(f"> node{node}.nvswitch"))
        assert total == pytest.approx(inside + forwarded)


def test_two_hops_within_a_node_are_direct() -> None:
    """Nothing to relay."""
    inside = two_hop(groups(range(8)), "dispatch")[0]
    assert moved(inside) == pytest.approx(moved(direct(groups(range(8)), "dispatch")[0]))
    assert two_hop(groups([0, 1, 8]), "dispatch") == []
    assert two_hop(groups(range(8)), "all_reduce") == []


def test_crossing_share() -> None:
    """Top 8 of experts on 8 nodes: 8 (1 - (7/8)^8) = 5.25 nodes of 8 copies; at most 4 nodes: 3.6. One node: 1 of 8."""
    assert crossing_share(8, 8) == pytest.approx(8 * (1 - (7 / 8) ** 8) / 8)
    assert crossing_share(8, 8, 4) == pytest.approx(4 * (1 - (3 / 4) ** 8) / 8)
    assert crossing_share(8, 1) == 1 / 8
    assert crossing_share(1, 8) == pytest.approx(1.0)
