"""How often to save: the interval with the shortest simulated run, beside Young's, Daly's and the exact renewal's.

Every candidate is simulated with the same failures (common random numbers). Near its minimum the time that a run takes
over is A·x + B/x + C of the interval x (work that failures undo, saves, the rest), which is linear in A, B and C: a
least-squares fit through the candidates about the best one averages their noise, and sqrt(B/A) is the optimum.

Limits: with several tiers only the outermost is varied, in multiples of the one before; with several phases all save
at the same time interval, in whole steps of each. The closed forms know only Poisson failures that stop the job.
Pinned by tests/studies/test_optimal_interval.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.campaign import simulate_campaign
from simulator.errors import ScenarioError
from simulator.physics.campaign.expected import healthy_run_time
from simulator.physics.campaign.intervals import hazard_rate, lost_rate
from simulator.physics.campaign.plan import CampaignPlan, Phase, StepTimes, Tier
from simulator.physics.checkpoints import daly, renewal, young
from simulator.records import CampaignResult
from simulator.scenario.units import Seconds

Matrix = NDArray[np.float64]

# Candidates about the best one that the fit uses: within this factor. Beyond it the next terms of the exact overhead
# shift the minimum (within 2.5 by 2 % where the interval is a fifth of the time between failures).
FIT_WITHIN = 1.8
# Of the coarse and of the fine grid: ratio between neighbours, and neighbours on each side.
_COARSE = (2.0, 4)
_FINE = (1.15, 4)
# Assumption: an optimum known to 5 % costs less than 0.2 % more overhead than the best one.
PRECISION = 0.05
# Replications that the search begins with, before it is known how many the precision needs.
_FIRST_RUNS = 8
_FORMS = {"Young": young, "Daly": daly, "exact renewal": renewal}


class IntervalPoint(NamedTuple):
    """A simulated interval.

    Attributes
    ----------
    steps
        Steps of the longest phase between saves.
    seconds
        From the start of one save to that of the next at the healthy pace.
    overhead
        Wall-clock over productive time, less 1; mean of the replications.
    error
        Standard error of `overhead`.
    """

    steps: int
    seconds: Seconds
    overhead: float
    error: float


@dataclass(frozen=True)
class OptimalInterval:
    """The simulated optimum and how it was found.

    Attributes
    ----------
    steps, seconds
        As in `IntervalPoint`.
    precision
        Relative standard error of `seconds`; 0 at a bound.
    at_bound
        Whether shorter (or longer) intervals than this one cannot be: a save takes as long, or the run ends.
    runs
        Replications of the candidates about the optimum.
    curve
        Every candidate, ascending.
    """

    steps: int
    seconds: Seconds
    precision: float
    at_bound: bool
    runs: int
    curve: tuple[IntervalPoint, ...]


def longest_phase(plan: CampaignPlan) -> Phase:
    """The phase that takes longest on a healthy cluster: intervals are told in its steps."""
    return max(plan.phases, key=lambda phase: phase.steps * phase.step_time)


def pace(plan: CampaignPlan, phase: Phase) -> Seconds:
    """Seconds of a healthy step with what every step suffers."""
    return phase.step_time * plan.step_factor + plan.garbage_collection


def interval_seconds(plan: CampaignPlan, steps: int) -> Seconds:
    """From the start of a save to that of the next, `steps` of the longest phase later."""
    phase = longest_phase(plan)
    return steps * pace(plan, phase) + phase.tiers[-1].blocking


def steps_for(plan: CampaignPlan, seconds: Seconds) -> int:
    """Steps of the longest phase whose interval is nearest, within bounds."""
    phase, (least, most) = longest_phase(plan), bounds(plan)
    wanted = round((seconds - phase.tiers[-1].blocking) / pace(plan, phase))
    return min(max(wanted, least), most)


def bounds(plan: CampaignPlan) -> tuple[int, int]:
    """Fewest and most steps of the longest phase between saves: a save is durable before the next; the whole phase."""
    phase = longest_phase(plan)
    tier = phase.tiers[-1]
    inner = phase.tiers[-2].every if len(phase.tiers) > 1 else 1
    least = max(1, math.ceil(tier.persist / pace(plan, phase) * (1 - 1e-12)))
    return min(phase.steps, -(-least // inner) * inner), phase.steps


def at_interval(plan: CampaignPlan, steps: int) -> CampaignPlan:
    """The same plan, saving to its outermost tier every `steps` of its longest phase, and as often in the others."""
    longest = longest_phase(plan)
    work = steps * pace(plan, longest)

    def adapt(phase: Phase) -> Phase:
        every = steps if phase is longest else max(1, round(work / pace(plan, phase)))
        return phase._replace(tiers=_with_interval(phase.tiers, every))

    return replace(plan, phases=tuple(adapt(phase) for phase in plan.phases))


def _with_interval(tiers: tuple[Tier, ...], every: int) -> tuple[Tier, ...]:
    inner = tiers[-2].every if len(tiers) > 1 else 1
    return (*tiers[:-1], tiers[-1]._replace(every=max(1, round(every / inner)) * inner, seconds=None))


# --- what the closed forms say ----------------------------------------------------------------------------------------


def job_mtbf(plan: CampaignPlan) -> Seconds:
    """Mean time between failures that stop the job: not pauses, not rewinds."""
    span = healthy_run_time(plan)
    stopping = [each for each in plan.failures if each.effect not in ("pause", "rewind")]
    return _mean_time(hazard_rate(each.hazard, span) for each in stopping)


def _mean_time(rates: Iterable[float]) -> Seconds:
    rate = sum(rates)
    return 1 / rate if rate > 0 else math.inf


def closed_forms(plan: CampaignPlan) -> dict[str, Seconds]:
    """Young's, Daly's and the exact renewal's interval from save to save; none where no failure goes back to a save."""
    tiers = longest_phase(plan).tiers
    survives = max((tier.survives for tier in tiers[:-1]), default=-1)
    span, keeps = healthy_run_time(plan), plan.elastic is not None and plan.elastic.keeps_state
    rates = [lost_rate(each, survives, span, keeps_state=keeps) for each in plan.failures]
    mtbf, save = _mean_time(rates), tiers[-1].blocking
    if math.isinf(mtbf) or save <= 0:
        return {}
    return {name: rule(save, mtbf) + save for name, rule in _FORMS.items()}


