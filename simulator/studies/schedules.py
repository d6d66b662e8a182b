"""One schedule by itself: its table, run with given times, beside its closed form.

Pinned by tests/studies/test_schedules.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from simulator.errors import ScheduleError
from simulator.physics.schedules.actions import Homes
from simulator.physics.schedules.closed_forms import ideal_bubble_fraction, in_flight_bound
from simulator.physics.schedules.execution import DryRun, check_table, dry_run, peak_activations
from simulator.physics.schedules.tables import AUTOMATIC, build_table, check_sizes, home
from simulator.physics.schedules.zero_bubble import EQUAL, KEPT, Times
from simulator.scenario.pipeline import CHUNKS, chunks_per_rank, num_stages

MAX_ACTIONS = 200_000
"""Assumption: more than that nobody reads; it is drawn in some seconds."""


@dataclass(frozen=True)
class ScheduleView:
    """A schedule and its dry run.

    Attributes
    ----------
    vpp
        Stages on every rank.
    run
        The table with its times; DualPipe's pairs of F and B are one piece of work.
    activations, bounds
        Most forwards in flight, and the most that the schedule promises. Those of schedules that are found from times
        count as `kept` between I and W. [pp]
    theory, synchronous_theory
        Closed forms of the two bubble fractions of `run`; None where there is none.
    """

    kind: str
    pp: int
    num_microbatches: int
    vpp: int
    times: Times
    run: DryRun
    activations: tuple[float, ...]
    bounds: tuple[int, ...]
    kept: float
    theory: float | None
    synchronous_theory: float | None

    def figures(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        run = self.run
        rows = [
            [{"action": str(action), "start_s": start, "end_s": end} for action, start, end in run.timeline(rank)]
            for rank in range(self.pp)
        ]
        return {
            "kind": self.kind,
            "pp": self.pp,
            "num_microbatches": self.num_microbatches,
            "vpp": self.vpp,
            "seconds": {**self.times.by_kind, "message": self.times.message},
            "bubble_fraction": run.own_bubble_fraction,
            "bubble_fraction_theory": self.theory,
            "synchronous_bubble_fraction": run.bubble_fraction,
            "synchronous_bubble_fraction_theory": self.synchronous_theory,
            "longest_rank_s": run.longest_rank,
            "makespan_s": run.makespan,
            "busy_s": list(run.busy),
            "peak_in_flight": list(self.activations),
            "in_flight_bound": list(self.bounds),
            "weight_share": self.kept,
            "stages_of_rank": [list(stages) for stages in Homes(run.table).stages_of_rank],
            "ranks": rows,
        }


def view_schedule(
    kind: str, *, pp: int, num_microbatches: int, vpp: int | None = None, times: Times = EQUAL
) -> ScheduleView:
    """Build, prove and run a schedule.

    Parameters
    ----------
    kind
        Name of the schedule; capitals and underscores are forgiven.
    vpp
        Chunks per rank of an interleaved schedule.
    times
        Of one stage: a chunk, where a rank has several.

    Raises
    ------
    ScheduleError
        An unknown name, sizes that it cannot have, times that are not positive.
    """
    kind = kind.lower().replace("_", "-")
    chunks = 1 if vpp is None else vpp
    check_sizes(kind, pp, num_microbatches, chunks)
    if pp == 1:
        raise ScheduleError("pp is 1: with one pipeline rank there is nothing to schedule; use pp 2 or more")
    if kind == "interleaved" and chunks == 1:
        raise ScheduleError("schedule interleaved needs vpp of 2 or more (--vpp 2); with one chunk per rank use 1f1b")
    for name, seconds in times._asdict().items():
        if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and name != "message"):
            raise ScheduleError(f"{name} is {seconds:g}; a time must be {'0 or ' if name == 'message' else ''}positive")
    stages = num_stages(kind, pp, chunks)
    if 2 * stages * num_microbatches > MAX_ACTIONS:
        raise ScheduleError(
            f"2 × {stages} stages × {num_microbatches:,} microbatches are more than the {MAX_ACTIONS:,} actions that "
            "are drawn; use fewer microbatches"
        )
    table = build_table(kind, pp=pp, num_microbatches=num_microbatches, vpp=chunks, times=times)
    sizes = {"pp": pp, "num_microbatches": num_microbatches, "vpp": chunks}
    bounds = tuple(in_flight_bound(kind, **sizes, rank=rank) for rank in range(pp))
    kept = KEPT if kind in AUTOMATIC else 1.0
    check_table(
        table,
        pp=pp,
        vpp=stages // pp,
        num_microbatches=num_microbatches,
        bounds=bounds,
        kept=kept,
        home=home(kind, pp, num_microbatches),
    )
    seconds_of = times.by_kind
    pairs = kind.startswith("dualpipe")
    run = dry_run(table, lambda action: seconds_of[action.kind], message=times.message, pairs=pairs)
    theory, synchronous = (
        ideal_bubble_fraction(kind, pp, num_microbatches, chunks, times=times, synchronous=together)
        for together in (False, True)
    )
    shown = CHUNKS.get(kind) or chunks_per_rank(kind, chunks)
    peaks = tuple(peak_activations(row, kept) for row in table)
    return ScheduleView(kind, pp, num_microbatches, shown, times, run, peaks, bounds, kept, theory, synchronous)


def times_of(
    forward: float, backward: float | None, half_input: float | None, half_weight: float | None, message: float
) -> Times:
    """Times as somebody gives them: a whole backward or its halves, 1 each if neither is said.

    Raises
    ------
    ScheduleError
        Both at once.
    """
    if backward is None:
        return Times(
            forward, 1.0 if half_input is None else half_input, 1.0 if half_weight is None else half_weight, message
        )
    if half_input is not None or half_weight is not None:
        raise ScheduleError("backward is input + weight: give --backward, or --input and --weight, not both")
    return Times(forward, backward / 2, backward / 2, message)
