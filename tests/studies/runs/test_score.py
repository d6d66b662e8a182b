"""Errors by row, group and overall, against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.studies.runs.score import (
    Outcome,
    by_group,
    group_figures,
    mean_of_groups,
    overall_figures,
    rank_correlation,
)


def outcome(group: str, predicted: float | None, measured: float = 1.0, stack: str = "s", name: str = "") -> Outcome:
    """A row."""
    refused = None if predicted is not None else "no"
    return Outcome(name or f"{group}{predicted}", group, stack, measured, predicted, refused, gpus_per_token=1.0)


def test_group_figures_by_hand() -> None:
    """Errors -10 %, +20 % and -30 %: MAPE 20 %, bias -6.67 %, worst -30 %; the refused row counts in no mean."""
    rows = [outcome("g", 0.9), outcome("g", 2.4, 2.0), outcome("g", 0.7, name="bad"), outcome("g", None)]
    figures = group_figures("g", rows)
    assert (figures["rows"], figures["refused"]) == (4, 1)
    assert figures["mape"] == pytest.approx(0.2)
    assert figures["bias"] == pytest.approx(-0.2 / 3)
    assert figures["worst"] == {"id": "bad", "error": pytest.approx(-0.3)}
    assert figures["rank_correlation"] is None  # below five rows


def test_small_groups_are_pooled_by_stack() -> None:
    """Five rows at 10 %, and two groups of one stack, 1 row at 20 % and 1 at 40 %: the mean of 10 % and 30 %."""
    rows = [outcome("large", 1.1)] * 5 + [outcome("small", 1.2), outcome("tiny", 0.6)]
    assert mean_of_groups(rows) == pytest.approx(0.2)
    assert overall_figures(rows)["mape"] == pytest.approx((0.5 + 0.2 + 0.4) / 7)


def test_everything_refused() -> None:
    """No row, no mean."""
    assert overall_figures([outcome("g", None)]) == {
        "rows": 1, "refused": 1, "mape": None, "mean_of_groups": None, "bias": None,
    }  # fmt: skip


def test_ranks_share_ties() -> None:
    """1, 2, 2, 3, 4 against 1, 2, 3, 4, 5: ranks 0 1.5 1.5 3 4 and 0 1 2 3 4 give 9.5 / sqrt(9.5 · 10)."""
    assert rank_correlation([1, 2, 2, 3, 4], [1, 2, 3, 4, 5]) == pytest.approx(9.5 / 95**0.5)
    assert rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None


@given(st.lists(st.integers(1, 10**6), min_size=5, max_size=30, unique=True))
def test_rank_correlation_knows_order_only(values: list[int]) -> None:
    """Of a rising function 1, of a falling one -1."""
    assert rank_correlation(values, [3 * value + 1 for value in values]) == pytest.approx(1)
    assert rank_correlation(values, [-value for value in values]) == pytest.approx(-1)


def test_groups_keep_their_order() -> None:
    """As they first appear in the table."""
    assert list(by_group([outcome("b", 1.0), outcome("a", 1.0), outcome("b", 1.0)])) == ["b", "a"]
