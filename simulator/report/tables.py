"""Tables for people: a report is a list of rich renderables, `render` turns it into text.

Pinned by tests/report/test_tables.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simulator.physics.schedules.execution import DryRun, dry_run
from simulator.physics.schedules.grids import format_grid
from simulator.report.campaign import campaign_report
from simulator.report.formats import (
    amount,
    by_key,
    count,
    is_fraction,
    percent,
    points,
    quantity,
    seconds,
    seconds_beside,
)
from simulator.report.layout import Fitted, Report, finished, heading, pairs, render, section, table
from simulator.studies.compare import Comparison
from simulator.studies.show import Description
from simulator.studies.simulate import Simulation

__all__ = [
    "Report",
    "compare_report",
    "list_report",
    "published_text",
    "render",
    "run_report",
    "show_report",
    "verdict",
]

Rows = Sequence[tuple[str, list[float | None]]]
TextRows = list[tuple[str, list[tuple[str, str]]]]


# --- run -------------------------------------------------------------------------------------------------------------


def run_report(simulation: Simulation) -> Report:
    """Step, breakdown, memory, campaign and published figures."""
    scenario = simulation.scenario
    report = heading(scenario.name, scenario.description)
    report += _step(simulation) + _breakdown(simulation) + _memory(simulation)
    if simulation.campaign_figures is not None:
        measured = scenario.reliability is not None and scenario.reliability.step_time is not None
        report += campaign_report(simulation.campaign_figures, scenario.training.tokens or 0.0, measured)
    if scenario.expected:
        report += _expected(simulation)
    return finished(report, simulation.warnings)


def _step(simulation: Simulation) -> Report:
    step, scenario = simulation.step_figures, simulation.scenario
    mfu = f"{percent(step['mfu'])}  (causal attention {percent(step['mfu_causal'])}, 6ND {percent(step['mfu_6nd'])})"
    rows = [
        ("step time", seconds(step["step_time_s"]) + _trust(step["uncertainty"])),
        ("tokens/s", f"{count(step['tokens_per_s'])}  ({count(step['tokens_per_s_per_gpu'])} per GPU)"),
        ("MFU", mfu),
        ("HFU", percent(step["hfu"])),
    ]
    ideal = step["bubble_fraction_theory"]
    theory = "" if ideal is None else f"(theory of the schedule {percent(ideal)})"
    rows.append(("bubble fraction", f"{percent(step['bubble_fraction'])}  {theory}"))
    return pairs(f"Step of {count(scenario.gpus)} GPUs, {count(scenario.num_microbatches)} microbatches", rows)


def _trust(uncertainty: dict[str, Any] | None) -> str:
    """Measured error of the nearest validated runs."""
    if uncertainty is None:
        return ""
    error, bias = percent(uncertainty["mape"]), f"{100 * uncertainty['bias']:+.1f} %"
    return f"  (error on {uncertainty['rows']} measured runs: {error}, bias {bias}; {uncertainty['group']})"


def _breakdown(simulation: Simulation) -> Report:
    drawn = table("", "time", "share")
    parts, time = simulation.step_figures["breakdown_s"], simulation.step_figures["step_time_s"]
    in_unit = seconds_beside(time)
    for key, value in [*parts.items(), ("sum", sum(parts.values()))]:
        if value:
            drawn.add_row(key, in_unit(value), percent(value / time))
    return section("Where the step goes (average over all GPUs)", drawn)


def _memory(simulation: Simulation) -> Report:
    capacity = simulation.scenario.accelerator.memory
    fullest = max(simulation.memory, key=lambda stage: stage.total)
    drawn = table("", "size", "of capacity")
    for part, size in [*fullest.parts.items(), ("total", fullest.total)]:
        if size:
            drawn.add_row(part, quantity(size, "B"), percent(size / capacity))
    drawn.add_row("capacity", quantity(capacity, "B"), "")
    return section(f"Memory per GPU, fullest pipeline stage ({fullest.rank})", drawn)


def _expected(simulation: Simulation) -> Report:
    drawn = table("", "simulated", "published", "", "source")
    drawn.columns[4].justify, drawn.columns[4].no_wrap = "left", False
    for entry in simulation.expected_figures():
        drawn.add_row(
            entry["name"],
            by_key(entry["name"], entry["simulated"]),
            published_text(entry["name"], entry["published"]),
            verdict(entry),
            entry["source"] + (f" ({entry['note']})" if entry["note"] else ""),
        )
    return section("Beside published figures", drawn)


def published_text(name: str, published: Any) -> str:
    """A published value, range or bound as text."""
    if isinstance(published, list):
        return f"{by_key(name, published[0])} – {by_key(name, published[1])}"
    if isinstance(published, dict):
        ((form, value),) = published.items()
        return f"{form.replace('_', ' ')} {by_key(name, value)}"
    return by_key(name, published)


def verdict(entry: dict[str, Any]) -> str:
    """How a simulated figure stands to the published one."""
    if entry["simulated"] is None:
        return "not simulated"
    if entry["error"] is not None:
        return f"{entry['error']:+.1%}"
    return {True: "inside", False: "OUTSIDE", None: ""}[entry["agrees"]]


# --- compare ---------------------------------------------------------------------------------------------------------

_TITLES = {
    "step": "Step",
    "breakdown_s": "Where the step goes",
    "memory": "Memory per GPU, fullest pipeline stage",
    "campaign": "Run",
    "mfu_loss": "MFU lost in the run (points)",
}
# The simulator's own counts, of no interest beside the run's figures; and what is said by another name.
_LEFT_OUT = ("step.events", "step.solves", "campaign.finish_days", "campaign.ettr")


def compare_report(comparison: Comparison) -> Report:
    """Every figure of every scenario, with the difference from the first."""
    named = zip(comparison.names, comparison.simulations, strict=True)
    report = pairs("Scenarios", [(name, simulation.scenario.name) for name, simulation in named])
    groups: dict[str, list[tuple[str, list[float | None]]]] = {}
    for key, values in comparison.rows():
        group, _, figure = key.partition(".")
        if any(values) and key not in _LEFT_OUT:
            groups.setdefault(group, []).append((figure, values))
    for group, rows in groups.items():
        texts = _TEXTS.get(group, _figures)(rows)
        report += section(_TITLES[group], _side_by_side(comparison.names, texts))
    named = zip(comparison.names, comparison.simulations, strict=True)
    return finished(report, [f"{name}: {text}" for name, simulation in named for text in simulation.warnings])


def _side_by_side(names: Sequence[str], rows: TextRows) -> RenderableType:
    """A table of all scenarios, or several below one another, each with the first scenario, where they are too wide."""

    def block(others: Sequence[int]) -> Table:
        columns = [part for other in others for part in (names[other], "difference")]
        drawn = table("", names[0], *columns)
        for figure, cells in rows:
            drawn.add_row(figure, cells[0][0], *(part for other in others for part in cells[other]))
        return drawn

    def draw(console: Console, options: ConsoleOptions) -> RenderableType:
        others, unbounded = range(1, len(names)), options.update(max_width=100_000)
        for size in range(len(others), 0, -1):
            blocks = [block(others[start : start + size]) for start in range(0, len(others), size)]
            if all(Measurement.get(console, unbounded, each).maximum <= options.max_width for each in blocks):
                break
        return Group(*[part for each in blocks for part in (each, Text(""))][:-1])

    return Fitted(draw)


def _parts(rows: Rows) -> TextRows:
    """Parts that add up: all in one unit, and their differences too."""
    in_unit = seconds_beside(max(value or 0.0 for _, values in rows for value in values))
    texts: TextRows = []
    for part, values in rows:
        first, *_ = numbers = [value or 0.0 for value in values]
        texts.append((part, [(in_unit(value), _signed(in_unit(value - first))) for value in numbers]))
    return texts


def _points(rows: Rows) -> TextRows:
    """Parts of the MFU that was lost, in points."""
    return [
        (part, [(points(value or 0.0), _signed(points((value or 0.0) - (values[0] or 0.0)))) for value in values])
        for part, values in rows
    ]


def _figures(rows: Rows) -> TextRows:
    """Value and difference from the first of every scenario."""
    return [
        (figure, [(by_key(figure, value), _difference(figure, values[0], value)) for value in values])
        for figure, values in rows
    ]


_TEXTS = {"breakdown_s": _parts, "mfu_loss": _points}


def _signed(text: str) -> str:
    return text if text.startswith("-") else f"+{text}"


def _difference(figure: str, first: float | None, value: float | None) -> str:
    if first is None or value is None:
        return ""
    if value == first:
        return "="
    if is_fraction(figure):
        return f"{100 * (value - first):+.1f} points"
    return f"{value / first - 1:+.1%}" if first else "new"


# --- show and list ---------------------------------------------------------------------------------------------------


def show_report(description: Description) -> Report:
    """Cluster, model, groups, memory per stage and schedule."""
    scenario = description.scenario
    report = heading(scenario.name, scenario.description)
    report += pairs(
        f"Cluster {scenario.cluster.name}", [("accelerator", scenario.accelerator.name), *description.cluster]
    )
    report += _model(description) + _groups(description) + _stages(description) + _schedule(description)
    report += pairs("Simulated as", [(key.replace("_", " "), count(n)) for key, n in description.classes.items()])
    return finished(report, description.warnings)


def _model(description: Description) -> Report:
    model = description.model
    active = model["active_parameters"] != model["total_parameters"]
    parameters = count(model["total_parameters"])
    return pairs(
        f"Model {model['name']}",
        [
            ("parameters", parameters + (f"  ({amount(model['active_parameters'])} active)" if active else "")),
            ("attention", model["attention"].upper()),
            ("forward FLOPs per token", quantity(model["forward_flops_per_token"], "FLOP")),
            ("model FLOPs per step", quantity(model["step_flops"], "FLOP")),
            ("tokens per step", count(model["tokens_per_step"])),
            ("steps", "no run: training.tokens is not given" if model["steps"] is None else count(model["steps"])),
        ],
    )


def _groups(description: Description) -> Report:
    drawn = table("axis", "groups", "size", "scale-up domains", "first group")
    drawn.columns[4].justify, drawn.columns[4].no_wrap = "left", False
    for row in description.groups:
        members = row["first"]
        shown = [*map(str, members)] if len(members) <= 6 else [*map(str, members[:4]), f"… {members[-1]}"]
        drawn.add_row(row["axis"], count(row["groups"]), count(row["size"]), count(row["domains"]), ", ".join(shown))
    if not description.groups:
        return []
    return section(f"Groups of {count(description.scenario.gpus)} ranks", drawn)


def _stages(description: Description) -> Report:
    """Stages in rows; the parts that hardly differ between them are one column, for `run` to tell apart."""
    shown = ("weights", "gradients", "optimizer", "activations")
    drawn = table("stage", *shown, "other", "total", "of capacity")
    capacity = description.scenario.accelerator.memory
    for stage in description.memory:
        parts = [stage.parts[part] for part in shown]
        sizes = [f"{size / 1e9:.2f}" for size in (*parts, stage.total - sum(parts), stage.total)]
        drawn.add_row(str(stage.rank), *sizes, percent(stage.total / capacity))
    return section("Memory per GPU by pipeline stage (GB)", drawn)


def _schedule(description: Description) -> Report:
    schedule = description.scenario.training.schedule
    title = f"Schedule {schedule.kind}" + (f", vpp {schedule.vpp}" if schedule.vpp > 1 else "")
    title += f", {count(description.scenario.num_microbatches)} microbatches (a whole backward drawn as two forwards)"
    return section(title, _grid(dry_run(description.table, lambda action: 2.0 if action.kind == "B" else 1.0)))


def _grid(run: DryRun) -> RenderableType:
    return Fitted(lambda _, options: Text(format_grid(run, width=options.max_width), no_wrap=True))


def list_report(names: dict[str, list[str]]) -> Report:
    """What is shipped, by kind."""
    report: Report = []
    for kind, entries in names.items():
        report += section(kind, Padding(Text(", ".join(entries)), (0, 0, 0, 2)))
    return report[:-1]
