"""What is allowed in a run of months but rarely meant: warnings from its plan and its figures.

Pinned by tests/studies/test_run_warnings.py.
"""

from __future__ import annotations

from typing import Any

from simulator.physics.campaign.plan import CampaignPlan
from simulator.records import CAMPAIGN_KEYS
from simulator.scenario.scenario import Scenario
from simulator.scenario.units import readable_time

# Assumption: published runs keep 80 % and more of their time; below half something is not as it was meant.
_POOR_GOODPUT = 0.5
# Assumption: a tenth of the job's nodes, and more than one; published pools of spares are a few per cent.
_MANY_SPARES = 0.1


def run_warnings(scenario: Scenario, plan: CampaignPlan, figures: dict[str, Any]) -> list[str]:
    """What the user should know before trusting a run.

    Parameters
    ----------
    figures
        Of the campaign, as in the JSON output.
    """
    return [
        *_goodput(figures),
        *_saves(plan),
        *_corruption(figures),
        *_unstated_spares(scenario, plan),
        *_bursts(scenario, plan),
    ]


def _goodput(figures: dict[str, Any]) -> list[str]:
    """Where most of the time went, if it was not into training."""
    if figures["goodput"] >= _POOR_GOODPUT:
        return []
    wall = figures["wall_clock_s"]
    spent = {key: figures[f"{key}_s"] for key in CAMPAIGN_KEYS if key != "productive"}
    worst = sorted(spent, key=lambda key: -spent[key])[:2]
    taken = " and ".join(f"{100 * spent[key] / wall:.0f} % {key.replace('_', ' ')}" for key in worst if spent[key])
    stopped = ""
    if figures["interruptions"]:
        up, down = readable_time(figures["mttf_s"]), readable_time(figures["mttr_s"])
        stopped = f"; it is up for {up} between interruptions and down for {down} after each"
    return [
        f"the run keeps {100 * figures['goodput']:.2g} % of its time: {taken}{stopped}; check the failure rates, times"
        " of restart and interval under reliability"
    ]


def _corruption(figures: dict[str, Any]) -> list[str]:
    """Steps that count as kept though their state was wrong."""
    number = figures["undiscovered_corruptions"]
    if not number:
        return []
    what = "a silent corruption was" if number == 1 else f"{number:,} silent corruptions were"
    return [f"{what} not found before the run ended: its last steps count as kept, but the model is not sound"]


def _saves(plan: CampaignPlan) -> list[str]:
    """Saves that stop training for longer than the work between them."""
    for phase in plan.phases:
        for tier in phase.tiers:
            seconds = tier.every * phase.step_time
            work = seconds if tier.seconds is None else max(tier.seconds - tier.blocking, phase.step_time)
            if tier.every < phase.steps and tier.blocking > work * (1 + 1e-9):
                return [
                    f"saves take longer than the work between them: each stops training for"
                    f" {readable_time(tier.blocking)} after {readable_time(work)} of work; save less often"
                    " (reliability.checkpoint.interval), or write mode: async"
                ]
    return []


def _unstated_spares(scenario: Scenario, plan: CampaignPlan) -> list[str]:
    section = scenario.reliability
    if section is None or section.spares.hot is not None or plan.hot.size <= max(1, _MANY_SPARES * plan.machines):
        return []
    gpus = plan.hot.size * scenario.cluster.topology.gpus_per_node
    return [
        f"all {plan.hot.size:,} nodes ({gpus:,} GPUs) that the job leaves over stand by as hot spares and are paid for;"
        " say how many with reliability.spares"
    ]


def _bursts(scenario: Scenario, plan: CampaignPlan) -> list[str]:
    failures = () if scenario.reliability is None else scenario.reliability.all_failures
    found = []
    for failure in failures:
        if failure.burst is not None and failure.burst.probability and failure.burst.machines >= plan.machines:
            found.append(
                f"the burst of {failure.name!r} takes {failure.burst.machines:,} further machines, but the job has"
                f" {plan.machines:,}: it takes all of them"
            )
    return found
