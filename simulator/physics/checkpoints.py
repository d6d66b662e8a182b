"""Checkpoints: how often to save, and what failures then cost.

Between failures a run repeats a cycle: `interval` seconds of work, `save` seconds of saving. Failures are a
Poisson process with mean time `mtbf`; one of them throws the run back to its last durable save and costs a
recovery of `downtime` seconds. That is a renewal process with exact expectations, which Young's and Daly's
formulas approximate the best interval of, and Meta's linear form the outcome of.

Limits: exponential failures only, whole cycles only, no waiting for spare machines; the campaign
(engine/campaign) has none of these limits but these formulas are what it is checked against. How long a save takes is
in `physics.campaign.saving`.
Pinned by tests/physics/test_checkpoints.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from simulator.errors import ScenarioError
from simulator.scenario.reliability.checkpoint import Interval
from simulator.scenario.units import Seconds, readable_time

# A quotient this close to a whole number is one: keeps 30 min / 0.1 s at 18,000 steps.
_ROUNDING = 1e-12


def young(save: Seconds, mtbf: Seconds) -> Seconds:
    """Work between saves after Young (CACM 17(9), 1974): sqrt(2 save mtbf); good while save << mtbf."""
    _check(save, mtbf)
    return math.inf if math.isinf(mtbf) else math.sqrt(2 * save * mtbf)


def daly(save: Seconds, mtbf: Seconds) -> Seconds:
    """Work between saves after Daly's higher-order formula (FGCS 22(3), 2006).

    With d = save, M = mtbf: sqrt(2dM) [1 + sqrt(d/2M)/3 + (d/2M)/9] - d while d < 2M, else M. Its
    `daly_run_time` is within 0.02 % of the best possible while d <= M.

    Examples
    --------
    >>> round(daly(5 * 60, 24 * 3600) / 60, 1)
    116.7
    """
    _check(save, mtbf)
    if save >= 2 * mtbf or math.isinf(mtbf):
        return mtbf
    ratio = save / (2 * mtbf)
    return math.sqrt(2 * save * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def daly_run_time(work: Seconds, interval: Seconds, save: Seconds, restart: Seconds, mtbf: Seconds) -> Seconds:
    """Expected wall-clock of `work` seconds of training (Daly, FGCS 22(3), 2006, the complete model).

    M e^(restart/M) (e^((interval + save)/M) - 1) work/interval: failures strike during saves and during the
    restart, which then begins again. Infinite where it exceeds a float.
    """
    _check(save, mtbf)
    ettr = renewal_ettr(interval, save, restart, mtbf, failures_during_restart=True)
    return work / ettr if ettr > 0 else math.inf


def renewal_ettr(
    interval: Seconds,
    save: Seconds,
    downtime: Seconds,
    mtbf: Seconds,
    *,
    persist: Seconds = 0.0,
    failures_during_restart: bool = False,
) -> float:
    """Fraction of wall-clock that is kept work, in the long run (effective training time ratio).

    Renewal-reward: from one resumption to the next a run of exponential length X (mean M) keeps
    floor((X - persist)/(interval + save)) cycles, in the mean e^(-persist/M) / (e^((interval + save)/M) - 1), and
    lasts M plus the recovery. The recovery is `downtime` where it is free of failures, else what it takes to get
    through `downtime` without one, M (e^(downtime/M) - 1), which makes this Daly's run time exactly.

    Parameters
    ----------
    interval
        Seconds of work between saves.
    save
        Seconds that a save blocks training.
    downtime
        Detection, restart and load after a failure.
    persist
        Background seconds after the blocking part until a save is durable; at most `interval`.
    failures_during_restart
        Whether the recovery may itself be struck and begin again.

    Raises
    ------
    ScenarioError
        If `mtbf` or `interval` is not positive or a duration is negative.
    """
    _check(save, mtbf)
    if not interval > 0 or downtime < 0 or persist < 0:
        raise ScenarioError(f"interval {interval!r}, downtime {downtime!r}, persist {persist!r}: not all are times")
    if math.isinf(mtbf):
        return interval / (interval + save)
    kept = interval * math.exp(-persist / mtbf) / _expm1((interval + save) / mtbf)
    recovery = mtbf * _expm1(downtime / mtbf) if failures_during_restart else downtime
    # Both factors may leave the range of a float: nothing is kept then.
    return kept / (mtbf + recovery)


def mean_downtime(downtimes: Sequence[Seconds], rates: Sequence[float], *, failures_during_restart: bool) -> Seconds:
    """The one downtime that stands for failure classes with a downtime each, in `renewal_ettr`.

    Where recoveries are free of failures it is the mean, weighted by rate. Else a recovery is got through with
    probability E[e^(-R/M)], and fails again M later: R = -M log E[e^(-R/M)] has the same mean recovery.

    Parameters
    ----------
    downtimes, rates
        Seconds of recovery and events per second (more than zero), by class.
    failures_during_restart
        Whether recoveries may be struck.
    """
    total = sum(rates)
    if not failures_during_restart:
        return sum(down * rate for down, rate in zip(downtimes, rates, strict=True)) / total
    least = min(downtimes)  # factored out, so that the exponentials do not all underflow
    survival = sum(rate / total * math.exp((least - down) * total) for down, rate in zip(downtimes, rates, strict=True))
    return least - math.log(survival) / total


def linear_ettr(interval: Seconds, save: Seconds, downtime: Seconds, mtbf: Seconds) -> float:
    """Meta's linear form (arXiv 2410.21680): (1 - (downtime + interval/2)/mtbf) / (1 + save/interval).

    For small losses only: by a tenth of wall-clock lost it is a few points too low, and it can be negative.
    """
    _check(save, mtbf)
    return (1 - (downtime + interval / 2) / mtbf) / (1 + save / interval)


def renewal(save: Seconds, mtbf: Seconds) -> Seconds:
    """Work between saves that makes `renewal_ettr` greatest, exactly.

    With x = work/M and d = save/M the derivative of x/(e^(x + d) - 1) vanishes where e^(x + d) (1 - x) = 1: between 0
    and 1, found by bisection (x = 1 + W(-e^-(1 + d)), W the principal branch of Lambert's function). Neither the
    recovery nor a background write moves it.

    Examples
    --------
    >>> round(renewal(5 * 60, 24 * 3600) / 60, 1), round(renewal(5 * 60, 15 * 60) / 60, 1)
    (116.7, 9.2)
    """
    _check(save, mtbf)
    if math.isinf(mtbf) or save == 0:
        return mtbf if save else 0.0
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle * mtbf
        rising = middle + save / mtbf + math.log1p(-middle) > 0
        low, high = (middle, high) if rising else (low, middle)


RULES: dict[str, Callable[[Seconds, Seconds], Seconds]] = {
    "young": young,
    "daly": daly,
    "renewal": renewal,
    "optimal": renewal,
}
"""Ways to choose the work between saves from a save's blocking time and the mean time between failures."""


def steps_by_rule(
    rule: str, *, step_time: Seconds, steps: int, save_time: Seconds, persist_time: Seconds, mtbf: Seconds
) -> int:
    """Whole steps between two saves after one of `RULES`, at most `steps`.

    The exact optimum is the better of the whole steps below and above; the formulas' is the nearest. Never so short
    that a save begins before the one before it is durable.
    """
    work = max(RULES[rule](save_time, mtbf), persist_time)
    if work >= steps * step_time:
        return steps
    least = max(1, _ceil(persist_time / step_time))
    if RULES[rule] is not renewal:
        return max(least, round(work / step_time))
    below = max(least, math.floor(work / step_time))

    def kept(count: int) -> float:
        return renewal_ettr(count * step_time, save_time, 0.0, mtbf)

    return min(below if kept(below) >= kept(below + 1) else below + 1, steps)


def steps_per_save(
    interval: Interval, *, step_time: Seconds, steps: int, save_time: Seconds, persist_time: Seconds, mtbf: Seconds
) -> int:
    """Whole steps between two saves, at most `steps`.

    A time counts from where the last save began and is rounded up to a step.

    Parameters
    ----------
    interval
        As the scenario has it.
    step_time
        Seconds of one step.
    steps
        Steps of the whole run.
    save_time, persist_time
        Seconds that a save blocks training, and then takes in the background.
    mtbf
        Mean time between failures of the job; may be infinite.

    Raises
    ------
    ScenarioError
        If a stated interval is shorter than the save.
    """
    if interval.steps is None and interval.seconds is None:
        rule = "optimal" if interval.rule in (None, "simulated") else interval.rule
        return steps_by_rule(
            str(rule), step_time=step_time, steps=steps, save_time=save_time, persist_time=persist_time, mtbf=mtbf
        )
    chosen = interval.steps
    if chosen is None:
        assert interval.seconds is not None
        chosen = max(1, _ceil((interval.seconds - save_time) / step_time))
    stated = interval.seconds or save_time + chosen * step_time
    needed = save_time + persist_time
    if stated < needed * (1 - _ROUNDING) and chosen < steps:
        counted = "1 step" if interval.steps == 1 else f"{interval.steps} steps"
        name = readable_time(stated) if interval.steps is None else f"{counted}, with its save {readable_time(stated)},"
        raise ScenarioError(
            f"{name} is shorter than a save, {readable_time(needed)}: write an interval of at least"
            f" '{readable_time(needed, at_least=needed)}', or 'optimal'",
            field="reliability.checkpoint.interval",
        )
    return min(chosen, steps)


def _check(save: Seconds, mtbf: Seconds) -> None:
    if not save >= 0 or not mtbf > 0:
        raise ScenarioError(f"save time {save!r} s and mean time between failures {mtbf!r} s must be >= 0 and > 0")


def _ceil(quotient: float) -> int:
    return math.ceil(quotient * (1 - _ROUNDING))


def _expm1(exponent: float) -> float:
    return math.expm1(exponent) if exponent < 700 else math.inf
