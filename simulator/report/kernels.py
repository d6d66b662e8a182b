"""Kernels for people: their validation against measurements.

Pinned by tests/studies/test_validate_kernels.py.
"""

from __future__ import annotations

from collections import defaultdict

from rich.table import Table
from rich.text import Text

from simulator.report.formats import percent
from simulator.report.tables import Report
from simulator.studies.validate_kernels import KernelValidation, Score


def kernel_report(found: KernelValidation) -> Report:
    """Errors by accelerator and dtype or pass, and what was refused."""
    table = Table(box=None, pad_edge=False)
    table.add_column("group")
    for name in ("rows", "refused", "median |error|", "mean |error|", "90th percentile", "bias"):
        table.add_column(name, justify="right")
    for group in found.groups:
        table.add_row(group.group, *_cells(group.score))
    table.add_row("overall", *_cells(found.overall), style="bold")
    parts: Report = [Text("Kernels: predicted / measured - 1 in time", style="bold"), table]
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in found.refused:
        reasons[row.refused or ""].append(row.id)
    parts.append(Text(f"Refused: {len(found.refused)} {'row' if len(found.refused) == 1 else 'rows'}"))
    parts += [Text(f"  {len(rows)} ({', '.join(rows[:3])}{', ...' if len(rows) > 3 else ''}): {reason}")
              for reason, rows in reasons.items()]  # fmt: skip
    return parts


def _cells(score: Score) -> tuple[str, ...]:
    errors = (score.median_error, score.mean_error, score.p90_error, score.bias)
    return (str(score.rows), str(score.refused), *("–" if each is None else percent(each) for each in errors))
