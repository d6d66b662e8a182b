"""`trainsim memory` and `trainsim validate --memory` from the command line: exit codes, JSON, one clear message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.cli import main
from tests.small import write_small
from tests.studies.test_memory import HUGE
from tests.studies.test_validate_memory import write_rows


def trainsim(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command line and return its exit code."""
    monkeypatch.setattr("sys.argv", ["trainsim", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("changes", [{}, HUGE])
def test_memory_prints_also_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, object]
) -> None:
    """Exit code 0 either way; text and JSON say whether it fits."""
    path = write_small(tmp_path, "case", **changes)
    assert trainsim(monkeypatch, "memory", path) == 0
    assert ("It fits." in capsys.readouterr().out) == (not changes)
    assert trainsim(monkeypatch, "memory", path, "--json", "--set", "seed=4") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] == (not changes)
    assert found["scenario"]["seed"] == 4


def test_validate_memory_writes_rows_and_names_bad_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A bad row: exit code 1 and its line and column; the others are scored, every row is in the CSV."""
    path, rows = write_rows(tmp_path, {}, {"dp": "eight"}), tmp_path / "every.csv"
    assert trainsim(monkeypatch, "validate", "--memory", "--cases", path, "--json", "--csv", rows) == 1
    out, err = capsys.readouterr()
    overall = json.loads(out)["overall"]
    assert (overall["rows"], overall["refused"], overall["accuracy"]) == (2, 1, 1.0)
    assert "row 3, column dp: 'eight' is not a number" in err
    assert len(rows.read_text(encoding="utf-8").splitlines()) == 3


def test_validate_memory_without_a_column_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 2 and the column."""
    path = write_rows(tmp_path, {}, drop="status")
    assert trainsim(monkeypatch, "validate", "--memory", "--cases", path) == 2
    assert "column 'status' is missing" in capsys.readouterr().err
