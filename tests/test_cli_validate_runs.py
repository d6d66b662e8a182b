"""`trainsim validate` on training runs: what it prints and writes, and which rows make the exit code 1."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from simulator import cli
from simulator.studies.validate_runs import SHIPPED

RUNNER = CliRunner()
LINES = SHIPPED.read_text(encoding="utf-8").splitlines()
GOOD = next(line for line in LINES if line.startswith("flashattn-gpt-125M"))


def test_a_row_that_cannot_be_simulated_is_no_mistake(tmp_path: Path) -> None:
    """Exit code 0: it is counted, and every row is in the CSV, too."""
    path, every = tmp_path / "runs.csv", tmp_path / "every.csv"
    path.write_text("\n".join([LINES[0], GOOD, GOOD.replace(",bf16,", ",bf2,")]) + "\n", encoding="utf-8")
    found = RUNNER.invoke(cli.app, ["validate", "--cases", str(path), "--csv", str(every), "--jobs", "1"])
    assert found.exit_code == 0
    assert "Refused: 1 row that" in found.stdout
    assert len(every.read_text(encoding="utf-8").splitlines()) == 3


def test_a_malformed_row_is(tmp_path: Path) -> None:
    """Exit code 1, with row and column named; the others are predicted all the same."""
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([LINES[0], GOOD.replace("A100-80GB-SXM", "Z80"), GOOD]) + "\n", encoding="utf-8")
    found = RUNNER.invoke(cli.app, ["validate", "--cases", str(path), "--json", "--jobs", "1"])
    assert found.exit_code == 1
    assert "row 2 (flashattn-gpt-125M), column accelerator: 'Z80'" in found.stderr
    figures = json.loads(found.stdout)
    assert figures["overall"]["refused"] == 1
    assert figures["rows"][1]["predicted"] > 0
