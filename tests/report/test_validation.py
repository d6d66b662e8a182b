"""The validation report: a table by group, reasons, every row as CSV, a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from simulator.report.tables import render
from simulator.report.validation import plot_validation, rows_csv, validation_report
from simulator.studies.runs.score import Outcome
from simulator.studies.validate_runs import Validation

FOUND = Validation(
    (
        Outcome("one", "Table 1", "s", 2.0, 1.8, gpus_per_token=1.0, assumed={"vpp": 1}),
        Outcome("two", "Table 1", "s", 1.0, refused="too odd"),
        Outcome("three", "Table 2", "s", 4.0, 4.4, gpus_per_token=1.0),
        Outcome("four", "Table 2", "", None, refused="row 5 (four), column tp: 'x' is not a number", malformed=True),
    )
)


def test_report_says_errors_and_reasons() -> None:
    """-10 % in one group, +10 % in the other, and why a row was refused."""
    text = render(validation_report(FOUND), plain=True)
    assert "-10.0 %" in text
    assert "+10.0 %" in text
    assert "Refused: 1 row that" in text
    assert "1: too odd" in text


def test_every_row_as_csv() -> None:
    """Four rows; numbers where predicted, reasons where not."""
    rows = list(csv.DictReader(io.StringIO(rows_csv(FOUND))))
    assert [row["id"] for row in rows] == ["one", "two", "three", "four"]
    assert abs(float(rows[0]["error"]) + 0.1) < 1e-9
    assert (rows[1]["predicted"], rows[1]["refused"]) == ("", "too odd")
    assert rows[0]["assumed"] == '{"vpp": 1}'


def test_picture(tmp_path: Path) -> None:
    """One small picture for each group."""
    path = tmp_path / "fidelity.svg"
    plot_validation(FOUND, path)
    text = path.read_text(encoding="utf-8")
    assert "<svg" in text
