"""`trainsim replicate`: what it prints and writes, how it stops, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator import cli
from tests.small import write_small

Run = Callable[..., tuple[int, str, str]]

# 10 days of steps of 16 ms on two nodes that fail once a day each: a replication takes some milliseconds.
DAYS = {
    "training": {"tokens": "1e12 tokens"},
    "reliability": {"failures": [{"name": "node", "rate": "1 per node-day"}]},
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A scenario file of 16 GPUs."""
    return write_small(tmp_path, **DAYS)


@pytest.fixture
def trainsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trainsim", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_it_prints_what_the_readme_promises(trainsim: Run, small: Path) -> None:
    """Quantiles and mean of finish, MFU and cost with their intervals, and where the MFU went."""
    code, out, err = trainsim("replicate", small, "--runs", "30")
    assert (code, err) == (0, "")
    assert out.startswith("30 replications; the mean wall-clock is known to ± ")
    for word in (
        "P10",
        "P50",
        "P90",
        "mean",
        "finish (days)",
        "effective MFU",
        "goodput",
        "failures",
        "cost",
        "restart",
    ):
        assert word in out


def test_json_has_the_documented_keys(trainsim: Run, small: Path) -> None:
    """One object; the seed and the scenario run it again."""
    code, out, _ = trainsim("replicate", small, "--runs", "12", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["replications"], result["asked"], result["stopped"], result["seed"]) == (12, 12, "number", 3)
    (scenario,) = result["scenarios"]
    assert {"finish_days", "effective_mfu", "goodput", "cost_usd", "failures"} <= set(scenario["figures"])
    assert {"mean", "mean_interval", "p10", "p10_interval", "p50", "p90"} <= set(scenario["figures"]["finish_days"])
    again = small.with_name("again.json")
    again.write_text(json.dumps(scenario["scenario"]), encoding="utf-8")
    _, second, _ = trainsim("replicate", again, "--runs", "12", "--json")
    assert json.loads(second)["scenarios"][0]["figures"] == scenario["figures"]


def test_the_first_replication_is_the_run(trainsim: Run, small: Path) -> None:
    """`run` is replication 0: the same wall-clock to the last bit."""
    _, one, _ = trainsim("replicate", small, "--runs", "1", "--json")
    _, run, _ = trainsim("run", small, "--json")
    figures = json.loads(one)["scenarios"][0]["figures"]
    assert figures["finish_days"]["mean"] == json.loads(run)["campaign"]["finish_days"]
    assert figures["effective_mfu"]["mean"] == json.loads(run)["campaign"]["effective_mfu"]


def test_scenarios_are_compared_with_the_same_failures(trainsim: Run, small: Path, tmp_path: Path) -> None:
    """A longer restart takes longer for sure; both use the first one's seed."""
    slower = write_small(tmp_path, "slower", **{**DAYS, "seed": 99})
    code, out, _ = trainsim("replicate", small, slower, "--runs", "10", "--json")
    result = json.loads(out)
    assert code == 0
    assert [each["name"] for each in result["scenarios"]] == ["small", "slower"]
    (difference,) = result["differences"]  # of scenarios that are the same but for the seed
    assert difference["figures"]["finish_days"] == {"mean": 0.0, "mean_interval": [0.0, 0.0]}, (
        "the same but for the seed"
    )
    text = slower.read_text(encoding="utf-8")
    slower.write_text(text.replace("reliability:", "reliability:\n  restart: 30 min", 1), encoding="utf-8")
    _, out, _ = trainsim("replicate", small, slower, "--runs", "10")
    assert "slower less small (mean over the same failures)" in out
    assert re.search(r"^finish \(days\) +\+", out, re.MULTILINE)


def test_a_precision_stops_early(trainsim: Run, small: Path) -> None:
    """At a whole block; the report says that it was enough."""
    code, out, _ = trainsim("replicate", small, "--precision", "20%")
    assert code == 0
    assert out.startswith("40 replications, enough for the precision asked for")


def test_files_are_new_and_whole(trainsim: Run, small: Path, tmp_path: Path) -> None:
    """`--csv`, `--plot` and `--output` write; none overwrites."""
    table, picture, report = tmp_path / "rows.csv", tmp_path / "days.png", tmp_path / "report.txt"
    options = ("--runs", "5", "--csv", table, "--plot", picture, "--output", report)
    assert trainsim("replicate", small, *options) == (0, "", "")
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    assert [row["replication"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert report.read_text(encoding="utf-8").startswith("5 replications")
    for option, path in (("--csv", table), ("--plot", picture), ("--output", report)):
        code, _, err = trainsim("replicate", small, "--runs", "5", option, path)
        assert code == 2
        assert "exists already" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runs", "0"), "--runs: 0 replications"),
        (("--jobs", "0"), "--jobs: 0 processes"),
        (("--precision", "often"), "--precision: 'often' is no precision"),
        (("--set", "training.tokens=null"), "training.tokens: there is no run to replicate without its length"),
        (("--plot", "days.txt"), ".txt is not a picture"),
    ],
)
def test_mistakes_are_one_message(options: tuple[str, ...], message: str, trainsim: Run, small: Path) -> None:
    """Exit code 2, the option or the field, the value and the fix."""
    code, out, err = trainsim("replicate", small, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_interrupt_prints_what_was_finished(
    trainsim: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the eighth: the report of seven, the table of seven, nothing else, exit code 130."""
    from simulator.studies import replicate as study

    made = study.replication

    def interrupted(runs: object, seed: int, number: int) -> object:
        if number == 7:
            raise KeyboardInterrupt
        return made(runs, seed, number)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "replication", interrupted)
    table = tmp_path / "rows.csv"
    code, out, err = trainsim("replicate", small, "--runs", "300", "--jobs", "1", "--csv", table)
    assert code == 130
    assert out.startswith("interrupted: 7 of 300 replications were finished")
    assert not err, "the report has said so"
    assert len(table.read_text(encoding="utf-8").splitlines()) == 8


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal does")
def test_ctrl_c_in_a_terminal_leaves_no_process(small: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it: a report, exit code 130, no traceback, no process left."""
    command = [
        sys.executable,
        "-m",
        "simulator.cli",
        "replicate",
        str(small),
        "--runs",
        "1000000",
        "--jobs",
        "2",
        "--json",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(_group(process.pid)) < 3 and time.monotonic() < deadline:  # itself, the resource tracker, two workers
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    result = json.loads(out)
    assert result["stopped"] == "interrupted"
    assert 2 <= result["replications"] < 1_000_000
    assert err == f"trainsim: interrupted: {result['replications']:,} of 1,000,000 replications were finished\n"
    while _group(process.pid) and time.monotonic() < deadline:  # multiprocessing's resource tracker ends a little later
        time.sleep(0.1)
    assert _group(process.pid) == []


def _group(leader: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found
