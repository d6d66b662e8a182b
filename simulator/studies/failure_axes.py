"""What a picture of failures may be against: the runs along an axis, the values worth marking, and what is held.

Along `mtbf`, `interval` and `spares` the steps stay as they are and only the plan changes; along `gpus` every value is
a job of its own, whose step is simulated.

Pinned by tests/studies/test_failure_loss.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from simulator.errors import LayoutError, ScenarioError, SimulatorError
from simulator.physics.campaign.plan import CampaignPlan
from simulator.results.campaign import fleet_of
from simulator.scenario.reliability.section import Reliability
from simulator.scenario.scenario import Scenario
from simulator.scenario.units import parse_quantity, readable_time
from simulator.studies.loss_curve import OPTIMUM, OWN, UNITS, Case, LeftOut, Marker
from simulator.studies.optimal_interval import (
    OptimalInterval,
    at_interval,
    bounds,
    closed_forms,
    interval_seconds,
    job_mtbf,
    longest_phase,
    optimal_interval,
    steps_for,
)
from simulator.studies.phases import PreparedRun, prepare_run
from simulator.studies.replicate import Run, Tell
from simulator.studies.scaled_job import nearest_replicas, neighbours, replica_gpus, with_replicas
from simulator.studies.simulate import fit_or_refuse, plan_memory

# Default ranges: factors about the scenario's own value (or the optimal interval), and points within them.
_GPUS = tuple(2.0**power for power in range(-4, 3))
_MTBF = tuple(2.0 ** (power / 2) for power in range(-4, 7))
_INTERVAL = tuple(2.0 ** (power / 2) for power in range(-5, 6))
_POINTS = 12


class Wanted(NamedTuple):
    """Values along the axis that were asked for: themselves, or the ends of their range."""

    values: tuple[float, ...] = ()
    first: float | None = None
    last: float | None = None

    @property
    def explicit(self) -> bool:
        """Whether each value was asked for by itself."""
        return bool(self.values)


def read_wanted(against: str, values: str | None, first: str | None, last: str | None) -> Wanted:
    """Values as people write them: counts of GPUs and machines, times with their unit; lists with commas.

    Raises
    ------
    ScenarioError
        A text that is none of them, or both a list and a range.
    """
    if values is not None and (first is not None or last is not None):
        raise ScenarioError("a list of values has no range; leave --from and --to out", field="--values")
    if values is not None:
        return Wanted(tuple(_read(against, text, "--values") for text in values.split(",")))
    ends = [None if text is None else _read(against, text, name) for text, name in ((first, "--from"), (last, "--to"))]
    return Wanted((), *ends)


def _read(against: str, text: str, option: str) -> float:
    if UNITS.get(against) != "s":
        if text.strip().isdecimal():
            return float(text)
        raise ScenarioError(f"{text.strip()!r} is no whole number of {UNITS.get(against, 'them')}", field=option)
    try:
        value = parse_quantity(text, "time")
    except ValueError as error:
        raise ScenarioError(str(error).removeprefix("unit: "), field=option) from None
    if not value > 0:
        raise ScenarioError(f"{text.strip()!r} must be more than zero", field=option)
    return value


class Axis(NamedTuple):
    """The runs along an axis, by ascending value."""

    cases: tuple[Case, ...]
    markers: tuple[Marker, ...]
    held: str
    left_out: tuple[LeftOut, ...] = ()


Prepare: TypeAlias = Callable[[Scenario, Wanted, Tell], Axis]


# --- what is common ---------------------------------------------------------------------------------------------------


def _prepared(scenario: Scenario, tell: Tell) -> PreparedRun:
    """The run with its healthy steps simulated."""
    fit_or_refuse(scenario, plan_memory(scenario))
    prepared = prepare_run(scenario, progress=lambda fraction: tell("steps", fraction))
    assert prepared is not None
    return prepared


def _plan(prepared: PreparedRun, tell: Tell, scenario: Scenario | None = None) -> CampaignPlan:
    """Plan the run, or the same with another `reliability:`; an interval that is to be simulated is looked for."""
    plan, section = prepared.plan(scenario), prepared.scenario.reliability
    if section is None or section.checkpoint.interval.rule != "simulated":
        return plan
    return at_interval(plan, _optimum(prepared, plan, tell).steps)


def _optimum(prepared: PreparedRun, plan: CampaignPlan, tell: Tell) -> OptimalInterval:
    seed = prepared.scenario.seed
    return optimal_interval(plan, prepared.step_times, seed, progress=lambda fraction: tell("interval", fraction))


def _case(value: float, prepared: PreparedRun, plan: CampaignPlan) -> Case:
    scenario = prepared.scenario
    return Case(value, Run(scenario.name, plan, fleet_of(scenario, plan), prepared.step_times))


def spread(
    own: float,
    factors: Iterable[float],
    wanted: Wanted,
    *,
    least: float,
    most: float,
    show: Callable[..., str] = readable_time,
) -> list[float]:
    """Values along a logarithmic axis, ascending.

    Those asked for; else some between the ends asked for, or about the own value, which is among them.

    Raises
    ------
    ScenarioError
        Ends in the wrong order, or values out of range.
    """
    if wanted.values:
        values = sorted(set(wanted.values))
    elif wanted.first is None and wanted.last is None:
        values = sorted({min(max(own * factor, least), most) for factor in factors} | {own})
    else:
        low = own * min(factors) if wanted.first is None else wanted.first
        high = own * max(factors) if wanted.last is None else wanted.last
        if not 0 < low < high:
            raise ScenarioError(
                f"from {show(low)} to {show(high)} is no range; --from must be the smaller", field="--from"
            )
        ratio = (high / low) ** (1 / (_POINTS - 1))
        values = [low * ratio**i for i in range(_POINTS)]
        values = sorted({*values, own} if low <= own <= high else values)
    bad = [value for value in values if not least <= value * (1 + 1e-9) or not value <= most * (1 + 1e-9)]
    if bad:
        below = f"{show(least, at_least=least)} or more" if bad[0] < least else f"{show(most, at_most=most)} or less"
        raise ScenarioError(
            f"{show(bad[0])} is out of range; use {below}", field="--values" if wanted.values else "--from and --to"
        )
    return values


def _refuse_no_failures(plan: CampaignPlan) -> None:
    if math.isinf(job_mtbf(plan)):
        raise ScenarioError(
            "no failure class has a rate, so that there is no time between failures to vary; write for example"
            " reliability: {preset: default}",
            field="reliability.failures",
        )


# --- the axes ---------------------------------------------------------------------------------------------------------


def _against_mtbf(scenario: Scenario, wanted: Wanted, tell: Tell) -> Axis:
    prepared = _prepared(scenario, tell)
    section = scenario.reliability
    assert section is not None
    own = _plan(prepared, tell)
    _refuse_no_failures(own)
    mtbf = job_mtbf(own)
    cases = []
    for value in spread(mtbf, _MTBF, wanted, least=1e-3, most=1e12):
        scaled = section.model_copy(update={"rate_scale": section.rate_scale * mtbf / value})
        plan = own if value == mtbf else _plan(prepared, tell, scenario.model_copy(update={"reliability": scaled}))
        cases.append(_case(value, prepared, plan))
    held = f"All failure rates are scaled together; {_interval_held(section)}; cluster, spares and repair are held."
    return Axis(tuple(cases), (Marker(OWN, mtbf),), held)


def _interval_held(section: Reliability) -> str:
    interval = section.checkpoint.interval
    if interval.seconds is None and interval.steps is None:
        return f"the checkpoint interval follows its rule ({interval.rule or 'optimal'})"
    return "the checkpoint interval is held"


def _against_interval(scenario: Scenario, wanted: Wanted, tell: Tell) -> Axis:
    prepared = _prepared(scenario, tell)
    section, own = scenario.reliability, prepared.plan()
    assert section is not None
    best = _optimum(prepared, own, tell)
    if section.checkpoint.interval.rule == "simulated":
        own = at_interval(own, best.steps)
    least, most = bounds(own)
    tier = longest_phase(own).tiers[-1]
    own_steps = min(max(tier.every if tier.seconds is None else steps_for(own, tier.seconds), least), most)
    forms = closed_forms(own)
    steps = steps_for(own, forms["exact renewal"]) if forms else own_steps
    here, middle = interval_seconds(own, own_steps), interval_seconds(own, steps)
    values = spread(
        middle,
        _in_sight(_INTERVAL, here / middle),
        wanted,
        least=interval_seconds(own, least),
        most=interval_seconds(own, most),
    )
    chosen = {steps_for(own, value) for value in values}
    if not wanted.explicit and values[0] <= here <= values[-1]:
        chosen.add(own_steps)
    cases = []
    for number in sorted(chosen):
        plan = own if number == own_steps else at_interval(own, number)
        cases.append(_case(interval_seconds(own, number), prepared, plan))
    markers = [Marker(OWN, here), Marker(OPTIMUM, best.seconds)]
    markers += [Marker(name, value) for name, value in forms.items()]
    sure = "as far as it can go" if best.at_bound else f"known to ± {100 * best.precision:.2g} % (standard error)"
    held = f"All but the interval of saves to the storage is held. The simulated optimum is {sure}."
    return Axis(tuple(cases), tuple(markers), held)


def _in_sight(factors: Sequence[float], own: float) -> Sequence[float]:
    """The same range, and as many factors, stretched where the scenario's own lies outside."""
    low, high = min(factors[0], 0.7 * own), max(factors[-1], 1.4 * own)
    if (low, high) == (factors[0], factors[-1]):
        return factors
    ratio = (high / low) ** (1 / (_POINTS - 1))
    return [*(low * ratio**i for i in range(_POINTS)), 1.0]


