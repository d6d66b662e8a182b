"""Validation: our predictions against tables of measurements, one function per kind of table.

Pinned by tests/studies/test_validate.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simulator.studies.collective_rows import SHIPPED, Malformed, Row, machine_of, predict, read_rows

LARGE = 2**20
"""Bytes from which a message counts as large."""


class Score(NamedTuple):
    """Errors, predicted / measured - 1 in time, of some rows; None where there are none."""

    rows: int
    median_error: float | None
    p90_error: float | None
    bias: float | None


class GroupScore(NamedTuple):
    """Score of a platform's operation in a decade of sizes, floor(log10(bytes))."""

    hardware: str
    op: str
    decade: int
    score: Score


class Refused(NamedTuple):
    """A well-formed row that cannot be represented."""

    row: str
    reason: str


class CollectiveValidation(NamedTuple):
    """Scores of a table of collectives.

    Attributes
    ----------
    large, small
        Messages of 1 MiB and more, and below.
    assumed
        Per platform and network what its rows left open and we filled in.
    malformed
        Rows that cannot be read; they are no part of any score.
    """

    groups: list[GroupScore]
    overall: Score
    large: Score
    small: Score
    refused: list[Refused]
    assumed: list[tuple[str, str]]
    malformed: list[Malformed]

    def figures(self) -> dict[str, Any]:
        """Everything but what is assumed, as JSON; malformed rows are among the refused."""
        return {
            "groups": [
                {"hardware": each.hardware, "op": each.op, "decade": each.decade, **each.score._asdict()}
                for each in self.groups
            ],
            "overall": {
                **self.overall._asdict(),
                "refused": len(self.refused) + len(self.malformed),
                "at_least_1MiB": self.large._asdict(),
                "below_1MiB": self.small._asdict(),
            },
            "refused": [{"row": row, "reason": reason} for row, reason in (*self.refused, *self.malformed)],
        }


def validate_collectives(path: Path | None = None) -> CollectiveValidation:
    """Predict every row of a table of collectives; the shipped one if none is named.

    Raises
    ------
    ScenarioError
        When the file cannot be read or lacks a column.
    """
    rows, malformed = read_rows(path or SHIPPED)
    by_group: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    by_size: dict[bool, list[float]] = defaultdict(list)
    refused, kept = [], []
    for row, seconds in zip(rows, predict(rows), strict=True):
        if isinstance(seconds, str):
            refused.append(Refused(row.row, seconds))
            continue
        error = seconds / row.seconds - 1
        by_group[row.platform, row.op, math.floor(math.log10(row.size))].append(error)
        by_size[row.size >= LARGE].append(error)
        kept.append(row)
    return CollectiveValidation(
        [GroupScore(*key, score(errors)) for key, errors in sorted(by_group.items())],
        score(by_size[True] + by_size[False]),
        score(by_size[True]),
        score(by_size[False]),
        refused,
        _assumed(kept),
        malformed,
    )


def score(errors: Sequence[float]) -> Score:
    """Median and 90th percentile of the absolute error, and the mean error.

    Examples
    --------
    >>> score([0.1, -0.2, 0.3])
    Score(rows=3, median_error=0.2, p90_error=0.28, bias=0.066667)
    """
    if not errors:
        return Score(0, None, None, None)
    sizes = np.abs(errors)
    median, p90 = float(np.median(sizes)), float(np.percentile(sizes, 90))
    return Score(len(errors), round(median, 6), round(p90, 6), round(float(np.mean(errors)), 6))


def _assumed(rows: Sequence[Row]) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for row in rows:
        for name, value in machine_of(row).assumed.items():
            found[row.platform, f"{name} {value}"] = None
    return sorted(found)
