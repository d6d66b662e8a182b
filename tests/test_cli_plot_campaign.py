"""`trainsim plot failure-loss` and `trainsim plot campaign`: what they write, and what a mistake looks like."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.small import write_small
from tests.test_cli import Run, trainsim  # noqa: F401

FAILURES = [{"name": "node", "rate": "12 per node-day", "time_to_repair": "2 h"}]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """16 GPUs for some hours, a failure an hour."""
    reliability = {"failures": FAILURES, "checkpoint": {"interval": "10 min"}}
    return write_small(tmp_path, training={"tokens": "10e9 tokens"}, reliability=reliability)


def test_failure_loss_is_drawn_with_its_table(trainsim: Run, scenario: Path, tmp_path: Path) -> None:  # noqa: F811
    """A picture where it was asked for, the table beside it, and the name of the picture on stdout."""
    picture, table = tmp_path / "a.png", tmp_path / "a.csv"
    arguments = ("--against", "spares", "--values", "0,2", "--runs", 3, "--jobs", 1, "--csv", table)
    code, out, err = trainsim("plot", "failure-loss", scenario, "-o", picture, *arguments)
    assert (code, out, err) == (0, f"{picture}\n", "")
    assert picture.stat().st_size > 5_000
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [row["spares"] for row in rows] == ["0.0", "2.0"]
    assert float(rows[0]["waiting_mfu_loss"]) > float(rows[1]["waiting_mfu_loss"])


def test_failure_loss_as_json(trainsim: Run, scenario: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """The numbers behind the picture, and no picture that was not asked for; the same whatever the processes."""
    monkeypatch.chdir(tmp_path)
    printed = []
    for jobs in (1, 2):
        arguments = ("--against", "mtbf", "--from", "30 min", "--to", "2 h", "--runs", 2, "--jobs", jobs, "--json")
        code, out, err = trainsim("plot", "failure-loss", scenario, *arguments)
        assert (code, err) == (0, "")
        printed.append(out)
    assert printed[0] == printed[1]
    found = json.loads(printed[0])
    assert {"scenario", "against", "unit", "seed", "runs", "held", "points", "markers", "left_out"} == set(found)
    assert found["points"][0]["mtbf_s"] == 1800.0
    for point in found["points"]:
        parts = sum(value for key, value in point.items() if key.endswith("_mfu_loss") and key != "failure_mfu_loss")
        assert parts == pytest.approx(point["healthy_mfu"] - point["effective_mfu"], rel=0, abs=1e-14)
    assert list(tmp_path.glob("*.png")) == []


def test_a_campaign_is_drawn_under_its_own_name(
    trainsim: Run,  # noqa: F811
    scenario: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Without a name the picture is called after the scenario and what it shows, and never overwritten."""
    monkeypatch.chdir(tmp_path)
    code, out, err = trainsim("plot", "campaign", scenario, "--replication", 2)
    assert (code, out, err) == (0, "small-campaign.png\n", "")
    assert (tmp_path / "small-campaign.png").stat().st_size > 5_000
    code, _, err = trainsim("plot", "campaign", scenario)
    assert code == 2
    assert "small-campaign.png: exists already" in err


def test_a_campaign_as_json(trainsim: Run, scenario: Path) -> None:  # noqa: F811
    """Incidents and progress, as the picture has them."""
    code, out, _ = trainsim("plot", "campaign", scenario, "--json")
    found = json.loads(out)
    assert code == 0
    assert len(found["incidents"]) == sum(found["failures_by_class"].values())
    assert found["progress"][-1]["end"] == pytest.approx(found["wall_clock_s"])


BAD: list[tuple[tuple[str | int, ...], str]] = [
    (
        ("failure-lost",),
        "no picture 'failure-lost'; there are: step, failure-loss, campaign; did you mean 'failure-loss'?",
    ),
    (
        ("failure-loss", "--against", "weather"),
        "'weather' is nothing to draw against; use gpus, mtbf, interval, spares",
    ),
    (("failure-loss", "--runs", 1), "2 or more"),
    (("failure-loss", "--by", "day"), "'day' is no way to stack; use fate or cause"),
    (("failure-loss", "--against", "interval", "--values", "10"), "unit"),
    (("failure-loss", "--against", "interval", "--values", "1 ms"), "out of range"),
    (("failure-loss", "--against", "spares", "--from", "8", "--to", "2"), "--from must be the smaller"),
    (("failure-loss", "--against", "gpus", "--values", "12"), "no whole number of replicas of 8 GPUs"),
    (("failure-loss", "--replication", 1), "--replication does not apply to plot failure-loss"),
    (("campaign", "--against", "gpus"), "--against does not apply to plot campaign"),
    (("campaign", "--replication", -1), "replication -1"),
    (("campaign", "-o", "a.jpg"), ".jpg is not a picture"),
    (("step", "--json"), "--json does not apply to plot step"),
    (("failure-loss", "--set", "reliability=null"), "reliability: {preset: default}"),
    (("failure-loss", "--set", "training.tokens=null"), "training.tokens: has no length"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_input(
    trainsim: Run,  # noqa: F811
    scenario: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str | int, ...],
    says: str,
) -> None:
    """One message, exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    what, *rest = arguments
    code, out, err = trainsim("plot", what, scenario, *rest)
    assert (code, out) == (2, "")
    assert err.startswith("trainsim: ")
    assert err.count("\n") == 1
    assert says in err
    assert set(tmp_path.iterdir()) == before
