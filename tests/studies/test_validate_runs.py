"""Validation against measured runs: every row is accounted for, in order, whoever computes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from simulator.errors import ScenarioError
from simulator.studies import validate_runs
from simulator.studies.runs.table import Malformed, read_table
from simulator.studies.validate_runs import SHIPPED, predict, validate


def small(tmp_path: Path, *extra: str) -> Path:
    """A table of five shipped rows that fit one node, and more lines."""
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    chosen = [line for line in lines if line.startswith("flashattn")]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([lines[0], *chosen, *extra]) + "\n", encoding="utf-8")
    return path


def test_a_small_table(tmp_path: Path) -> None:
    """Five runs of GPT-2 sizes on 8 A100: every one predicted, within a third, and in the right order."""
    found = validate(small(tmp_path))
    figures = found.figures()
    (group,) = figures["groups"]
    assert (group["rows"], group["refused"]) == (5, 0)
    assert group["mape"] < 0.33
    assert group["rank_correlation"] == pytest.approx(1)
    assert figures["overall"]["mape"] == pytest.approx(group["mape"])
    assert [row["id"] for row in figures["rows"]] == [each.id for each in found.outcomes]
    assert set(figures["rows"][0]) == {"id", "group", "predicted", "measured", "error", "refused", "assumed"}
    assert set(figures["overall"]) == {"rows", "refused", "mape", "mean_of_groups", "bias"}


def test_wrong_rows_are_counted_and_the_others_go_on(tmp_path: Path) -> None:
    """A malformed row and one that cannot be represented, each with its reason."""
    good = next(line for line in SHIPPED.read_text(encoding="utf-8").splitlines() if line.startswith("flashattn"))
    malformed = good.replace("A100-80GB-SXM", "Z80")
    refused = good.replace(",bf16,", ",bf2,")
    found = validate(small(tmp_path, malformed, refused))
    assert [each.malformed for each in found.outcomes] == [False] * 5 + [True, False]
    assert "column accelerator: 'Z80'" in str(found.outcomes[5].refused)
    assert "precision" in str(found.outcomes[6].refused)
    assert found.figures()["overall"]["refused"] == 2


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures in the same order from one process and from two; progress ends with all rows."""
    path = small(tmp_path)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(validate_runs, "_IN_PROCESS", 0)
    two = validate(path, jobs=2, tell=lambda done, rows: seen.append((done, rows)))
    assert two.figures() == validate(path, jobs=1).figures()
    assert seen[-1] == (5, 5)


def test_no_such_split_or_group(tmp_path: Path) -> None:
    """Named, with what there is."""
    path = small(tmp_path)
    with pytest.raises(ScenarioError, match="no split 'exam'"):
        validate(path, split="exam")
    with pytest.raises(ScenarioError, match=r"no group 'SC21'.*there are: Dao-AILab"):
        validate(path, group="SC21")
    with pytest.raises(ScenarioError, match="no rows of split heldout"):
        validate(path, split="heldout")
    assert predict([]) == []


def test_shipped_rows_are_sound() -> None:
    """No row of the package is malformed, every group has its source, and ids are unique."""
    rows = list(read_table(SHIPPED))
    assert not [row for row in rows if isinstance(row, Malformed)]
    sources = yaml.safe_load((SHIPPED.parent / "training_sources.yaml").read_text(encoding="utf-8"))
    assert {row.group for row in rows} == set(sources)
    assert len({row.id for row in rows}) == len(rows) > 800
