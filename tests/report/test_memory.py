"""Memory as people read it: every stage, the totals, what was tried, and errors by model."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.report.memory import memory_report, rows_csv, validation_report
from simulator.report.tables import render
from simulator.studies.memory import memory_plan
from simulator.studies.validate_memory import validate_memory
from tests.small import write_small
from tests.studies.test_memory import HUGE
from tests.studies.test_validate_memory import write_rows


@pytest.mark.parametrize("width", [80, 120])
def test_every_stage_and_total_is_shown(tmp_path: Path, width: int) -> None:
    """Both stages, the three totals, the verdict; no line is too wide."""
    text = render(memory_report(memory_plan(write_small(tmp_path))), plain=True, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith(("0 ", "1 ")) for line in lines) == 4
    assert "allocated" in text
    assert "It fits." in text


def test_changes_are_listed_where_it_does_not_fit(tmp_path: Path) -> None:
    """The problem, then each change with what it needs."""
    plan = memory_plan(write_small(tmp_path, **HUGE))
    text = render(memory_report(plan), plain=True, width=120)
    assert "It does not fit: pipeline stage" in text
    assert all(str(change) in text for change in plan.changes)


def test_validation_names_groups_and_reasons(tmp_path: Path) -> None:
    """A line per model, one overall, and the reason of a refused row."""
    found = validate_memory(write_rows(tmp_path, {}, {"tp": "3", "gpus": "24"}))
    text = render(validation_report(found), plain=True, width=120)
    assert "1.34B" in text
    assert "overall" in text
    assert "1: num_attention_heads 32 is not divisible by tp 3" in text
    assert rows_csv(found).count("\n") == 3
