"""Hold the simulator against measured training runs: every row of a table predicted, in parallel, errors by group.

Rows are sorted by machine, so that a process builds each cluster once, and predicted in batches over processes that
were started once. A row that is malformed or cannot be represented counts as refused with the reason; none is dropped.

Pinned by tests/studies/test_validate_runs.py.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from simulator.engine.iteration import simulate_step
from simulator.errors import ScenarioError, SimulatorError
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.program.build import build_program
from simulator.results.metrics import step_figures
from simulator.results.own_time import own_time
from simulator.scenario.explain import nearest
from simulator.scenario.topology import Cluster
from simulator.studies.runs.scenarios import RefusedError, describe, stack_of
from simulator.studies.runs.score import Outcome, by_group, group_figures, overall_figures
from simulator.studies.runs.table import Malformed, Row, read_table
from simulator.studies.uncertainty import traits

SHIPPED = Path(__file__).parents[1] / "validation" / "training_runs.csv"

Tell = Callable[[int, int], None]

_IN_PROCESS = 24
"""Rows below which starting other processes costs more than it saves (an import of a second against 50 ms a row)."""


@dataclass(frozen=True)
class Validation:
    """Every row with its prediction."""

    outcomes: tuple[Outcome, ...]

    @property
    def malformed(self) -> tuple[Outcome, ...]:
        """Rows with a mistake in them."""
        return tuple(each for each in self.outcomes if each.malformed)

    def figures(self) -> dict[str, Any]:
        """The JSON output."""
        return {
            "overall": overall_figures(self.outcomes),
            "groups": [group_figures(name, rows) for name, rows in by_group(self.outcomes).items()],
            "rows": [each.figures() for each in self.outcomes],
        }


def validate(
    path: Path | None = None,
    *,
    split: str = "all",
    group: str | None = None,
    jobs: int | None = None,
    parts: bool = False,
    tell: Tell | None = None,
) -> Validation:
    """Predict every row of a table.

    Parameters
    ----------
    path
        CSV with the columns of the shipped table, which is the default.
    split
        `test`, `calibration`, `heldout` or `all`. Rows without a split belong to `all` only.
    group
        Only this group; its first letters are enough.
    jobs
        Processes; as many as processors if left out.
    parts
        Whether to keep where each simulated step goes.
    tell
        Called with rows done and rows in all.

    Raises
    ------
    ScenarioError
        The table cannot be read, or there is no such split or group in it.
    """
    entries = _chosen(list(read_table(path or SHIPPED)), split, group, str(path or SHIPPED.name))
    rows = [entry for entry in entries if isinstance(entry, Row)]
    outcomes = iter(predict(rows, jobs=jobs, parts=parts, tell=tell))
    return Validation(tuple(next(outcomes) if isinstance(entry, Row) else _malformed(entry) for entry in entries))


def _chosen(entries: list[Row | Malformed], split: str, group: str | None, name: str) -> list[Row | Malformed]:
    if split not in ("all", "test", "calibration", "heldout"):
        raise ScenarioError(f"no split {split!r}; there are: test, calibration, heldout, all", field="--split")
    if split != "all":
        # which split a malformed row belongs to is not known: it is reported with each
        entries = [entry for entry in entries if isinstance(entry, Malformed) or entry.split == split]
    if group is not None:
        known = dict.fromkeys(entry.group for entry in entries)
        entries = [entry for entry in entries if entry.group.lower().startswith(group.lower())]
        if not entries:
            groups = "; ".join(known) or "none"
            where = f"{'' if split == 'all' else f' in split {split}'}{nearest(group, known)}"
            raise ScenarioError(f"no group {group!r}{where}; there are: {groups}", field="--group")
    if not entries:
        raise ScenarioError(f"no rows{'' if split == 'all' else f' of split {split}'} in the table", file=name)
    return entries


def _malformed(entry: Malformed) -> Outcome:
    return Outcome(entry.id or f"row-{entry.line}", entry.group, "", None, refused=str(entry), malformed=True)


# --- predicting ------------------------------------------------------------------------------------------------------


def predict(
    rows: Sequence[Row], *, jobs: int | None = None, parts: bool = False, tell: Tell | None = None
) -> list[Outcome]:
    """Outcomes of rows, in their order."""
    if not rows:
        return []
    jobs = jobs or os.cpu_count() or 1
    order = sorted(range(len(rows)), key=lambda index: _machine_key(rows[index]))
    found: dict[int, Outcome] = {}
    for numbers, outcomes in _batches(rows, order, jobs, parts):
        found.update(zip(numbers, outcomes, strict=True))
        if tell is not None:
            tell(len(found), len(rows))
    return [found[index] for index in range(len(rows))]


def _machine_key(row: Row) -> tuple[Any, ...]:
    columns = ("accelerator", "gpus_per_node", "nic_Gbps", "scale_up_GBps", "fabric", "gpus", "model", "tp", "pp")
    return tuple(str(row.get(column) or "") for column in columns)


def _work(row: Row) -> float:
    """About how many actions a step has."""
    ranks = (row.get("dp") or 1) * (row.get("micro_batch_size") or 1)
    return float((row.get("global_batch_size") or ranks) / ranks * (row.get("pp") or 1) * (row.get("vpp") or 1))


def _batches(
    rows: Sequence[Row], order: list[int], jobs: int, parts: bool
) -> Iterator[tuple[list[int], list[Outcome]]]:
    """Row numbers with their outcomes, as they are done."""
    small = jobs == 1 or len(rows) < _IN_PROCESS
    size = 1 if small else max(1, min(16, len(rows) // (4 * jobs)))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if small:
        for batch in batches:
            yield batch, predict_batch([rows[index] for index in batch], parts)
        return
    batches.sort(key=lambda batch: -sum(_work(rows[index]) for index in batch))  # no long one at the end
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start) as pool:
        running = {pool.submit(predict_batch, [rows[index] for index in batch], parts): batch for batch in batches}
        for future in as_completed(running):
            yield running[future], future.result()


def _start() -> None:
    # graphs are a million small objects that stay: looking for garbage among them every 700 costs a tenth
    gc.set_threshold(200_000, 50, 1_000)


def predict_batch(rows: Iterable[Row], parts: bool = False) -> list[Outcome]:
    """Outcomes of a few rows, in this process."""
    return [predict_row(row, parts) for row in rows]


@lru_cache(maxsize=3)
def _graph(cluster: Cluster) -> ClusterGraph:
    return build_cluster(cluster, ())


def predict_row(row: Row, parts: bool = False) -> Outcome:
    """What becomes of one row."""
    stack = stack_of(row)[0].name
    try:
        scenario, assumed = describe(row)
    except RefusedError as reason:
        return Outcome(row.id, row.group, stack, row.step_time, refused=str(reason))
    try:
        program = build_program(scenario, _graph(scenario.cluster))
        step = simulate_step(program)
        if not scenario.training.schedule.synchronous:
            step = own_time(step)
        shares = step_figures(scenario, program, step)["breakdown_s"] if parts else {}
    except SimulatorError as error:
        return Outcome(row.id, row.group, stack, row.step_time, refused=" ".join(str(error).split()))
    except Exception as error:  # our own bug in one row shall not hide the others
        return Outcome(row.id, row.group, stack, row.step_time, refused=f"bug: {type(error).__name__}: {error}")
    tokens = scenario.training.tokens_per_step
    return Outcome(
        row.id,
        row.group,
        stack,
        row.step_time,
        predicted=step.step_time,
        gpus_per_token=scenario.gpus / tokens,
        assumed=assumed,
        traits=traits(scenario),
        parts=shares,
    )
