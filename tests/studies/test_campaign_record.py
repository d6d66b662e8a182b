"""A campaign with its records: the same run as without, and what its picture needs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from simulator.errors import ScenarioError
from simulator.studies.campaign_record import record_campaign, slow_stretches
from tests.small import load_small


def test_records_cover_the_run(tmp_path: Path) -> None:
    """Stretches tile the wall-clock, incidents are those that are counted, and all of it can be printed."""
    failures = [{"name": "node", "rate": "12 per node-day", "time_to_repair": "2 h"}]
    scenario = load_small(tmp_path, training={"tokens": "20e9 tokens"}, reliability={"failures": failures})
    recorded = record_campaign(scenario, 1)
    progress = recorded.result.progress
    assert progress[0].start == 0
    assert progress[-1].end == pytest.approx(recorded.result.wall_clock)
    assert len(recorded.result.incidents) == sum(recorded.result.failures.values()) > 0
    assert 0 < recorded.effective_mfu < recorded.healthy_mfu < 1
    assert json.loads(json.dumps(recorded.figures()))["replication"] == 1
    assert record_campaign(scenario, 0).result.wall_clock != recorded.result.wall_clock
    assert record_campaign(scenario, 1).result == recorded.result


def test_slow_stretches_are_found_by_their_pace(tmp_path: Path) -> None:
    """A job slowed to half and less for a while: when, and that their excess is the time booked as straggling."""
    slow = [{"name": "episode", "kind": "job", "rate": "200 per day", "duration": "2 min", "speed": 0.4}]
    scenario = load_small(tmp_path, training={"tokens": "20e9 tokens"}, reliability={"slow": slow})
    recorded = record_campaign(scenario)
    assert recorded.slow
    assert all(each.start < each.end for each in recorded.slow)
    assert all(a.end < b.start for a, b in pairwise(recorded.slow))
    excess = sum(each.excess_s for each in recorded.slow)
    assert excess == pytest.approx(recorded.result.time_s["straggling"], rel=0.02)
    assert len(recorded.figures()["slow_stretches"]) == len(recorded.slow)


def test_nothing_is_slow_where_nothing_can_be(tmp_path: Path) -> None:
    """Failures and saves alone make no step slow."""
    failures = [{"name": "node", "rate": "12 per node-day", "time_to_repair": "2 h"}]
    scenario = load_small(tmp_path, training={"tokens": "20e9 tokens"}, reliability={"failures": failures})
    recorded = record_campaign(scenario)
    assert recorded.slow == slow_stretches(recorded.plan, recorded.result) == ()


def test_what_has_no_campaign(tmp_path: Path) -> None:
    """Without `tokens` there is no run, and replications are counted from 0."""
    with pytest.raises(ScenarioError, match="no length"):
        record_campaign(load_small(tmp_path, training={"tokens": None}))
    with pytest.raises(ScenarioError, match="replication -1"):
        record_campaign(load_small(tmp_path), -1)
