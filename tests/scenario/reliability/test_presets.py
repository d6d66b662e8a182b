"""Published clusters' failures: counts as printed, rates as published."""

from __future__ import annotations

from typing import get_args

import pytest

from simulator.scenario.reliability.presets import PresetName, read_presets
from simulator.scenario.reliability.section import Reliability

# arXiv 2407.21783, Table 5
LLAMA_3 = (148, 72, 54, 35, 32, 19, 17, 7, 7, 6, 6, 3, 3, 2, 2, 2, 2, 2)


def per_node_day(name: str) -> float:
    """Failures per node and day of all classes."""
    return sum(failure.rate.per_second * 86400 for failure in read_presets()[name].failures)


def test_the_names_are_those_of_the_catalogue() -> None:
    """What a scenario may say is what there is; each has a source."""
    assert set(get_args(PresetName)) == set(read_presets())
    assert all(preset.source and preset.description for preset in read_presets().values())


def test_llama_3_has_its_419_causes() -> None:
    """18 causes; over 54 days on 2,048 nodes they strike as often as the table says, 419 in all."""
    failures = read_presets()["llama-3"].failures
    counts = [failure.rate.per_second * 54 * 86400 * 2048 for failure in failures]
    assert counts == pytest.approx(LLAMA_3)
    assert sum(LLAMA_3) == 419
    assert per_node_day("llama-3") == pytest.approx(3.79e-3, rel=1e-3)
    shows = {failure.effect: failure.name for failure in failures if failure.effect != "crash"}
    assert shows == {"hang": "NCCL watchdog timeout", "silent": "silent data corruption"}


@pytest.mark.parametrize(
    ("name", "rate"), [("rsc-1", 6.50e-3), ("rsc-2", 2.34e-3), ("opt-175b", 2 / 124), ("default", 4e-3)]
)
def test_rates_are_those_published(name: str, rate: float) -> None:
    """Per node and day; OPT-175B lost two of 124 hosts a day."""
    assert per_node_day(name) == pytest.approx(rate)


def test_the_default_is_seven_tenths_transient() -> None:
    """2.8 of 4 per 1,000 node-days come back where they were."""
    failures = read_presets()["default"].failures
    lost = sum(failure.rate.per_second * failure.machine_share for failure in failures)
    assert lost / sum(failure.rate.per_second for failure in failures) == pytest.approx(0.3)


def test_rsc_has_lemons() -> None:
    """1.2 % of RSC-1's nodes."""
    lemons = Reliability.model_validate({"preset": "rsc-1"}).all_lemons
    assert lemons is not None
    assert lemons.share == 0.012


def test_hpn_counts_links_and_switches() -> None:
    """0.057 % of links and 0.051 % of leaf switches a month, of 30.44 days."""
    link, leaf = (failure.rate for failure in read_presets()["hpn"].failures)
    month = 365.25 / 12 * 86400
    assert (link.per, link.per_second * month) == ("link", pytest.approx(0.00057))
    assert (leaf.per, leaf.per_second * month) == ("leaf", pytest.approx(0.00051))
