"""Collectives for people: the nccl-tests-like table, the validation against measurements, and their pictures.

Pinned by tests/report/test_collectives.py.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from simulator.report.formats import percent, seconds
from simulator.report.tables import Report
from simulator.studies.collectives import CollectiveTable
from simulator.studies.validate import CollectiveValidation, Score


def size_text(size: float) -> str:
    """Bytes in powers of two where they are whole: ``64 KiB``, ``1.5 MiB``, ``1000 B``."""
    for factor, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size:.4g} B"


def collective_report(found: CollectiveTable) -> Report:
    """One line per size, as nccl-tests prints them."""
    where = f"over {found.domains} scale-up domains" if found.domains > 1 else "in one scale-up domain"
    how = f"fitted to {found.tuning} kernels" if found.tuning else "NCCL's own constants: no fit for this accelerator"
    table = _table(["size", "algorithm", "protocol", "time", "algbw GB/s", "busbw GB/s"], left=(1, 2))
    for row in found.rows:
        numbers = (f"{row.algbw / 1e9:.2f}", f"{row.busbw / 1e9:.2f}")
        table.add_row(size_text(row.size), row.algorithm, row.protocol, seconds(row.time), *numbers)
    title = f"{found.op} between {found.gpus} GPUs of {found.cluster}, {where} ({how})"
    return [Text(title, style="bold"), table]


def validation_report(found: CollectiveValidation) -> Report:
    """Errors by platform, operation and decade of size, what was assumed, and what was refused."""
    table = _table(["hardware", "op", "bytes", "rows", "median |error|", "90th percentile", "bias"], left=(0, 1))
    for group in found.groups:
        table.add_row(group.hardware, group.op, f"1e{group.decade}", *_score(group.score))
    totals = (("1 MiB and more", found.large), ("below 1 MiB", found.small), ("overall", found.overall))
    for name, score in totals:
        table.add_row(name, "", "", *_score(score), style="bold")
    title = "Collectives: predicted / measured - 1 in time"
    parts: Report = [Text(title, style="bold"), table]
    if found.assumed:
        by_platform = defaultdict(list)
        for platform, what in found.assumed:
            by_platform[platform].append(what)
        parts.append(Text("Assumed where a row leaves it open"))
        parts += [Text(f"  {platform}: {'; '.join(what)}") for platform, what in by_platform.items()]
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in found.refused:
        reasons[row.reason].append(row.row)
    parts.append(Text(f"Refused: {len(found.refused)} rows"))
    parts += [Text(f"  {len(rows)} ({_some(rows)}): {reason}") for reason, rows in reasons.items()]
    return parts


def plot_collective(found: CollectiveTable, path: Path) -> None:
    """Draw time and bus bandwidth over size into a new PNG, SVG or PDF, by the suffix of `path`."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = [row.size for row in found.rows]
    left.loglog(sizes, [row.time for row in found.rows], marker="o", markersize=3, color="#0072B2")
    left.set(xlabel="bytes", ylabel="seconds")
    right.semilogx(sizes, [row.busbw / 1e9 for row in found.rows], marker="o", markersize=3, color="#D55E00")
    right.set(xlabel="bytes", ylabel="bus bandwidth, GB/s", ylim=(0, None))
    figure.suptitle(f"{found.op} between {found.gpus} GPUs of {found.cluster}")
    figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix == ".png" else None)


def _table(headers: list[str], left: tuple[int, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if place in left else "right", no_wrap=True)
    return table


def _score(score: Score) -> tuple[str, str, str, str]:
    errors = (score.median_error, score.p90_error, score.bias)
    median, p90, bias = ("-" if error is None else percent(error) for error in errors)
    return str(score.rows), median, p90, bias


def _some(rows: list[str]) -> str:
    shown = ", ".join(rows[:5])
    return f"rows {shown}, …" if len(rows) > 5 else f"row{'s' if len(rows) > 1 else ''} {shown}"
