"""How far predictions are from measurements: by row, by group, over all.

`error` = predicted / measured - 1, so that negative is optimistic; MAPE and bias are means of its size and of itself.
Rows that were refused count as rows, and in no mean. Groups of fewer than five rows are pooled by software stack in
`mean_of_groups`, the mean of the groups' MAPEs, so that no source outweighs another by its length.

Pinned by tests/studies/runs/test_score.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.scenario.units import Seconds

FEWEST = 5
"""Rows that a group needs for a mean and a rank correlation of its own."""


@dataclass(frozen=True)
class Outcome:
    """A row and what became of it.

    Attributes
    ----------
    predicted
        None where the row was refused, for the reason in `refused`.
    malformed
        Whether it was refused because it says something impossible.
    gpus_per_token
        GPUs over tokens of a step: times a step time, GPU-seconds per token.
    traits
        Accelerator, stack, kind of model and GPUs, by which a user's scenario finds the nearest group.
    parts
        Breakdown of the simulated step, where it was asked for.
    """

    id: str
    group: str
    stack: str
    measured: Seconds | None
    predicted: Seconds | None = None
    refused: str | None = None
    malformed: bool = False
    gpus_per_token: float = 0.0
    assumed: dict[str, Any] = field(default_factory=dict)
    traits: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float | None:
        """Relative error; None where refused."""
        if self.predicted is None or self.measured is None:
            return None
        return self.predicted / self.measured - 1

    def figures(self) -> dict[str, Any]:
        """As in the JSON output."""
        return {
            "id": self.id,
            "group": self.group,
            "predicted": self.predicted,
            "measured": self.measured,
            "error": self.error,
            "refused": self.refused,
            "assumed": self.assumed,
        }


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


def mape(outcomes: Iterable[Outcome]) -> float | None:
    """Mean absolute error of what was predicted."""
    return mean([abs(each.error) for each in outcomes if each.error is not None])


def bias(outcomes: Iterable[Outcome]) -> float | None:
    """Mean error of what was predicted."""
    return mean([each.error for each in outcomes if each.error is not None])


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of every value from 0; equals share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for position in range(start, end):
            found[order[position]] = (start + end - 1) / 2
        start = end
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's: Pearson's correlation of the ranks; None below five values or where all are equal.

    >>> rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    1.0
    """
    if len(first) < FEWEST:
        return None
    a, b = ranks(first), ranks(second)
    middle = (len(first) - 1) / 2
    across = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = (sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)) ** 0.5
    return across / spread if spread else None


def group_figures(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One line of the table."""
    known = [each for each in outcomes if each.predicted is not None and each.measured is not None]
    predicted = [(each.predicted or 0.0) * each.gpus_per_token for each in known]
    measured = [(each.measured or 0.0) * each.gpus_per_token for each in known]
    worst = max(known, key=lambda each: abs(each.error or 0.0), default=None)
    return {
        "group": name,
        "rows": len(outcomes),
        "refused": sum(each.refused is not None for each in outcomes),
        "mape": mape(outcomes),
        "bias": bias(outcomes),
        "worst": None if worst is None else {"id": worst.id, "error": worst.error},
        "rank_correlation": rank_correlation(predicted, measured),
    }


def by_group(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes of every group, groups in the order in which they appear."""
    found: dict[str, list[Outcome]] = {}
    for each in outcomes:
        found.setdefault(each.group, []).append(each)
    return found


def mean_of_groups(outcomes: Iterable[Outcome]) -> float | None:
    """Mean of the groups' MAPEs, small groups pooled by stack."""
    pools: dict[str, list[Outcome]] = {}
    for name, rows in by_group(outcomes).items():
        if len(rows) >= FEWEST:
            pools["group " + name] = rows
            continue
        for row in rows:
            pools.setdefault("stack " + row.stack, []).append(row)
    found = (mape(rows) for rows in pools.values())
    return mean([value for value in found if value is not None])


def overall_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The last line of the table."""
    return {
        "rows": len(outcomes),
        "refused": sum(each.refused is not None for each in outcomes),
        "mape": mape(outcomes),
        "mean_of_groups": mean_of_groups(outcomes),
        "bias": bias(outcomes),
    }
