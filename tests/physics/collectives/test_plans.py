"""Plans: caps that grow with size, and time as latency, bandwidth and fill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.cluster import build_cluster
from simulator.physics.collectives.algorithms import ring
from simulator.physics.collectives.groups import Groups
from simulator.physics.collectives.plans import phase_latency, rate_cap, solo_time
from simulator.physics.collectives.tuning import PLAIN, Tuning
from tests.physics.shapes import cluster

FILLING = Tuning(ring_efficiency=0.9, ring_tail=0.5, ring_fill="2 us", ring_knee=1e6)  # type: ignore[arg-type]


def groups() -> Groups:
    """Eight GPUs of one node on 100 GB/s NVLink."""
    return Groups(build_cluster(cluster(nodes=2)), np.arange(8)[None])


def test_time_is_latency_bandwidth_and_fill() -> None:
    """All-gather, Simple: 8.4 + 7 · 3.4 µs; 7/8 + the tail's 1/16 of 80 MB over 90 GB/s; 7 · 2 µs · 80 / (80 + 8)."""
    plan = ring(groups(), "all_gather", FILLING)[0]
    expected = 8.4e-6 + 7 * 3.4e-6 + 80e6 * (7.5 / 8) / 90e9 + 14e-6 * 80 / 88
    assert solo_time(plan, 80e6)[0] == pytest.approx(expected)


@given(st.floats(1.0, 1e11))
def test_the_cap_is_what_makes_the_time(size: float) -> None:
    """Latency and bytes over the cap, for any size: the engine's view and the predicted time agree."""
    plan = ring(groups(), "all_gather", FILLING)[0]
    (phase,) = plan.phases
    ((pattern, wire),) = phase.traffic
    cap, latency = rate_cap(plan, pattern, size), phase_latency(plan, phase, size)
    assert solo_time(plan, size) == pytest.approx(latency + size * wire / cap)
    assert rate_cap(plan, pattern)[0] == pytest.approx(0.9 * 100e9 * 7 / 7.5)
    assert cap[0] <= rate_cap(plan, pattern)[0]


def test_many_sizes_at_once() -> None:
    """One group, K sizes."""
    plan = ring(groups(), "all_gather", FILLING)[0]
    sizes = np.array([1e3, 1e6, 1e9])
    assert solo_time(plan, sizes).tolist() == [solo_time(plan, size)[0] for size in sizes.tolist()]  # type: ignore[arg-type]


def test_a_foreign_pattern_has_no_cap() -> None:
    """Patterns are told apart by identity."""
    plan, other = ring(groups(), "all_gather", PLAIN)[0], groups().ring_edges
    with pytest.raises(ValueError, match="no such pattern"):
        rate_cap(plan, other)
