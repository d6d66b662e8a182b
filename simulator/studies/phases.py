"""From a scenario to its campaign: the steps of all phases are simulated, and planned with what breaks.

A stretch of the run is a recipe with one batch size. Stretches that differ only in the batch are one recipe: of up to
16 batch sizes each is simulated; of more, 16 of them, evenly spread, and in between a step takes as long as its number
of microbatches says, linearly between its neighbours (a pipeline's step is linear in them but for its warm-up).

Pinned by tests/studies/test_phases.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from simulator.errors import ScenarioError
from simulator.physics.campaign.classes import Orbits, orbits, rank_classes
from simulator.physics.campaign.components import replica_units
from simulator.physics.campaign.plan import CampaignPlan, State
from simulator.physics.campaign.planning import PhaseWork, plan_campaign
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.collectives.groups import IntArray
from simulator.physics.flops import step_flops
from simulator.physics.program.build import build_program
from simulator.physics.program.placement import place
from simulator.results.metrics import job_peak
from simulator.scenario.scenario import Scenario
from simulator.scenario.units import Seconds
from simulator.studies.step_times import PhaseStep, SimulatedStepTimes, simulate_program

BATCH_SIZES = 16
"""Batch sizes of a recipe that are simulated."""

Progress: TypeAlias = Callable[[float], None]


class Simulated(NamedTuple):
    """A step that has been simulated: its seconds, and the class of every rank [W]."""

    seconds: Seconds
    rank_class: IntArray


@dataclass(frozen=True, eq=False)
class RunSteps:
    """The healthy steps of a run.

    Attributes
    ----------
    works
        Of every stretch, in order: steps, seconds, FLOPs.
    recipes
        Scenarios that differ in more than the batch; of each the last batch size.
    steps
        Recipe and seconds of every stretch.
    placed
        GPU and class of every rank, of every recipe.
    """

    works: tuple[PhaseWork, ...]
    recipes: tuple[Scenario, ...]
    steps: tuple[PhaseStep, ...]
    placed: tuple[tuple[IntArray, IntArray], ...]


def simulate_phases(
    scenario: Scenario,
    cluster: ClusterGraph,
    given: Simulated | None = None,
    progress: Progress | None = None,
) -> RunSteps:
    """Simulate what is different about the stretches of a run.

    Parameters
    ----------
    given
        The step of the scenario's own `training`, if it has been simulated already.
    progress
        Called with the fraction of the steps that are done.
    """
    stretches = scenario.phases
    families: dict[str, list[int]] = {}
    for number, (_, own) in enumerate(stretches):
        families.setdefault(_family(own), []).append(number)
    chosen = {family: _chosen([stretches[n][1] for n in numbers]) for family, numbers in families.items()}
    total, done = sum(map(len, chosen.values())), 0
    seconds = [0.0] * len(stretches)
    recipe_of = [0] * len(stretches)
    recipes, placed = [], []
    for recipe, (family, numbers) in enumerate(families.items()):
        known: dict[int, Seconds] = {}
        for own in chosen[family]:
            same = given is not None and _step_of(own) == _step_of(scenario)
            step = given if same and given is not None else _simulate(own, cluster)
            known[own.num_microbatches] = step.seconds
            done += 1
            if progress is not None:
                progress(done / total)
        recipes.append(own)
        placed.append((place(own, cluster), step.rank_class))
        counts = sorted(known)
        for number in numbers:
            count = stretches[number][1].num_microbatches
            seconds[number] = float(np.interp(count, counts, [known[each] for each in counts]))
            recipe_of[number] = recipe
    works = tuple(
        PhaseWork(name, own.steps or 0, time, step_flops(own.model, own.training), own)
        for (name, own), time in zip(stretches, seconds, strict=True)
    )
    steps = tuple(PhaseStep(recipe, time) for recipe, time in zip(recipe_of, seconds, strict=True))
    return RunSteps(works, tuple(recipes), steps, tuple(placed))


def _simulate(scenario: Scenario, cluster: ClusterGraph) -> Simulated:
    program = build_program(scenario, cluster)
    return Simulated(simulate_program(scenario, program).step_time, program.class_of_rank)


def _step_of(scenario: Scenario) -> str:
    """All that a step depends on, beside the cluster."""
    return _dumped(scenario, {"tokens": None, "phases": ()})


def _family(scenario: Scenario) -> str:
    """All that a step depends on, beside the cluster and the batch."""
    return _dumped(scenario, {"tokens": None, "phases": (), "global_batch_size": 1})


def _dumped(scenario: Scenario, but: dict[str, object]) -> str:
    training = scenario.training.model_copy(update=but)
    parts = (scenario.model, training, scenario.parallelism)
    return "".join(part.model_dump_json() for part in parts)


def _chosen(stretches: Sequence[Scenario]) -> list[Scenario]:
    """One for each number of microbatches, ascending; of more than `BATCH_SIZES` some, with the least and the most."""
    by_count = {own.num_microbatches: own for own in stretches}
    counts = sorted(by_count)
    if len(counts) > BATCH_SIZES:
        places = np.linspace(0, len(counts) - 1, BATCH_SIZES).round().astype(int).tolist()
        counts = [counts[place] for place in places]
    return [by_count[count] for count in counts]


# --- the campaign -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """A scenario whose healthy steps are known: plan it, and plan it again with another `reliability:`.

    Attributes
    ----------
    cluster
        Graph of its cluster.
    steps
        Its healthy steps.
    step_times
        Seconds of a step in any state; shared by all plans.
    """

    scenario: Scenario
    cluster: ClusterGraph
    steps: RunSteps
    step_times: SimulatedStepTimes
    _orbits: dict[str, Orbits] = field(default_factory=dict)

    def plan(self, scenario: Scenario | None = None, *, every: int | None = None) -> CampaignPlan:
        """Plan the run.

        Parameters
        ----------
        scenario
            The same but for `reliability` and the bandwidth of the storage; the scenario itself if left out.
        every
            Steps between saves to the storage, in place of the scenario's interval.
        """
        own = scenario or self.scenario
        if own.reliability is not None:
            for source in own.reliability.slow:
                self._find_orbits(source.kind)
            if own.reliability.recovery.policy == "elastic":
                self.step_times.replicas_per_unit = replica_units(own, self.cluster).replicas
        works = self.steps.works
        if scenario is not None:
            works = tuple(
                work._replace(
                    scenario=work.scenario.model_copy(
                        update={"reliability": scenario.reliability, "cluster": scenario.cluster}
                    )
                )
                for work in works
            )
        return plan_campaign(own, self.cluster, works, self._orbits, every=every)

    def _find_orbits(self, kind: str) -> None:
        if kind != "job" and kind not in self._orbits:
            classes = rank_classes(self.cluster, self.steps.placed)
            self._orbits[kind] = self.step_times.orbits[kind] = orbits(self.cluster, classes, kind)


def prepare_run(
    scenario: Scenario,
    cluster: ClusterGraph | None = None,
    given: Simulated | None = None,
    progress: Progress | None = None,
) -> PreparedRun | None:
    """Simulate the healthy steps of a run; None without `tokens`.

    Parameters
    ----------
    cluster
        Its graph, if there is one already.
    given
        The step of the scenario's own `training`, if it has been simulated already.
    progress
        Called with the fraction that is done.
    """
    if scenario.steps is None:
        return None
    graph = build_cluster(scenario.cluster, scenario.conditions) if cluster is None else cluster
    steps = simulate_phases(scenario, graph, given, progress)
    known: dict[tuple[int, int, State], Seconds] = {}
    known.update({(recipe, 0, ()): step.seconds for recipe, step in _last_of(steps).items()})
    steps = as_measured(steps, scenario)
    times = SimulatedStepTimes(steps.recipes, steps.steps, {}, known=known)
    return PreparedRun(scenario, graph, steps, times)


def as_measured(steps: RunSteps, scenario: Scenario) -> RunSteps:
    """The same at the pace of `reliability.step_time`, where that is stated.

    Raises
    ------
    ScenarioError
        No accelerator of this kind is so fast.
    """
    stated = None if scenario.reliability is None else scenario.reliability.step_time
    if stated is None:
        return steps
    longest = max(steps.works, key=lambda work: work.steps)
    factor = stated / longest.step_time
    works = tuple(work._replace(step_time=stated * (work.step_time / longest.step_time)) for work in steps.works)
    for work in works:
        mfu = work.flops / (job_peak(scenario) * work.step_time)
        if mfu > 1:
            raise ScenarioError(
                f"a step of {work.step_time:.6g} s (simulated: {work.step_time / factor:.6g} s) would be {mfu:.0%} of"
                f" the peak; state at least {stated * mfu:.6g} s",
                field="reliability.step_time",
            )
    paced = tuple(step._replace(seconds=work.step_time) for step, work in zip(steps.steps, works, strict=True))
    return replace(steps, works=works, steps=paced)


def _last_of(steps: RunSteps) -> dict[int, PhaseStep]:
    """The stretch that is each recipe exactly."""
    found = {}
    for work, step in zip(steps.works, steps.steps, strict=True):
        if work.scenario.num_microbatches == steps.recipes[step.recipe].num_microbatches:
            found[step.recipe] = step
    return found
