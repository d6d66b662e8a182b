"""Columns of tables of measurements: all missing ones in one message, and the help names all that are needed."""

from __future__ import annotations

from typer.testing import CliRunner

from simulator import cli
from simulator.studies import collective_rows, kernel_rows, memory_rows
from simulator.studies.columns import missing_columns, names_any
from simulator.studies.runs import table


def test_all_missing_columns_are_named() -> None:
    """One or several."""
    assert missing_columns(["m"]) == "column 'm' is missing"
    assert missing_columns(["m", "n", "k"]) == "columns 'm', 'n', 'k' are missing"


def test_words_with_numbers_around_them() -> None:
    """NVLink4 and 8x400G are words with numbers, fibre is not ib."""
    assert names_any(["nvlink"], "NVLink4")
    assert names_any(["g"], "8x400G")
    assert names_any(["ib"], "HDR-IB, 8 cards")
    assert not names_any(["ib"], "fibre")
    assert not names_any(["ib"], "")


def test_help_names_every_column() -> None:
    """`trainsim validate --help` says what a table of one's own has to hold."""
    words = set(CliRunner().invoke(cli.app, ["validate", "--help"]).stdout.replace("[", " ").replace("]", " ").split())
    named = {word.strip(".,;:") for word in words}
    runs = {*table.REQUIRED, *table.COUNTS, *table.SWITCHES, "precision", "schedule", "recompute", "attention", "split"}
    kernels = {*kernel_rows.GEMM_COLUMNS, *kernel_rows.ATTENTION_COLUMNS}
    assert {*runs, *kernels, *memory_rows.REQUIRED, *collective_rows.REQUIRED} <= named