def why_no_closed_forms(plan: CampaignPlan) -> str:
    """Say why there is neither Young's, nor Daly's, nor the exact renewal's interval; "" where there are."""
    if closed_forms(plan):
        return ""
    if longest_phase(plan).tiers[-1].blocking <= 0:
        return "Saves hold nothing up: Young, Daly and the exact renewal would save all the time, and have no mark."
    return "No failure goes back to a save: Young, Daly and the exact renewal would never save, and have no mark."


# --- the search -------------------------------------------------------------------------------------------------------


def overhead(plan: CampaignPlan, result: CampaignResult) -> float:
    """Wall-clock over what the steps take on a healthy cluster, less 1."""
    return result.wall_clock / sum(phase.steps * phase.step_time for phase in plan.phases) - 1


def optimal_interval(
    plan: CampaignPlan,
    step_times: StepTimes | None,
    seed: int,
    runs: int = 50,
    *,
    precision: float = PRECISION,
    progress: Callable[[float], None] | None = None,
) -> OptimalInterval:
    """Find the interval with the shortest mean run.

    A coarse grid about the best closed form, then a fine one about its best candidate; its replications are doubled
    until the optimum is known to `precision`, or there are `runs` of them.

    Parameters
    ----------
    plan
        With at least one tier; its own interval does not matter.
    step_times
        As for `simulate_campaign`.
    seed, runs
        Replications 0 to at most `runs` - 1 of this seed, the same for every candidate.
    precision
        Relative standard error of the optimum that is enough.
    progress
        Called with the fraction that is done.

    Raises
    ------
    ScenarioError
        No tier to save to, fewer than two runs, or no interval with which the run ends.
    """
    if runs < 2:
        raise ScenarioError(f"runs {runs}: the optimum's precision needs at least two replications")
    if not longest_phase(plan).tiers:
        raise ScenarioError("there is no checkpoint whose interval could be chosen: describe reliability.checkpoint")
    search = _Search(plan, step_times, seed, progress or (lambda _fraction: None))
    least, most = bounds(plan)
    if math.isinf(job_mtbf(plan)) and not plan.slow:
        search.simulate(most, 2)
        return search.answer(most, 0.0, at_bound=True)
    guess = _guess(plan)
    number = min(runs, _FIRST_RUNS)
    coarse = _grid(guess, *_COARSE, least, most)
    search.planned = 2 * len(coarse) * number
    best = search.best(coarse, number)
    while best in (coarse[0], coarse[-1]) and best not in (least, most):  # the closed forms were far off
        coarse = _grid(best, *_COARSE, least, most)
        best = search.best(coarse, number)
    fine = _grid(best, *_FINE, least, most)
    while True:
        search.best(fine, number)
        seconds, error = fit_optimum(
            [interval_seconds(plan, steps) for steps in fine],
            np.array([search.found[steps][:number] for steps in fine]),
            longest_phase(plan).tiers[-1].blocking,
        )
        steps = steps_for(plan, seconds)
        if error <= precision or number >= runs:
            break
        number = min(2 * number, runs)
        search.planned = search.made + len(fine) * number // 2
    search.progress(1.0)
    at_bound = steps in (least, most)
    return search.answer(steps, 0.0 if at_bound else error, at_bound=at_bound)


