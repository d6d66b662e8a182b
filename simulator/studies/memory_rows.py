"""A table of runs that fitted in memory or did not: every cell checked, every mistake named by row and column.

The columns are those of the Ultra-Scale Playbook's sweep (nanotron on H100): a Llama's shape, the split, the
microbatch, `status` Success or OOM, and what PyTorch's allocator had allocated and reserved.

Pinned by tests/studies/test_validate_memory.py.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import ScenarioError
from simulator.scenario.explain import nearest
from simulator.scenario.hardware import read_accelerators
from simulator.scenario.units import Bytes
from simulator.studies.columns import missing_columns

COUNTS = (
    "layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "seq_len", "gpus", "dp", "tp", "pp", "micro_batch",
    "grad_accum",
)  # fmt: skip
REQUIRED = ("model", *COUNTS, "zero_stage", "tied", "status")
"""Columns that a table must have. `id`, `accelerator` (an H100), `software` (nanotron), `after_pp_fix` (false),
`mem_alloc_bytes` and `mem_reserved_bytes` may be missing or blank; others are not looked at."""

_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_ACCELERATOR = "h100"


@dataclass(frozen=True)
class MemoryRow:
    """One run.

    Attributes
    ----------
    fitted
        Whether it ran.
    reserved
        PyTorch's `max_memory_reserved` on the first rank; None where it was not published.
    at_step
        Its `max_memory_allocated` since the backward passes; None where it was not published.
    """

    line: int
    id: str
    model: str
    sizes: Mapping[str, int]
    zero_stage: int
    tied: bool
    after_pp_fix: bool
    accelerator: str
    software: str
    fitted: bool
    reserved: Bytes | None
    at_step: Bytes | None


@dataclass(frozen=True)
class MalformedRow:
    """A row that says something impossible."""

    line: int
    id: str
    model: str
    column: str
    problem: str

    def __str__(self) -> str:
        return f"row {self.line}, column {self.column}: {self.problem}"


class _CellError(Exception):
    """What is wrong in a cell."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(problem)
        self.column, self.problem = column, problem


def holds_runs(path: Path) -> bool:
    """Whether a file is a table of training runs with peaks, not of runs that fitted or did not."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError):
        return False
    return "peak_memory_bytes" in header and "status" not in header


def read_memory_rows(path: Path) -> Iterator[MemoryRow | MalformedRow]:
    """Every row of a file.

    Raises
    ------
    ScenarioError
        The file cannot be read, or lacks a required column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot be read: {error}", file=str(path)) from None
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
    if missing:
        raise ScenarioError(
            f"{missing_columns(missing)}; a table of memory needs {', '.join(REQUIRED)}",
            file=str(path),
        )
    for line, cells in enumerate(reader, start=2):
        name, model = (cells.get("id") or "").strip(), (cells.get("model") or "").strip()
        try:
            yield _row(line, name or f"row {line}", model, cells)
        except _CellError as wrong:
            yield MalformedRow(line, name or f"row {line}", model, wrong.column, wrong.problem)


def _row(line: int, name: str, model: str, cells: Mapping[str, str | None]) -> MemoryRow:
    if cells.get(None):  # type: ignore[call-overload]
        raise _CellError("(beyond the last)", "the row has more cells than the header")
    if not model:
        raise _CellError("model", "is blank, but every row needs it")
    sizes = {column: _count(column, cells[column]) for column in COUNTS}
    product = sizes["dp"] * sizes["tp"] * sizes["pp"]
    if product != sizes["gpus"]:
        factors = " × ".join(f"{axis} {sizes[axis]}" for axis in ("dp", "tp", "pp"))
        raise _CellError("gpus", f"{factors} = {product:,} does not multiply to {sizes['gpus']:,}")
    if sizes["hidden"] % sizes["heads"]:
        raise _CellError("heads", f"{sizes['heads']} does not divide hidden {sizes['hidden']}")
    if sizes["heads"] % sizes["kv_heads"]:
        raise _CellError("kv_heads", f"{sizes['kv_heads']} does not divide heads {sizes['heads']}")
    stage = _count("zero_stage", cells["zero_stage"], least=0)
    if stage > 3:
        raise _CellError("zero_stage", f"{stage} is none of 0, 1, 2, 3")
    status = (cells["status"] or "").strip().lower()
    if status not in ("success", "oom"):
        raise _CellError("status", f"{cells['status']!r} is neither Success nor OOM")
    return MemoryRow(
        line, name, model, sizes, stage,
        tied=_truth("tied", cells["tied"]),
        after_pp_fix=_truth("after_pp_fix", cells.get("after_pp_fix") or "false"),
        accelerator=_accelerator(cells.get("accelerator")),
        software=(cells.get("software") or "").strip(),
        fitted=status == "success",
        reserved=_bytes("mem_reserved_bytes", cells.get("mem_reserved_bytes")),
        at_step=_bytes("mem_alloc_bytes", cells.get("mem_alloc_bytes")),
    )  # fmt: skip


def _number(column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise _CellError(column, f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise _CellError(column, f"{text!r} is not a finite number")
    return value


def _count(column: str, text: str | None, least: int = 1) -> int:
    value = _number(column, text)
    if value != int(value) or value < least:
        raise _CellError(column, f"{text!r} is not a whole number of at least {least}")
    return int(value)


def _bytes(column: str, text: str | None) -> Bytes | None:
    if not (text or "").strip():
        return None
    value = _number(column, text)
    if value <= 0:
        raise _CellError(column, f"{text!r} is not a positive number of bytes")
    return value


def _truth(column: str, text: str | None) -> bool:
    found = _TRUTH.get((text or "").strip().lower())
    if found is None:
        raise _CellError(column, f"{text!r} is neither True nor False")
    return found


def _accelerator(text: str | None) -> str:
    name = (text or "").strip() or _ACCELERATOR
    known = read_accelerators()
    if name.lower() not in known:
        raise _CellError("accelerator", f"{name!r} is not in the catalogue{nearest(name.lower(), known)}")
    return name