def _against_spares(scenario: Scenario, wanted: Wanted, tell: Tell) -> Axis:
    prepared = _prepared(scenario, tell)
    own = _plan(prepared, tell)
    size = own.hot.size
    cases = []
    for count in _spare_counts(size, wanted):
        cases.append(_case(float(count), prepared, replace(own, hot=own.hot._replace(size=count))))
    held = "Hot spares are added to the GPUs that are owned; all else is held."
    if own.policy == "wait":
        held = "policy: wait uses no spares. " + held
    return Axis(tuple(cases), (Marker(OWN, float(size)),), held)


def _spare_counts(own: int, wanted: Wanted) -> list[int]:
    """Whole numbers of spares: powers of two up to twice the own number, or as asked for."""
    if wanted.values:
        if any(value < 0 or value != int(value) for value in wanted.values):
            raise ScenarioError(f"{wanted.values} are not all counts of machines; use 0, 1, 2, ...", field="--values")
        return sorted({int(value) for value in wanted.values})
    low = int(wanted.first or 0)
    high = max(8, 2 * own) if wanted.last is None else int(wanted.last)
    if low < 0 or high <= low:
        raise ScenarioError(f"from {low} to {high} spares is no range; --from must be the smaller", field="--from")
    powers = [0, *(2**power for power in range(high.bit_length() + 1))]
    return sorted({low, high, *(count for count in (*powers, own) if low <= count <= high)})


