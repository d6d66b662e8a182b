"""What failures cost in MFU, by cause, against cluster size, mean time between failures, interval or spares.

Each value is a campaign of its own, replicated with the same failures (common random numbers). Of every replication the
MFU lost to a fate is the healthy MFU times the fate's share of wall-clock (`results.campaign.mfu_loss`): the parts add
up to the healthy less the effective MFU, replication by replication and in the mean.

Limits: one thing is varied and the rest held; what is held, and what grows with it, `LossCurve.held` says.
Pinned by tests/studies/test_failure_loss.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.engine.campaign import simulate_campaign
from simulator.errors import ScenarioError, SimulatorError
from simulator.results.replications import Replications
from simulator.results.statistics import mean
from simulator.scenario.scenario import Scenario
from simulator.studies.failure_axes import AXES, Wanted
from simulator.studies.loss_curve import (
    BEST_OWNED,
    PARTS,
    Case,
    Estimate,
    LeftOut,
    LossCurve,
    LossPoint,
    Marker,
)
from simulator.studies.optimal_interval import why_no_closed_forms
from simulator.studies.replicate import Tell, replicate

RUNS = 50
"""Replications of every value, where none are asked for."""


def failure_loss(
    scenario: Scenario,
    against: str,
    wanted: Wanted | None = None,
    *,
    runs: int = RUNS,
    jobs: int | None = None,
    tell: Tell | None = None,
) -> LossCurve:
    """MFU lost over an axis.

    Parameters
    ----------
    against
        `gpus`, `mtbf`, `interval` or `spares`.
    wanted
        Values, or the ends of their range; about the scenario's own value if left out.
    runs
        Replications of every value.
    jobs
        Processes; as many as processors if left out.
    tell
        Called with what is done and how much of it.

    Raises
    ------
    ScenarioError
        No such axis, no `reliability` or `tokens`, values out of range, or no value with which the run ends.
    LayoutError, CapacityError
        A number of GPUs that was asked for does not fit the split or the memory.
    """
    if against not in AXES:
        raise ScenarioError(f"{against!r} is nothing to draw against; use {', '.join(AXES)}", field="--against")
    if runs < 2:
        raise ScenarioError(f"{runs} replications have no confidence interval; ask for 2 or more", field="--runs")
    _check(scenario)
    wanted = wanted or Wanted()
    tell = tell or (lambda _what, _fraction: None)
    axis = AXES[against](scenario, wanted, tell)
    points, left_out, finished = replicate_cases(
        axis.cases, scenario.seed, runs, strict=wanted.explicit, jobs=jobs, tell=tell
    )
    return LossCurve(
        scenario=scenario.name,
        against=against,
        seed=scenario.seed,
        runs=finished,
        points=points,
        markers=(*axis.markers, *best_owned(against, points)),
        held=" ".join(part for part in (axis.held, _remark(against, axis.cases, points)) if part),
        left_out=(*axis.left_out, *left_out),
    )


def _check(scenario: Scenario) -> None:
    if scenario.steps is None:
        raise ScenarioError(
            "has no length, so there is no run to fail; write training: {tokens: 1e12 tokens}", field="training.tokens"
        )
    if scenario.reliability is None:
        raise ScenarioError(
            "is left out: nothing breaks, so nothing is lost; write for example reliability: {preset: default}",
            field="reliability",
        )


def as_good_as_best(points: Sequence[LossPoint]) -> list[LossPoint]:
    """Points whose MFU over owned GPUs is the largest, or less by no more than either's 95 % confidence reaches."""
    best = max(points, key=lambda point: point.effective_mfu_owned)

    def reach(point: LossPoint) -> float:
        return (point.loss.high - point.loss.low) / 2 * point.gpus / point.owned_gpus

    return [
        point
        for point in points
        if best.effective_mfu_owned - point.effective_mfu_owned <= max(reach(best), reach(point))
    ]


def best_owned(against: str, points: Sequence[LossPoint]) -> list[Marker]:
    """Spares cost GPUs: the number of them that makes the most of all that are owned, where one clearly does."""
    if against != "spares":
        return []
    good = as_good_as_best(points)
    return [Marker(BEST_OWNED, good[0].value)] if len(good) == 1 else []


def _remark(against: str, cases: Sequence[Case], points: Sequence[LossPoint]) -> str:
    """Say why a mark is missing that one would look for."""
    if against == "interval":
        return why_no_closed_forms(cases[0].run.plan)
    good = as_good_as_best(points)
    if against != "spares" or len(good) == 1:
        return ""
    numbers = ", ".join(f"{point.value:,.0f}" for point in good)
    return f"MFU over owned GPUs is highest, and the same within confidence, for {numbers} spares."


# --- replications -----------------------------------------------------------------------------------------------------


def replicate_cases(
    cases: Sequence[Case],
    seed: int,
    runs: int,
    *,
    strict: bool,
    jobs: int | None = None,
    tell: Tell | None = None,
) -> tuple[tuple[LossPoint, ...], tuple[LeftOut, ...], int]:
    """Replicate every case with replications 0 to `runs` - 1 of a seed.

    Parameters
    ----------
    strict
        Whether a case that cannot be simulated is an error; else it is left out, with its reason.
    jobs
        Processes; as many as processors if left out.
    tell
        Called with what is done and how much of it.

    Returns
    -------
    points, left_out, runs
        `runs`: replications that were finished, fewer if interrupted.

    Raises
    ------
    ScenarioError
        No case is left.
    """
    sound, left_out = [], []
    for case in cases:
        try:
            simulate_campaign(case.run.plan, seed, 0, step_times=case.run.step_times)
        except SimulatorError as error:
            if strict:
                raise
            left_out.append(LeftOut(case.value, str(error)))
        else:
            sound.append(case)
    if not sound:
        raise ScenarioError(f"none of {len(cases)} values can be simulated; {left_out[0].reason}")
    found = replicate([case.run for case in sound], seed, number=runs, jobs=jobs, tell=tell)
    points = tuple(_point(case, found, position) for position, case in enumerate(sound))
    return points, tuple(left_out), len(found.rows)


def _point(case: Case, found: Replications, position: int) -> LossPoint:
    def average(figure: str) -> float:
        return mean(found.values(position, figure)).value

    fleet, loss = case.run.fleet, found.mfu_loss(position)
    parts = {**loss["parts"], "start": loss["by_cause"].get("start", 0.0)}
    parts["restart"] = max(0.0, parts["restart"] - parts["start"])
    effective = average("effective_mfu")
    return LossPoint(
        case.value,
        fleet.job_gpus,
        fleet.owned,
        effective + loss["total"],
        effective,
        average("effective_mfu_owned"),
        _estimate(found.values(position, "mfu_loss")),
        _estimate(found.values(position, "failure_induced_mfu_loss")),
        {key: parts[key] for key in PARTS},
        loss["by_cause"],
        average("interruptions"),
        average("finish_days") * 86400.0,
    )


def _estimate(values: Sequence[float]) -> Estimate:
    found = mean(values)
    low, high = found.interval or (found.value, found.value)
    return Estimate(found.value, low, high)
