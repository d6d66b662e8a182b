"""Memory for people: parts and totals of every pipeline stage, what would make a scenario fit, and how right we are.

Pinned by tests/report/test_memory.py.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from simulator.report.formats import percent
from simulator.report.tables import Report
from simulator.scenario.pipeline import num_stages
from simulator.studies.memory import MemoryPlan

if TYPE_CHECKING:
    from simulator.studies.validate_memory import MemoryValidation

_SHOWN = ("weights", "gradients", "optimizer", "activations", "logits")


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", header_style="dim", no_wrap=True)
    return table


def gigabytes(size: float) -> str:
    """Bytes in GB with two decimals."""
    return f"{size / 1e9:.2f}"


def memory_report(plan: MemoryPlan) -> Report:
    """Per stage what fills a GPU, the three totals against capacity, and the changes that were tried."""
    accelerator = plan.scenario.accelerator
    report: Report = [
        Text(f"Memory of {plan.scenario.name}", style="bold underline"),
        Text(f"per GPU in GB (1e9 bytes); a {accelerator.name} has {gigabytes(plan.capacity)}"),
        Text(""),
    ]
    report += _parts(plan) + _totals(plan) + _largest(plan) + _on_the_host(plan)
    return report + (_changes(plan) if plan.problem else [Text("It fits.", style="green")])


def _parts(plan: MemoryPlan) -> Report:
    schedule, pp = plan.scenario.training.schedule, plan.scenario.parallelism.pp or 1
    chunks = num_stages(schedule.kind, pp, schedule.vpp) // pp
    table = _table(("stage", "in flight", *_SHOWN, "other"))
    for stage in plan.stages:
        shown = [stage.parts[part] for part in _SHOWN]
        flight = stage.in_flight / chunks  # a chunk is a share of a microbatch
        sizes = [gigabytes(size) for size in (*shown, stage.total - sum(shown))]
        table.add_row(str(stage.rank), f"{flight:.3g}", *sizes)
    return [Text("Parts by pipeline stage; microbatches in flight", style="bold"), table, Text("")]


def _totals(plan: MemoryPlan) -> Report:
    table = _table(("stage", "allocated", "reserved", "device", "needed", "of capacity"))
    for stage in plan.stages:
        sizes = [gigabytes(size) for size in (stage.allocated, stage.reserved, stage.total, stage.needed)]
        table.add_row(str(stage.rank), *sizes, percent(stage.needed / plan.capacity))
    title = "Totals: PyTorch's tensors, PyTorch's allocator, nvidia-smi"
    return [Text(title, style="bold"), table, Text("")]


def _largest(plan: MemoryPlan) -> Report:
    fullest = plan.fullest
    table = _table(("part", "GB", "share"))
    for name, size in fullest.largest(len(fullest.parts)):
        if size > 0:
            table.add_row(name.replace("_", " "), gigabytes(size), percent(size / fullest.total))
    return [Text(f"Stage {fullest.rank}, the fullest", style="bold"), table, Text("")]


def _on_the_host(plan: MemoryPlan) -> Report:
    needed, host = max(stage.host for stage in plan.stages), plan.scenario.host
    if not needed or host is None:
        return []
    target = plan.scenario.training.optimizer.offload
    text = f"Optimizer offloaded to {target}: {gigabytes(needed)} of {gigabytes(host.memory)} GB host memory a GPU"
    return [Text(text), Text("")]


def _changes(plan: MemoryPlan) -> Report:
    table = _table(("change", "needs", "fits"))
    for change in plan.changes:
        table.add_row(str(change), gigabytes(change.needed), "yes" if change.fits else "no")
    table.columns[0].no_wrap = False
    problem = Text(f"It does not fit: {plan.problem}", style="red")
    if not plan.changes:
        return [problem, Text("No change that was tried is allowed by the split and the batch.")]
    return [problem, Text(""), Text("Changes that were tried, each by itself", style="bold"), table]


# --- against measurements ---------------------------------------------------------------------------------------------


def validation_report(found: MemoryValidation) -> Report:
    """Per model how often fits or does not fit was told right, and the error of the peaks; what was refused."""
    figures = found.figures()
    table = _table(("group", "rows", "right", "false fit", "false OOM", "near", "right", "MAPE", "bias", "at step"))
    for group in figures["groups"]:
        table.add_row(_short(group["group"]), *_scores(group))
    table.add_row("overall", *_scores(figures["overall"]), style="bold")
    report: Report = [Text("Memory: fits or not; predicted / measured - 1 of the peak", style="bold"), table, Text("")]
    worst = figures["overall"]["worst"]
    if worst is not None:
        report.append(Text(f"worst: {worst['id']}, {percent(worst['error'])}"))
    reasons = Counter(each.refused for each in found.outcomes if each.refused is not None)
    count = sum(reasons.values())
    report.append(Text(f"refused: {count} {'row' if count == 1 else 'rows'}"))
    return report + [Text(f"  {count}: {reason}") for reason, count in reasons.most_common()]


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:16]}…{name[-11:]}"


def _scores(group: Mapping[str, Any]) -> list[str]:
    shown = [str(group["rows"]), _share(group["accuracy"]), str(group["false_fit"]), str(group["false_oom"])]
    shown += [str(group["near_rows"]), _share(group["near_accuracy"])]
    return [*shown, _share(group["mape"]), _share(group["bias"]), _share(group["mape_allocated"])]


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def rows_csv(found: MemoryValidation) -> str:
    """Every row with its prediction, as a table."""
    rows = [{key: value for key, value in each.figures().items() if key != "assumed"} for each in found.outcomes]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["id"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
