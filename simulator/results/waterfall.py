"""Where the step goes: parts that add up exactly to the step time, averaged over all job GPUs.

The engine's spans say what a rank's compute stream did. Two parts need more than spans. `ideal_compute` is what the
model needs (causal attention masked) at dense peak; the rest of the time in kernels is `kernel_inefficiency`. And
waiting for the pipeline is told apart with a dry run of the same schedule with equal stages and free messages: as much
as that shows is `bubble`, what goes beyond is `imbalance`.

A stage's own duration, for that dry run, is the mean over stages of what ran inside an action, blocking collectives
included: a bubble is as long as the work that it waits for.

Limits: a rank that has something else to wait for inside its bubble (gradients that it reduces while later ranks still
run backward) shows that instead, so `bubble` may be shorter than the dry run's. Pinned by
tests/results/test_waterfall.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from operator import itemgetter

from simulator.physics.schedules.execution import dry_run, makespan
from simulator.physics.schedules.tables import Table
from simulator.records import BREAKDOWN_KEYS, StepResult
from simulator.scenario.units import Seconds

_WAITS = ("waiting", "imbalance")
_ACTION = re.compile(r"\d+([FBIW])\d+")
_KIND = itemgetter(1)


def mean_seconds(result: StepResult) -> dict[str, Seconds]:
    """Seconds per GPU in each state."""
    gpus = sum(result.rank_counts)
    states: dict[str, float] = defaultdict(float)
    for span, times in result.counted_spans():
        share = times * result.rank_counts[span.rank] / gpus
        for state, seconds in span.parts:
            states[state] += seconds * share
    return states


def action_seconds(result: StepResult, table: Table) -> dict[str, Seconds]:
    """Mean duration of an action of each kind, over all GPUs, without waiting.

    Rows of the table are pipeline ranks, of which each may have several rank classes.
    """
    total: dict[str, float] = defaultdict(float)
    for span, times in result.counted_spans():
        action = _ACTION.fullmatch(span.name)
        if action is not None:
            busy = sum(seconds for state, seconds in span.parts if state not in _WAITS)
            total[action[1]] += times * busy * result.rank_counts[span.rank]
    count: dict[str, int] = defaultdict(int)
    kinds = [Counter(map(_KIND, row)) for row in table]
    pipeline_ranks = result.pipeline_ranks or range(len(table))
    for pipeline_rank, gpus in zip(pipeline_ranks, result.rank_counts, strict=True):
        for kind, number in kinds[pipeline_rank].items():
            count[kind] += number * gpus
    return {kind: total[kind] / count[kind] for kind in count}


def schedule_bubble(result: StepResult, table: Table, *, synchronous: bool = True) -> Seconds:
    """Waiting per GPU of the same schedule with equal stages and free messages.

    Ranks that do not wait for each other at the ends of a step (not `synchronous`) have their own times.
    """
    seconds = action_seconds(result, table)
    busy = sum(seconds[kind] * number for row in table for kind, number in Counter(map(_KIND, row)).items())
    if synchronous:
        return makespan(table, seconds) - busy / len(table)
    return dry_run(table, lambda action: seconds[action.kind]).longest_rank - busy / len(table)


def breakdown(
    result: StepResult, table: Table, ideal_compute: Seconds, *, synchronous: bool = True
) -> dict[str, Seconds]:
    """Seconds per GPU by part; their sum is the step time to the last bit, in any order of adding.

    Parameters
    ----------
    ideal_compute
        Model FLOPs with masked attention per GPU over the dense peak.
    synchronous
        Whether all ranks begin and end the step together.
    """
    states = mean_seconds(result)
    # rounding may leave a hair of a bubble, also below zero, where nothing can wait (pp 1)
    bubble = max(0.0, min(states["waiting"], schedule_bubble(result, table, synchronous=synchronous)))
    parts = {key: states[key] for key in BREAKDOWN_KEYS}
    parts["ideal_compute"] = ideal_compute
    parts["bubble"] = bubble
    parts["imbalance"] += states["waiting"] - bubble
    parts["kernel_inefficiency"] = states["compute"] - ideal_compute
    return _exact(parts, result.step_time)


def _exact(parts: dict[str, Seconds], total: Seconds) -> dict[str, Seconds]:
    """Round to multiples of the last bit of the total and put what is left over into `kernel_inefficiency`.

    Sums of such multiples, up to the total, are exact: whoever adds the parts gets the total, in whatever order.
    """
    grain = math.ulp(total)
    grains = {key: round(seconds / grain) for key, seconds in parts.items()}
    grains["kernel_inefficiency"] += round(total / grain) - sum(grains.values())
    return {key: number * grain for key, number in grains.items()}
