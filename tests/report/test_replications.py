"""Replications as people read them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.report.layout import render
from simulator.report.replications import replications_report
from simulator.report.replications_plot import plot_replications
from tests.report.test_tables import assert_fits, row
from tests.results.test_replications import FOUND, ROWS


def test_quantiles_by_hand() -> None:
    """8, 9 and 10 days; three replications enclose no quantile; nothing is said of what is not known."""
    text = render(replications_report(FOUND))
    assert text.startswith("3 replications; the mean wall-clock is known to ± 28 %\n")
    first = text.split("b (below each")[0]
    assert row(first, "finish (days)") == ["8.2 d", "9.0 d", "9.8 d", "9.0 d"]
    below = first.splitlines()[first.splitlines().index(next(x for x in first.splitlines() if "finish" in x)) + 1]
    assert re.split(r"  +", below.strip()) == ["? – 10.0", "? – ?", "8.0 – ?", "6.5 – 11.5"]
    assert "energy" not in text
    assert row(first, "failures")[:3] == ["1.2", "2", "2.8"]


def test_losses_stand_by_fate_and_by_cause() -> None:
    """All of it was lost work, a sixth of it for the NIC; the last line adds up; small points have more decimals."""
    first = render(replications_report(FOUND)).split("b (below each")[0]
    healthy = 320e15 / (1e15 * 7 * 86400) * 100
    lost = healthy * (1 / 8 + 2 / 9 + 3 / 10) / 3
    assert row(first, "lost work")[:3] == [f"{lost:.4f}", "100.0 %", "gpu"]
    assert row(first, "sum") == [f"{lost:.4f}", "100.0 %", "failures", f"{lost:.4f}", "100.0 %"]


def test_differences_have_a_sign() -> None:
    """Second less first, with the interval of the pairs: 1 day, ± 2.48."""
    text = render(replications_report(FOUND)).split("b less a")[1]
    assert row(text, "finish (days)") == ["+1.00 d", "-1.48 to +3.48"]
    assert row(text, "goodput")[0].endswith(" points")
    assert row(text, "cost")[0].startswith("+")


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"stopped": "interrupted", "asked": 200}, "interrupted: 3 of 200 replications were finished; the mean"),
        ({"stopped": "precision", "precision": 0.5}, "3 replications, enough for the precision asked for; the mean"),
        ({"precision": 0.01}, "known to ± 28 %, not to the 1 % asked for"),
        ({"rows": ROWS[:1]}, "1 replications\n"),
    ],
)
def test_the_first_line_says_how_it_ended(changes: dict[str, object], title: str) -> None:
    """Interrupted, precise enough, or not."""
    assert title in render(replications_report(replace(FOUND, **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_overflows(width: int) -> None:
    """Tables keep to the width."""
    text = render(replications_report(replace(FOUND, rows=ROWS * 20)), width=width)
    assert_fits(text, width)
    assert "…" not in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    """Of several scenarios, a panel each, and of a run that always takes equally long."""
    plot_replications(FOUND, tmp_path / "several.png")
    plot_replications(replace(FOUND, rows=ROWS[:1] * 5, names=("a", "b")), tmp_path / "equal.svg")
    assert (tmp_path / "several.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "equal.svg").read_text(encoding="utf-8")
    for words in ("When the run finishes: 5 replications", "days until the run is finished", "P50: 8 days", "a", "b"):
        assert f"<!-- {words} -->" in text
