"""How often a phase saves to the storage: as stated, or by the rule that the scenario names.

A rule weighs saves against the failures that go back to one: those that no nearer tier survives. What only holds the
job up (`pause`) or goes back further on purpose (`rewind`) is not among them.

Where replicas carry on with what the others hold (elastic), the loss of a machine goes back to no save either.

Limits: every class counts with its mean rate over the healthy run, a batch of parts with that of parts of its age.

Pinned by tests/physics/campaign/test_intervals.py.
"""

from __future__ import annotations

import math

from simulator.physics.campaign.expected import mean_rate
from simulator.physics.campaign.plan import Hazard, JobFailure
from simulator.physics.checkpoints import steps_by_rule, steps_per_save
from simulator.scenario.reliability.checkpoint import Interval
from simulator.scenario.units import Seconds


def saving_interval(
    interval: Interval,
    *,
    step_time: Seconds,
    steps: int,
    full: tuple[Seconds, Seconds],
    mean: tuple[Seconds, Seconds],
    failures: tuple[JobFailure, ...],
    survives: int = -1,
    multiple: int = 1,
    span: Seconds | None = None,
    keeps_state: bool = False,
) -> int:
    """Steps between saves to the storage.

    Parameters
    ----------
    interval
        As the scenario has it; `simulated` starts from the exact optimum.
    steps
        Of the whole run: no rule asks for more.
    full, mean
        Seconds that a save blocks training and then takes in the background: of a full one, which has to fit into a
        stated interval, and on average, which a rule weighs.
    failures
        What the job goes back for.
    survives
        Machines that a nearer tier survives the loss of; -1 without one.
    multiple
        The steps are a multiple of these, those of the tier before.
    span
        Seconds of the healthy run, over which rates are meant; left out: `steps` of `step_time`.
    keeps_state
        Whether the other replicas hold what lost machines held.

    Raises
    ------
    ScenarioError
        A stated interval is shorter than a save.
    """
    if interval.steps is not None or interval.seconds is not None:
        chosen = steps_per_save(
            interval, step_time=step_time, steps=steps, save_time=full[0], persist_time=full[1], mtbf=math.inf
        )
    else:
        span = steps * step_time if span is None else span
        rate = sum(lost_rate(failure, survives, span, keeps_state=keeps_state) for failure in failures)
        rule = "optimal" if interval.rule in (None, "simulated") else interval.rule
        chosen = steps_by_rule(
            str(rule),
            step_time=step_time,
            steps=steps,
            save_time=mean[0],
            persist_time=full[1],
            mtbf=1 / rate if rate > 0 else math.inf,
        )
    return -(-chosen // multiple) * multiple


def lost_rate(failure: JobFailure, survives: int, span: Seconds | None = None, *, keeps_state: bool = False) -> float:
    """Failures per second that go back to a save on the storage; see `saving_interval`."""
    rate = hazard_rate(failure.hazard, span)
    if failure.effect == "silent":
        return rate
    if failure.effect in ("pause", "rewind"):
        return 0.0
    if keeps_state:  # what takes no machine stops all replicas
        return rate * (1 - failure.machine_share) if survives < 0 else 0.0
    if survives < 0:
        return rate
    burst, more = failure.burst
    lost = sum(
        odds * (burst * (count + more > survives) + (1 - burst) * (count > survives))
        for count, odds in failure.machines
    )
    return rate * failure.machine_share * lost


def hazard_rate(hazard: Hazard, span: Seconds | None = None) -> float:
    """Events per second of the job, in the mean over its first `span` seconds or the long run; none of injected times.

    In the long run parts of a batch are replaced by new ones over and over.
    """
    if span is not None:
        return mean_rate(hazard, span)
    if hazard.kind == "batch":
        return hazard.units / (hazard.scale * math.gamma(1 + 1 / (hazard.shape or 1.0)))
    return 0.0 if hazard.kind == "times" else hazard.rate
