"""One campaign of a scenario with its records: what the picture of it is drawn from.

Limits: slow stretches are told by their pace; what slows the steps by less than a twentieth is not seen, parts that are
slow at the same time are one stretch, and steps with replicas missing are slow as well.
Pinned by tests/studies/test_campaign_record.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from simulator.engine.campaign import simulate_campaign
from simulator.errors import ScenarioError
from simulator.physics.campaign.plan import CampaignPlan
from simulator.records import CampaignResult
from simulator.results.campaign import campaign_figures, fleet_of
from simulator.scenario.scenario import Scenario
from simulator.studies.phases import prepare_run
from simulator.studies.replicate import Tell
from simulator.studies.simulate import choose_plan, fit_or_refuse, plan_memory

# Assumption: what takes a twentieth longer than expected, saves included, is slow.
_SLOWER = 1.05


class SlowStretch(NamedTuple):
    """Steps that were kept and took longer than on a healthy cluster, without a break.

    `excess_s`: seconds more than healthy steps with their saves would have taken.
    """

    start: float
    end: float
    excess_s: float


@dataclass(frozen=True, kw_only=True)
class RecordedCampaign:
    """A replication with its incidents and progress.

    Attributes
    ----------
    healthy_mfu, effective_mfu
        As in the `campaign` object of the JSON output.
    """

    name: str
    seed: int
    replication: int
    plan: CampaignPlan
    result: CampaignResult
    healthy_mfu: float
    effective_mfu: float

    @cached_property
    def slow(self) -> tuple[SlowStretch, ...]:
        """When steps were slow, in time order, if anything can be slow."""
        return slow_stretches(self.plan, self.result) if self.plan.slow else ()

    def figures(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "scenario": self.name,
            "seed": self.seed,
            "replication": self.replication,
            "wall_clock_s": self.result.wall_clock,
            "healthy_mfu": self.healthy_mfu,
            "effective_mfu": self.effective_mfu,
            "time_s": dict(self.result.time_s),
            "failures_by_class": dict(self.result.failures),
            "incidents": [each._asdict() for each in self.result.incidents],
            "slow_stretches": [each._asdict() for each in self.slow],
            "progress": [each._asdict() for each in self.result.progress],
            "productive_s_by_hour": list(self.result.hours),
        }


def slow_stretches(plan: CampaignPlan, result: CampaignResult) -> tuple[SlowStretch, ...]:
    """Find the stretches of kept steps at less than the healthy pace; those that touch are one."""
    steps = np.array([0, *accumulate(phase.steps for phase in plan.phases)], dtype=np.float64)
    paces = [
        phase.step_time * plan.step_factor * (1 + plan.diurnal[0])
        + plan.garbage_collection
        + sum(tier.blocking / tier.every for tier in phase.tiers)
        for phase in plan.phases
    ]
    healthy = np.cumsum([0.0, *(phase.steps * pace for phase, pace in zip(plan.phases, paces, strict=True))])
    # A short stretch may hold one save more than its steps have on average.
    save = max((tier.blocking for phase in plan.phases for tier in phase.tiers), default=0.0)
    found: list[SlowStretch] = []
    for start, end, first, last, key in result.progress:
        expected = float(np.interp(last, steps, healthy) - np.interp(first, steps, healthy))
        if key != "productive" or end - start <= _SLOWER * expected + save:
            continue
        each = SlowStretch(start, end, end - start - expected)
        if found and found[-1].end >= start - 1e-6:
            each = SlowStretch(found[-1].start, end, found[-1].excess_s + each.excess_s)
            found.pop()
        found.append(each)
    return tuple(found)


def record_campaign(scenario: Scenario, replication: int = 0, *, tell: Tell | None = None) -> RecordedCampaign:
    """Simulate one replication of a scenario's run and keep its records.

    Raises
    ------
    ScenarioError
        No `tokens`, a negative replication, or a run that would hardly ever end.
    """
    if scenario.steps is None:
        raise ScenarioError(
            "has no length, so there is no run to draw; write training: {tokens: 1e12 tokens}", field="training.tokens"
        )
    if replication < 0:
        raise ScenarioError(f"replication {replication} is none; use 0, 1, 2, ...", field="--replication")
    tell = tell or (lambda _what, _fraction: None)
    fit_or_refuse(scenario, plan_memory(scenario))
    prepared = prepare_run(scenario, progress=lambda fraction: tell("steps", fraction))
    assert prepared is not None
    plan = choose_plan(prepared, lambda fraction: tell("interval", fraction))
    result = simulate_campaign(
        plan,
        scenario.seed,
        replication,
        step_times=prepared.step_times,
        keep_records=True,
        progress=lambda fraction: tell("campaign", fraction),
    )
    figures = campaign_figures(fleet_of(scenario, plan), plan, result)
    return RecordedCampaign(
        name=scenario.name,
        seed=scenario.seed,
        replication=replication,
        plan=plan,
        result=result,
        healthy_mfu=figures["healthy_mfu"],
        effective_mfu=figures["effective_mfu"],
    )