def _against_gpus(scenario: Scenario, wanted: Wanted, tell: Tell) -> Axis:
    cases, left_out = [], []
    jobs = _scaled_jobs(scenario, wanted)
    for number, job in enumerate(jobs):

        def told(what: str, fraction: float, number: int = number) -> None:
            tell(what, (number + fraction) / len(jobs))

        try:
            prepared = _prepared(job, told)
            cases.append(_case(float(job.gpus), prepared, _plan(prepared, told)))
        except SimulatorError as error:
            if wanted.explicit or job.gpus == scenario.gpus:
                raise
            left_out.append(LeftOut(float(job.gpus), str(error)))
    assert scenario.reliability is not None
    held = (
        "Weak scaling through dp: global batch, nodes, spares and storage bandwidth grow with the GPUs;"
        f" {_interval_held(scenario.reliability)}; the batch of a replica, the tokens of the run, rates per component"
        " and all other times are held."
    )
    return Axis(tuple(cases), (Marker(OWN, float(scenario.gpus)),), held, tuple(left_out))


def _scaled_jobs(scenario: Scenario, wanted: Wanted) -> list[Scenario]:
    """The jobs along the axis; those not asked for by number have the nearest dp that the split allows."""
    one = replica_gpus(scenario)
    if wanted.values:
        return [_asked_for(scenario, value) for value in sorted(set(wanted.values))]
    values = spread(float(scenario.gpus), _GPUS, wanted, least=float(one), most=math.inf, show=_gpus)
    found = [nearest_replicas(scenario, max(1, round(value / one))) for value in values]
    return _distinct([job for job in found if job is not None])


def _gpus(value: float, **_limits: float) -> str:
    return f"{value:,.0f} GPUs"


def _asked_for(scenario: Scenario, gpus: float) -> Scenario:
    """The job on a number of GPUs that was asked for; refused with the nearest that would do."""
    replicas = _replicas(scenario, gpus)
    try:
        return with_replicas(scenario, replicas)
    except (LayoutError, ScenarioError) as error:
        near = [f"{found.gpus:,}" for found in neighbours(scenario, replicas)]
        use = f"; use {' or '.join(near)}" if near else ""
        raise LayoutError(f"--values: {_gpus(gpus)} do not do: {error}{use}") from None


def _replicas(scenario: Scenario, gpus: float) -> int:
    one = replica_gpus(scenario)
    if gpus < one or gpus % one:
        below, above = max(1, int(gpus // one)) * one, (int(gpus // one) + 1) * one
        raise LayoutError(
            f"--values: {gpus:,.0f} GPUs are no whole number of replicas of {one:,} GPUs (tp × cp × pp);"
            f" use {below:,} or {above:,}"
        )
    return int(gpus // one)


def _distinct(jobs: Sequence[Scenario]) -> list[Scenario]:
    by_size = {job.gpus: job for job in jobs}
    return [by_size[gpus] for gpus in sorted(by_size)]


AXES: dict[str, Prepare] = {
    "gpus": _against_gpus,
    "mtbf": _against_mtbf,
    "interval": _against_interval,
    "spares": _against_spares,
}
"""Cases along each axis, by its name."""