def _guess(plan: CampaignPlan) -> int:
    """Steps of the exact renewal optimum; where a save costs nothing, the shortest interval."""
    forms = closed_forms(plan)
    return steps_for(plan, forms["exact renewal"]) if forms else bounds(plan)[0]


def _grid(centre: int, ratio: float, sides: int, least: int, most: int) -> list[int]:
    """Whole steps about `centre`, `sides` each way, `ratio` apart or 1 step where that is more."""
    wanted = {centre}
    low = high = float(centre)
    for _ in range(sides):
        low, high = min(low / ratio, round(low) - 1), max(high * ratio, round(high) + 1)
        wanted |= {round(low), round(high)}
    return sorted({min(max(steps, least), most) for steps in wanted})


@dataclass
class _Search:
    """Overheads of the candidates simulated so far, by steps and replication."""

    plan: CampaignPlan
    step_times: StepTimes | None
    seed: int
    progress: Callable[[float], None]
    planned: int = 1

    def __post_init__(self) -> None:
        self.found: dict[int, list[float]] = {}
        self.made = 0

    def simulate(self, steps: int, runs: int) -> None:
        """Bring a candidate to so many replications; one with which the run never ends costs infinitely much."""
        found = self.found.setdefault(steps, [])
        plan = at_interval(self.plan, steps)
        for replication in range(len(found), runs):
            try:
                result = simulate_campaign(plan, self.seed, replication, step_times=self.step_times)
            except ScenarioError:
                found += [math.inf] * (runs - replication)
                break
            found.append(overhead(plan, result))
            self.made += 1
            self.progress(min(1.0, self.made / max(1, self.planned)))

    def best(self, candidates: Sequence[int], runs: int) -> int:
        """The candidate with the least mean overhead."""
        for steps in candidates:
            self.simulate(steps, runs)
        best = min(candidates, key=lambda steps: float(np.mean(self.found[steps])))
        if math.isinf(np.mean(self.found[best])):
            simulate_campaign(at_interval(self.plan, best), self.seed, 0, step_times=self.step_times)  # says why
        return best

    def answer(self, steps: int, precision: float, *, at_bound: bool) -> OptimalInterval:
        """The optimum with the curve behind it."""
        curve = []
        for candidate, found in sorted(self.found.items()):
            seconds, error = (
                interval_seconds(self.plan, candidate),
                float(np.std(found, ddof=1) / math.sqrt(len(found))),
            )
            curve.append(IntervalPoint(candidate, seconds, float(np.mean(found)), error))
        seconds, runs = interval_seconds(self.plan, steps), max(map(len, self.found.values()))
        return OptimalInterval(steps, seconds, precision, at_bound, runs, tuple(curve))


def fit_optimum(seconds: Sequence[float], overheads: Matrix, save: Seconds = 0.0) -> tuple[float, float]:
    """Minimum of A·x + B/x + C through simulated intervals, and its relative standard error by the jackknife.

    Parameters
    ----------
    seconds
        Intervals from save to save. [N]
    overheads
        Of each interval and replication. [N, R]
    save
        Blocking part of the interval: x is the rest.

    Returns
    -------
    seconds, error
        The optimal interval: the best candidate itself, with infinite error, where the fit has no minimum.
    """
    work = np.asarray(seconds, dtype=np.float64) - save
    means = overheads.mean(axis=1)
    best = int(means.argmin())
    near = (work <= work[best] * FIT_WITHIN) & (work >= work[best] / FIT_WITHIN) & np.isfinite(means)
    if near.sum() < 3:
        return float(seconds[best]), math.inf
    scale = work[best]
    x = work[near] / scale
    design = np.column_stack([x, 1 / x, np.ones_like(x)])
    coefficients = np.linalg.pinv(design) @ overheads[near]  # [3, R]: a fit is linear, so the mean's is the fits' mean
    runs = coefficients.shape[1]
    everything = coefficients.sum(axis=1)
    centre = _vertex(everything / runs)
    if not x[0] / 2 <= centre <= x[-1] * 2:
        return float(seconds[best]), math.inf
    if runs < 2:
        return float(centre * scale + save), math.inf
    left_out = np.array([_vertex((everything - coefficients[:, r]) / (runs - 1)) for r in range(runs)])
    error = math.sqrt((runs - 1) / runs * float(((left_out - centre) ** 2).sum())) / centre
    return float(centre * scale + save), error if math.isfinite(error) else math.inf


def _vertex(coefficients: Matrix) -> float:
    rising, falling = float(coefficients[0]), float(coefficients[1])
    return math.sqrt(falling / rising) if rising > 0 and falling > 0 else math.nan
