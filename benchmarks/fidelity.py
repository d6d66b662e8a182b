"""Where the errors on measured training runs come from: shares of the simulated step beside the error, by group.

`python benchmarks/fidelity.py` predicts every shipped row and prints, for each group, the mean share of the step in
small kernels, memory-bound kernels, tensor, expert, pipeline and data parallelism and the host, with the rank
correlation of each share with the error inside the group: a strong one points at the mechanism that is wrong. `--write`
draws predicted against measured (docs/fidelity.png), puts the tables into docs/fidelity.md and the errors by kind of
run into simulator/validation/run_errors.yaml, from which `trainsim run` takes the error that it prints.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from simulator.physics.layers.layer import layer_backward, layer_forward, output_layer
from simulator.physics.operations import Kernel
from simulator.physics.program.build import rank_of
from simulator.report.validation import plot_validation
from simulator.scenario.scenario import Scenario
from simulator.studies.runs.scenarios import RefusedError, describe
from simulator.studies.runs.score import Outcome, by_group, group_figures, mean, overall_figures, rank_correlation
from simulator.studies.runs.table import Row, read_table
from simulator.studies.uncertainty import ERRORS, error_table, write_errors
from simulator.studies.validate_runs import SHIPPED, Validation, validate

DOCS = Path(__file__).parents[1] / "docs"
SMALL = 30e-6
"""Seconds below which a kernel counts as small: launch, ramp and tail are a large part of it."""

COLUMNS = ("small", "memory", "tp", "ep", "pp", "dp", "host")


@cache
def _rows() -> dict[str, Row]:
    return {row.id: row for row in read_table(SHIPPED) if isinstance(row, Row)}


def kernel_shares(scenario: Scenario) -> tuple[float, float]:
    """Shares of kernel time in small kernels and in memory-bound ones, forward and backward once over all layers."""
    rank, layers = rank_of(scenario), scenario.model.num_layers
    moe = [layer for layer in range(layers) if scenario.model.is_moe_layer(layer)]
    kinds = [
        (layers - len(moe), next((i for i in range(layers) if i not in moe), None)),
        (len(moe), next(iter(moe), None)),
    ]
    total = small = memory = 0.0
    lists = [
        (count, [*layer_forward(rank, layer), *layer_backward(rank, layer)])
        for count, layer in kinds
        if layer is not None
    ]
    lists.append((1, [*output_layer(rank, backward=False), *output_layer(rank, backward=True)]))
    for count, operations in lists:
        for operation in operations:
            if isinstance(operation, Kernel):
                seconds = operation.seconds * count
                total += seconds
                small += seconds if operation.seconds < SMALL else 0.0
                memory += seconds if not operation.flops else 0.0
    return small / total, memory / total


def shares(outcome: Outcome) -> dict[str, float]:
    """Shares of the simulated step."""
    parts, time = outcome.parts, outcome.predicted or 1.0
    try:
        scenario, _ = describe(_rows()[outcome.id])
    except RefusedError:
        return dict.fromkeys(COLUMNS, 0.0)
    small, memory = kernel_shares(scenario)
    kernels = sum(parts[key] for key in ("ideal_compute", "recomputation", "kernel_inefficiency")) / time
    return {
        "small": small * kernels,
        "memory": memory * kernels,
        "tp": (parts["exposed_tp"] + parts["exposed_cp"]) / time,
        "ep": parts["exposed_ep"] / time,
        "pp": (parts["exposed_pp"] + parts["bubble"] + parts["imbalance"]) / time,
        "dp": parts["exposed_dp"] / time,
        "host": parts["host"] / time,
    }


def mechanism_table(outcomes: list[Outcome]) -> list[str]:
    """Per group the error, the mean share of each mechanism, and in brackets its rank correlation with the error."""
    lines = ["| group | rows | bias | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for name, rows in by_group(outcomes).items():
        known = [row for row in rows if row.error is not None]
        if not known:
            continue
        found = [shares(row) for row in known]
        errors = [row.error or 0.0 for row in known]
        cells = []
        for column in COLUMNS:
            values = [each[column] for each in found]
            correlation = rank_correlation(values, errors)
            strong = "" if correlation is None or max(values) < 0.02 else f" ({correlation:+.1f})"
            cells.append(f"{100 * (mean(values) or 0.0):.0f} %{strong}")
        lines.append(
            f"| {_short(name)} | {len(rows)} | {100 * (mean(errors) or 0.0):+.1f} % | " + " | ".join(cells) + " |"
        )
    return lines


def error_lines(outcomes: list[Outcome]) -> list[str]:
    """The table of errors, test rows beside all rows."""
    rows = _rows()
    lines = [
        "| group | rows | refused | MAPE | bias | worst | rank corr. | test rows | MAPE (test) |",
        "|---" * 9 + "|",
    ]
    for name, found in by_group(outcomes).items():
        figures = group_figures(name, found)
        test = group_figures(name, [each for each in found if rows[each.id].split == "test"])
        worst = "-" if figures["worst"] is None else _percent(figures["worst"]["error"], signed=True)
        correlation = "-" if figures["rank_correlation"] is None else f"{figures['rank_correlation']:.2f}"
        lines.append(
            f"| {_short(name)} | {figures['rows']} | {figures['refused']} | {_percent(figures['mape'])} |"
            f" {_percent(figures['bias'], signed=True)} | {worst} | {correlation} | {test['rows']} |"
            f" {_percent(test['mape'])} |"
        )
    everything = overall_figures(outcomes)
    test_rows = overall_figures([each for each in outcomes if rows[each.id].split == "test"])
    lines.append(
        f"| **overall** | {everything['rows']} | {everything['refused']} | {_percent(everything['mape'])} |"
        f" {_percent(everything['bias'], signed=True)} | | | {test_rows['rows']} | {_percent(test_rows['mape'])}"
        f" (bias {_percent(test_rows['bias'], signed=True)}) |"
    )
    lines.append(
        f"| **mean of groups** | | | {_percent(everything['mean_of_groups'])} | | | | |"
        f" {_percent(test_rows['mean_of_groups'])} |"
    )
    return lines


def _short(name: str) -> str:
    return name[:60].replace("|", "/")


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def write(found: Validation, errors: list[str], mechanisms: list[str]) -> None:
    """Picture, tables and the errors that ship."""
    fitted = [row.id for row in _rows().values() if row.split == "calibration"]
    picture = DOCS / "fidelity.png"
    picture.unlink(missing_ok=True)
    plot_validation(found, picture)
    ERRORS.write_text(write_errors(error_table(found.outcomes, fitted)), encoding="utf-8")
    page = DOCS / "fidelity.md"
    text = page.read_text(encoding="utf-8")
    for name, lines in (("errors", errors), ("mechanisms", mechanisms)):
        begin, end = f"<!-- {name}: benchmarks/fidelity.py -->\n", f"<!-- end of {name} -->"
        text = text[: text.index(begin) + len(begin)] + "\n".join(lines) + "\n" + text[text.index(end) :]
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Print the tables."""
    found = validate(parts=True)
    outcomes = list(found.outcomes)
    errors, mechanisms = error_lines(outcomes), mechanism_table(outcomes)
    print("\n".join([*errors, "", *mechanisms]))
    if "--write" in sys.argv:
        write(found, errors, mechanisms)


if __name__ == "__main__":
    main()
