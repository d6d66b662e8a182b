"""Validation of kernels: our times of GEMMs and attention against tables of measurements.

Rows are grouped by accelerator and dtype (GEMMs) or accelerator and pass (attention). Errors are predicted / measured
- 1 in time. The shipped rows are the ones that the catalogue was fitted to, so that their errors are in sample; what
the fits reach on rows that they did not see is in the catalogue (`fit`).

Pinned by tests/studies/test_validate_kernels.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simulator.studies.kernel_rows import SHIPPED, Malformed, Row, by_group, predict, read_rows


class Score(NamedTuple):
    """Errors of some rows; None where there are none."""

    rows: int
    refused: int
    median_error: float | None
    mean_error: float | None
    p90_error: float | None
    bias: float | None


class GroupScore(NamedTuple):
    """Score of an accelerator's GEMMs of a dtype, or of its attention in a pass."""

    group: str
    score: Score


class RowResult(NamedTuple):
    """A row, what we say of it, and why not where we refuse; times in seconds."""

    id: str
    group: str
    predicted: float | None
    measured: float
    error: float | None
    refused: str | None
    source: str


class KernelValidation(NamedTuple):
    """Scores of tables of kernels.

    Attributes
    ----------
    malformed
        Rows that cannot be read; they are no part of any score. Those whose source leaves the shape blank are refused.
    """

    groups: list[GroupScore]
    overall: Score
    rows: list[RowResult]
    malformed: list[Malformed]

    @property
    def refused(self) -> list[RowResult]:
        """Well-formed rows that cannot be predicted."""
        return [row for row in self.rows if row.refused is not None]

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "overall": self.overall._asdict(),
            "groups": [{"group": each.group, **each.score._asdict()} for each in self.groups],
            "rows": [row._asdict() for row in self.rows],
            "refused": [{"row": row.id, "group": row.group, "reason": row.refused} for row in self.refused],
            "malformed": [{"row": row.row, "reason": row.reason} for row in self.malformed],
        }

    def csv(self) -> str:
        """Every row as a CSV table."""
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(RowResult._fields)
        table.writerows(self.rows)
        return stream.getvalue()


def validate_kernels(cases: Path | None = None) -> KernelValidation:
    """Predict a table of GEMMs or attention, or the shipped ones.

    Raises
    ------
    ScenarioError
        When the file cannot be read or lacks a column.
    """
    rows: list[Row] = []
    malformed: list[Malformed] = []
    for path in SHIPPED if cases is None else (cases,):
        read, bad = read_rows(path)
        rows += read
        malformed += bad
    found = predict(rows)
    members = by_group(rows)
    names = {index: " ".join(key) for key, indices in members.items() for index in indices}
    results = [_result(row, names[index], found[index]) for index, row in enumerate(rows)]
    results += [RowResult(bad.row, "unknown shape", None, 0.0, None, bad.reason, "") for bad in malformed if bad.blank]
    groups = [GroupScore(" ".join(key), score([results[i] for i in indices])) for key, indices in members.items()]
    return KernelValidation(groups, score(results), results, [bad for bad in malformed if not bad.blank])


def _result(row: Row, group: str, found: float | str) -> RowResult:
    if isinstance(found, str):
        return RowResult(row.row, group, None, row.seconds, None, found, row.source)
    return RowResult(row.row, group, found, row.seconds, found / row.seconds - 1, None, row.source)


def score(results: Sequence[RowResult]) -> Score:
    """Score of some rows."""
    errors = np.array([row.error for row in results if row.error is not None], dtype=float)
    refused = len(results) - len(errors)
    if not len(errors):
        return Score(0, refused, None, None, None, None)
    size = np.abs(errors)
    numbers = (np.median(size), size.mean(), np.quantile(size, 0.9), errors.mean())
    return Score(len(errors), refused, *map(float, numbers))
