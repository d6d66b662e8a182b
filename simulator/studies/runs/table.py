"""A table of measured training runs: every cell checked, every mistake named by row and column.

One row is one configuration with its measured step time. Blank cells are unknown. A row with a mistake (a number that
is none, an accelerator that nobody knows, a split that does not multiply) is malformed: it is reported, the others go
on.

Pinned by tests/studies/runs/test_table.py.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import ScenarioError
from simulator.scenario.explain import nearest
from simulator.scenario.hardware import read_accelerators
from simulator.studies.columns import missing_columns

COUNTS = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "vocab_size",
    "sequence_length", "num_experts", "top_k", "gpus", "gpus_per_node", "tp", "cp", "pp", "vpp", "ep", "dp",
    "zero_stage", "zero_group", "micro_batch_size", "global_batch_size",
)  # fmt: skip
NUMBERS = ("params_b", "scale_up_GBps", "nic_Gbps", "step_time_s", "tokens_per_s_per_gpu", "peak_memory_bytes")
SWITCHES = ("gated_mlp", "sequence_parallel")
WORDS = (
    "id", "split", "group", "model", "accelerator", "fabric", "precision", "schedule", "recompute", "attention",
    "software", "peak_memory_kind", "complete", "source", "notes",
)  # fmt: skip

REQUIRED = ("id", "group", "accelerator", "gpus", "sequence_length", "software")
"""Columns that a table must have; each of the others may be left out, which is as good as blank."""

SPLITS = ("calibration", "test", "heldout")


@dataclass(frozen=True)
class Row:
    """One measured run; `cells` holds what is not blank, numbers in the columns' own units.

    Attributes
    ----------
    line
        Of the file, the header being 1.
    step_time
        Measured seconds of a step.
    """

    line: int
    id: str
    group: str
    split: str
    software: str
    cells: dict[str, Any]
    step_time: float

    def get(self, column: str) -> Any:
        """A cell; None where it is blank."""
        return self.cells.get(column)


@dataclass(frozen=True)
class Malformed:
    """A row that says something impossible."""

    line: int
    id: str
    group: str
    column: str
    problem: str

    def __str__(self) -> str:
        return f"row {self.line} ({self.id or 'no id'}), column {self.column}: {self.problem}"


def read_table(path: Path) -> Iterator[Row | Malformed]:
    """Every row of a file.

    Raises
    ------
    ScenarioError
        The file cannot be read, is no table, or lacks a required column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error  # without the path once more
        raise ScenarioError(f"cannot be read: {reason}", file=str(path)) from None
    return parse_table(text, str(path))


def parse_table(text: str, name: str) -> Iterator[Row | Malformed]:
    """Every row of a table; `name` is what messages call it."""
    reader = csv.DictReader(io.StringIO(text))
    header = reader.fieldnames or ()
    missing = [column for column in REQUIRED if column not in header]
    if missing:
        raise ScenarioError(f"{missing_columns(missing)}; a table of runs needs {', '.join(REQUIRED)}", file=name)
    if not any(column in header for column in ("step_time_s", "tokens_per_s_per_gpu")):
        raise ScenarioError("the table measures nothing: it needs step_time_s or tokens_per_s_per_gpu", file=name)
    return (_read_row(reader.line_num, cells) for cells in reader)


def _read_row(line: int, texts: dict[str, Any]) -> Row | Malformed:
    found = {column: text.strip() for column, text in texts.items() if column and isinstance(text, str)}
    name, group = found.get("id", ""), found.get("group", "")
    cells: dict[str, Any] = {}
    try:
        if None in texts:
            raise _CellError("(end)", "has more cells than the header has columns")
        for column, text in found.items():
            value = _read_cell(column, text)
            if value is not None:
                cells[column] = value
        _check_accelerator(cells)
        _check_split(cells)
        time = _step_time(cells)
    except _CellError as wrong:
        return Malformed(line, name, group, wrong.column, wrong.problem)
    split = cells.get("split", "")
    return Row(line, name or f"row-{line}", group, split, cells.get("software", ""), cells, time)


class _CellError(Exception):
    def __init__(self, column: str, problem: str) -> None:
        super().__init__(problem)
        self.column, self.problem = column, problem


def _read_cell(column: str, text: str) -> Any:
    """The value of a cell; None where it is blank."""
    if not text:
        return None
    if column in COUNTS:
        number = _number(column, text)
        least = 0 if column in ("zero_stage", "num_experts", "top_k") else 1
        if number != int(number) or number < least:
            raise _CellError(column, f"{text!r} is not a whole number of at least {least}")
        return int(number)
    if column in NUMBERS:
        number = _number(column, text)
        if number <= 0:
            raise _CellError(column, f"{text!r} is not above 0")
        return number
    if column in SWITCHES:
        if text.lower() not in ("yes", "no"):
            raise _CellError(column, f"{text!r} is neither yes nor no")
        return text.lower() == "yes"
    if column == "split" and text not in SPLITS:
        raise _CellError(column, f"{text!r} is none of {', '.join(SPLITS)}")
    return text


def _number(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _CellError(column, f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise _CellError(column, f"{text!r} is not a finite number")
    return value


def _need(cells: dict[str, Any], columns: Iterable[str]) -> None:
    for column in columns:
        if column not in cells:
            raise _CellError(column, "is blank, but every row needs it")


def _check_accelerator(cells: dict[str, Any]) -> None:
    _need(cells, ("accelerator",))
    known = read_accelerators()
    name = cells["accelerator"]
    if name.lower() not in known:
        names = sorted({accelerator.name for accelerator in known.values()})
        raise _CellError(
            "accelerator", f"{name!r} is not in the catalogue{nearest(name.lower(), known)}; known: {', '.join(names)}"
        )


def _check_split(cells: dict[str, Any]) -> None:
    """The degrees multiply to the GPUs; one that is blank is derived or 1."""
    _need(cells, ("gpus", "sequence_length"))
    gpus = cells["gpus"]
    given = {axis: cells[axis] for axis in ("tp", "cp", "pp", "dp") if axis in cells}
    product = math.prod(given.values())
    factors = " × ".join(f"{axis} {degree:,}" for axis, degree in given.items()) or "nothing"
    if "dp" in given and product != gpus:
        raise _CellError("dp", f"{factors} = {product:,} does not multiply to {gpus:,} gpus")
    if "dp" not in given and gpus % product:
        raise _CellError("gpus", f"{factors} = {product:,} does not divide {gpus:,} gpus")


def _step_time(cells: dict[str, Any]) -> float:
    """Measured seconds of a step: as given, or from the throughput."""
    if "step_time_s" in cells:
        return float(cells["step_time_s"])
    if "tokens_per_s_per_gpu" not in cells:
        raise _CellError("tokens_per_s_per_gpu", "is blank, as is step_time_s; every row needs one of them")
    _need(cells, ("global_batch_size",))
    tokens = cells["global_batch_size"] * cells["sequence_length"]
    return float(tokens / (cells["tokens_per_s_per_gpu"] * cells["gpus"]))
