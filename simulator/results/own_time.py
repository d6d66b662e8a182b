"""A step whose ranks do not wait for each other at its ends: one of many, each rank beginning the next when it is done.

With post-validation (arXiv 2401.10241, section 4) nobody waits for the global gradient norm: the optimizer steps as if
all were well, and a rare step that was not is taken back. Rank r then begins every step as late as its first forward
comes, and ends it as much later: steps follow one another at the pace of the longest rank, from its first action to its
last. Of a single simulated step that is what each rank's own time says; the wait before its first action overlaps the
step before.

Limits: what a rank's last collectives share with the next step's first forwards is not simulated; the price of taking a
step back is none. Pinned by tests/results/test_own_time.py.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.records import Span, StepResult
from simulator.scenario.units import Seconds

_BEFORE = ("waiting", "imbalance", "exposed_pp")


def own_time(result: StepResult) -> StepResult:
    """The step as one of many: it takes as long as its longest rank, and every rank is counted from its first action.

    Spans keep their place on the clock, so that a late rank's are after the end of the step.
    """
    begins: dict[int, Seconds] = {}
    ends: dict[int, Seconds] = {}
    for span in result.spans:
        if span.rank not in begins:
            if all(state in _BEFORE for state, _ in span.parts):
                continue
            begins[span.rank] = span.start
        if any(state != "waiting" for state, _ in span.parts):
            ends[span.rank] = span.end
    longest = max(ends[rank] - begin for rank, begin in begins.items())
    kept = [span for span in result.spans if begins[span.rank] <= span.start and span.end <= ends[span.rank]]
    for rank, begin in begins.items():
        left = begin + longest - ends[rank]
        if left > 0:
            kept.append(Span(rank, "compute", "wait", ends[rank], ends[rank] + left, (("waiting", left),)))
    return replace(result, step_time=longest, pieces=tuple(kept))
