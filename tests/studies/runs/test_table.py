"""Measured runs as a table: every mistake is named by row and column, and the other rows go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import ScenarioError
from simulator.studies.runs.table import Malformed, Row, parse_table, read_table

HEADER = (
    "id,group,split,accelerator,gpus,sequence_length,software,tp,pp,dp,micro_batch_size,global_batch_size,step_time_s,"
    "tokens_per_s_per_gpu,sequence_parallel"
)
GOOD = "a,g,test,A100-80GB-SXM,16,2048,Megatron-LM 2021,8,1,2,1,8,2.0,,yes"


def read(*lines: str) -> list[Row | Malformed]:
    """Rows of a table with the usual header."""
    return list(parse_table("\n".join([HEADER, *lines]), "table.csv"))


def test_a_row_is_read() -> None:
    """Numbers, words and switches have their types; blanks are None."""
    (row,) = read(GOOD)
    assert isinstance(row, Row)
    assert (row.line, row.id, row.group, row.split, row.software) == (2, "a", "g", "test", "Megatron-LM 2021")
    assert (row.get("tp"), row.get("sequence_parallel"), row.get("tokens_per_s_per_gpu")) == (8, True, None)
    assert row.step_time == 2.0


def test_throughput_gives_the_step_time() -> None:
    """8 sequences of 2,048 tokens over 16 GPUs at 512 tokens/s/GPU take 8 · 2048 / (16 · 512) = 2 s."""
    (row,) = read(GOOD.replace("2.0,,", ",512,"))
    assert isinstance(row, Row)
    assert row.step_time == 2.0


@pytest.mark.parametrize(
    ("old", "new", "column", "problem"),
    [
        (",8,1,2,", ",x,1,2,", "tp", "'x' is not a number"),
        (",8,1,2,", ",8.5,1,2,", "tp", "'8.5' is not a whole number"),
        (",8,1,2,", ",0,1,2,", "tp", "at least 1"),
        (",8,1,2,", ",8,1,4,", "dp", "tp 8 × pp 1 × dp 4 = 32 does not multiply to 16 gpus"),
        (",8,1,2,", ",8,3,,", "gpus", "tp 8 × pp 3 = 24 does not divide 16 gpus"),
        ("A100-80GB-SXM", "A1000", "accelerator", "'A1000' is not in the catalogue"),
        ("A100-80GB-SXM", "", "accelerator", "is blank"),
        ("2.0,,yes", "nan,,yes", "step_time_s", "'nan' is not a finite number"),
        ("2.0,,yes", "-1,,yes", "step_time_s", "'-1' is not above 0"),
        ("2.0,,yes", ",,yes", "tokens_per_s_per_gpu", "is blank"),
        ("2.0,,yes", "2.0,,maybe", "sequence_parallel", "'maybe' is neither yes nor no"),
        (",test,", ",exam,", "split", "'exam' is none of"),
        ("2.0,,yes", "2.0,,yes,more", "(end)", "more cells"),
    ],
)
def test_a_mistake_names_row_and_column(old: str, new: str, column: str, problem: str) -> None:
    """The row after it is read all the same."""
    wrong, right = read(GOOD.replace(old, new), GOOD)
    assert isinstance(wrong, Malformed)
    assert (wrong.line, wrong.id, wrong.column) == (2, "a", column)
    assert problem in wrong.problem
    assert str(wrong).startswith(f"row 2 (a), column {column}: ")
    assert isinstance(right, Row)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """A table without accelerators is no table of runs; nor is one that measures nothing."""
    with pytest.raises(ScenarioError, match=r"column 'accelerator' is missing; a table of runs needs id, group"):
        parse_table(HEADER.replace("accelerator", "chip"), "table.csv")
    with pytest.raises(ScenarioError, match="measures nothing"):
        parse_table(HEADER.replace("step_time_s,tokens_per_s_per_gpu,", ""), "table.csv")
    with pytest.raises(ScenarioError, match=r"nowhere.csv.*cannot be read"):
        read_table(tmp_path / "nowhere.csv")
