"""The picture of a campaign: fates by bin, the close-up, and a drawing for none, few and many incidents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.engine.campaign import simulate_campaign
from simulator.physics.campaign.plan import (
    CampaignPlan,
    Duration,
    Hazard,
    JobFailure,
    Phase,
    Pool,
    Shop,
    SlowSource,
    Tier,
)
from simulator.records import CampaignResult, Incident, Progress
from simulator.report.campaign_close_up import chains, close_up, told
from simulator.report.campaign_plot import (
    effective_time,
    fate_shares,
    out_of_service,
    plot_campaign,
    shares_by_bin,
)
from simulator.studies.campaign_record import RecordedCampaign

HOUR = 3600.0


def recorded(*, classes: int, rate: float, steps: int) -> RecordedCampaign:
    """A campaign of steps of 6 s that saves every 20 min; each class strikes `rate` times a day."""
    tier = Tier("storage", 200, None, 10.0, 0.0, 60.0)
    failures = tuple(
        JobFailure(f"class {number}", Hazard("poisson", rate / 86400), detection=Duration(300.0))
        for number in range(classes)
    )
    phases = (Phase("short", steps // 4, 6.0, 1e15, (tier,)), Phase("long", steps - steps // 4, 6.0, 2e15, (tier,)))
    plan = CampaignPlan(
        phases=phases,
        machines=64,
        failures=failures,
        restart=Duration(600.0),
        hot=Pool(400, Duration(0.0)),
        shop=Shop(Duration(2 * 86400.0), 0.0, Duration(0.0)),
    )
    result = simulate_campaign(plan, 5, keep_records=True)
    return RecordedCampaign(
        name="a run", seed=5, replication=0, plan=plan, result=result, healthy_mfu=0.4, effective_mfu=0.3
    )


@pytest.mark.parametrize(
    ("classes", "rate", "steps", "suffix"),
    [(0, 0.0, 2_000, "png"), (2, 1.5, 40_000, "svg"), (14, 0.7, 700_000, "png"), (1, 200.0, 150, "pdf")],
    ids=["no incidents", "a few", "hundreds", "shorter than an hour"],
)
def test_a_campaign_is_drawn(tmp_path: Path, classes: int, rate: float, steps: int, suffix: str) -> None:
    """Every number of incidents, and every format."""
    path = tmp_path / f"a.{suffix}"
    plot_campaign(recorded(classes=classes, rate=rate, steps=steps), path)
    assert path.stat().st_size > 5_000


def test_the_same_picture_twice(tmp_path: Path) -> None:
    """A PNG depends on the campaign alone."""
    campaign = recorded(classes=2, rate=1.0, steps=20_000)
    for name in ("a.png", "b.png"):
        plot_campaign(campaign, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_counts_incidents(tmp_path: Path) -> None:
    """Rare classes beyond the tenth share a row, and no incident is left out."""
    campaign = recorded(classes=14, rate=0.7, steps=100_000)
    plot_campaign(campaign, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    rows = [line.strip().removeprefix("<!-- ").removesuffix(" -->") for line in text.splitlines() if "<!-- " in line]
    counted = [row for row in rows if row.startswith(("class ", "others: ")) and "lost" not in row]
    assert len(counted) == 10
    assert not [row for row in rows if row.startswith("up to ")]
    assert sum(int(row.rpartition(": ")[2].replace(",", "")) for row in counted) == len(campaign.result.incidents)


def test_shares_of_bins_add_up_to_what_happened() -> None:
    """90 min of work, 30 min down, 60 min of work in bins of an hour: 100 %; 50 and 50 %; 100 %."""
    progress = (
        Progress(0.0, 1.5 * HOUR, 0, 900, "productive"),
        Progress(1.5 * HOUR, 2 * HOUR, 900, 900, "restart"),
        Progress(2 * HOUR, 3 * HOUR, 900, 1500, "productive"),
    )
    shares = shares_by_bin(progress, 3 * HOUR, 3)
    assert set(shares) == {"productive", "restart"}
    assert shares["productive"] == pytest.approx([1.0, 0.5, 1.0])
    assert shares["restart"] == pytest.approx([0.0, 0.5, 0.0])


def test_shares_of_a_campaign_fill_every_bin() -> None:
    """Every second is in one fate: the shares of all fates are 1 in each bin, whatever its width."""
    campaign = recorded(classes=3, rate=2.0, steps=30_000)
    for bins in (7, 240):
        shares = shares_by_bin(campaign.result.progress, campaign.result.wall_clock, bins)
        assert np.sum(list(shares.values()), axis=0) == pytest.approx(np.ones(bins), abs=1e-6)


def test_machines_out_of_service_are_counted() -> None:
    """Two overlap for an hour: 1 from 0 h, 2 from 1 h, 1 from 2 h, 0 from 5 h."""
    times, out = out_of_service([(0.0, 2 * HOUR), (HOUR, 5 * HOUR)])
    assert times.tolist() == [0.0, 0.0, HOUR, 2 * HOUR, 5 * HOUR]
    assert out.tolist() == [0, 1, 2, 1, 0]


def test_repairs_are_what_the_machines_were_away() -> None:
    """Machine-seconds out of service, told in two ways: their sum, and one by one."""
    result = recorded(classes=3, rate=2.0, steps=30_000).result
    assert sum(until - since for since, until in result.repairs) == pytest.approx(result.machine_s["repair"])


def test_the_close_up_shows_incidents_that_lie_together() -> None:
    """Three within two hours and one ten days later: the three; far apart, the costliest by itself; none, all."""
    near = [Incident(hour * HOUR, "a", 600.0, 900.0) for hour in (10.0, 10.8, 11.6)]
    alone = Incident(250 * HOUR, "b", 600.0, 1200.0)
    start, end = close_up([*near, alone], 300 * HOUR)
    assert start < near[0].time - 600
    assert near[-1].time + 900 < end < alone.time
    start, end = close_up([near[0], alone], 300 * HOUR)
    assert near[0].time < start < alone.time < end
    assert close_up([], 5.0) == (0.0, 5.0)


def labels(recorded: RecordedCampaign, path: Path) -> list[str]:
    """What is written in the picture."""
    plot_campaign(recorded, path)
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("<!-- ").removesuffix(" -->") for line in lines if line.startswith("<!-- ")]


def test_many_incidents_are_counted_by_day(tmp_path: Path) -> None:
    """Hundreds of ticks would be a solid bar: counts are drawn, with what the highest stands for."""
    campaign = recorded(classes=1, rate=9.0, steps=500_000)
    texts = "\n".join(labels(campaign, tmp_path / "a.svg"))
    days = np.bincount([int(each.time // 86400) for each in campaign.result.incidents])
    assert f"up to {days.max()} in 1 day" in texts


def slowed() -> RecordedCampaign:
    """1 h of steps of 6 s, 2 h of steps of 12 s, 1.5 h of steps of 6 s; nothing stops."""
    progress = (
        Progress(0.0, HOUR, 0, 600, "productive"),
        Progress(HOUR, 3 * HOUR, 600, 1200, "productive"),
        Progress(3 * HOUR, 4.5 * HOUR, 1200, 2100, "productive"),
    )
    slow = SlowSource("episode", "slow_job", (1,), 1.0, Hazard("poisson", 1e-5), (50, 50), None, None, False)
    plan = CampaignPlan(phases=(Phase("all", 2100, 6.0, 1e15, ()),), machines=8, slow=(slow,))
    result = CampaignResult(
        wall_clock=4.5 * HOUR, steps=2100, time_s={"productive": 3.5 * HOUR, "straggling": HOUR}, failures={},
        incidents=(), progress=progress, hours=(HOUR, HOUR / 2, HOUR / 2, HOUR, HOUR / 2),
    )  # fmt: skip
    return RecordedCampaign(
        name="a run", seed=5, replication=0, plan=plan, result=result, healthy_mfu=0.4, effective_mfu=0.3
    )


def test_slow_stretches_are_drawn_and_empty_panels_left_out(tmp_path: Path) -> None:
    """A run that is only slowed: the stretch, its share of the time, no marks of incidents, no close-up."""
    found = labels(slowed(), tmp_path / "a.svg")
    assert {"slow stretches: 1", "slow steps"} <= set(found)
    assert not {"incidents: 0", "none", "machines"} & set(found)
    assert not [text for text in found if text.startswith("close-up")]
    healthy = labels(recorded(classes=0, rate=0.0, steps=2_000), tmp_path / "b.svg")
    assert "incidents" not in healthy
    assert not [text for text in healthy if text.startswith(("not productive", "close-up"))]


def test_slow_time_is_a_fate() -> None:
    """Half of the second and third hour, nothing of the others; in bins of half an hour."""
    assert fate_shares(slowed(), 9)["straggling"] == pytest.approx([0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0])


def test_effective_time_reaches_to_the_end() -> None:
    """From 0 to 4.5 h, the last half hour by itself; since the start 1, 1, 1.5/2, 2/3, 3/4 and 3.5/4.5."""
    edges, each, since_start = effective_time(slowed().result.hours, 4.5 * HOUR)
    assert edges.tolist() == [0, HOUR, 2 * HOUR, 3 * HOUR, 4 * HOUR, 4.5 * HOUR]
    assert each == pytest.approx([1, 0.5, 0.5, 1, 1])
    assert since_start == pytest.approx([1, 1, 0.75, 2 / 3, 0.75, 3.5 / 4.5])


def test_incidents_before_the_last_is_over_are_told_together() -> None:
    """Struck 5 s into the restart of another: one label with the time that both took; keys are words."""
    first, second = Incident(100.0, "loss_spikes", 720.0, 5.2), Incident(105.2, "host", 0.0, 1020.0)
    later = Incident(5000.0, "host", 0.2, 61.0)
    assert chains([first, second, later]) == [[first, second], [later]]
    assert told([first, second]) == "loss spikes, host: 12 min lost, 17.1 min down"
    assert told([later, later]) == "2 × host: nothing lost, 2.03 min down"


def test_steps_that_a_spike_undid_are_told_from_the_way_back(tmp_path: Path) -> None:
    """Two colours with their names for the two parts of a rewind."""
    campaign = recorded(classes=0, rate=0.0, steps=2_000)
    progress = (
        Progress(0.0, HOUR, 0, 600, "productive"),
        Progress(HOUR, 2 * HOUR, 600, 1200, "rewind"),
        Progress(2 * HOUR, 2.5 * HOUR, 600, 600, "rewind"),
        Progress(2.5 * HOUR, 3 * HOUR, 600, 900, "productive"),
    )
    spike = Incident(2 * HOUR, "loss_spikes", HOUR, HOUR / 2)
    result = replace(campaign.result, progress=progress, incidents=(spike,), wall_clock=3 * HOUR)
    texts = labels(replace(campaign, result=result), tmp_path / "a.svg")
    assert {"steps that a spike undid", "going back", "loss spikes: 1"} <= set(texts)
    assert not [text for text in texts if "loss_spikes" in text]
