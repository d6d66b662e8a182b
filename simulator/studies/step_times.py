"""Seconds of a step for every state of the cluster: simulated once for each kind of state, and remembered.

The campaign names a state by what is degraded: (kind, class, severity in per cent), see `physics.campaign.plan`. Here
the step of the phase is simulated, folded, with the same `conditions` that a scenario can have, on members of those
classes. States of one or two components are simulated. Of more, two stand for the state: the slowest of the class that
is slowest alone, and of the class that comes next, interpolated between severities in steps of 5 %. Missing replicas
are the same job with dp reduced and the same global batch, its microbatches rounded up; where the split allows no such
dp, dp stays and only the microbatches grow. A slow job (`job`) takes its per cent longer.

A batch ramp has more batch sizes than are worth simulating: phases of one recipe have the slowdowns of that recipe.

Limits: two slow components are taken from the first two places of their classes; a third costs nothing. Of eight draws
of 3 to 6 slow nodes among the 128 of the 175B step on 1,024 A100, all simulated, the worst was 0.03 % off.

Pinned by tests/studies/test_step_times.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simulator.engine.iteration import simulate_step
from simulator.errors import LayoutError
from simulator.physics.campaign.classes import Member, Orbits
from simulator.physics.campaign.plan import Component, State
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.program.build import build_program
from simulator.physics.program.placement import place
from simulator.physics.program.steps import StepProgram
from simulator.records import StepResult
from simulator.results.own_time import own_time
from simulator.scenario.conditions import Condition, SlowGpu, SlowNode
from simulator.scenario.scenario import Scenario, fit
from simulator.scenario.units import Seconds

SIMULATED = 2
"""Degraded components of a state that is simulated; of more, the slowest stand for it."""
ANCHOR = 5
"""Steps of severity, in per cent, at which states of many components are simulated; the rest is interpolated."""


class PhaseStep(NamedTuple):
    """The healthy step of a phase: the recipe (by its number) that it is, or nearly is, and its seconds."""

    recipe: int
    seconds: Seconds


class SimulatedStepTimes:
    """A `StepTimes`: call it with the number of a phase and a state.

    Parameters
    ----------
    recipes
        Scenarios whose steps differ, conditions of the whole run included.
    phases
        Recipe and healthy seconds of every phase of the plan.
    orbits
        Classes of components, by kind.
    replicas_per_unit
        Data-parallel replicas that a missing unit takes along.
    known
        Steps simulated before: seconds by (recipe, missing units, components).

    Attributes
    ----------
    known
        All steps simulated so far. Give it to another process, or pickle this: it is kept, the graph is not.
    simulated, seconds
        Steps simulated here, and what they took: the cold cost.
    """

    def __init__(
        self,
        recipes: Sequence[Scenario],
        phases: Sequence[PhaseStep],
        orbits: Mapping[str, Orbits],
        *,
        replicas_per_unit: int = 1,
        known: Mapping[tuple[int, int, State], Seconds] | None = None,
    ) -> None:
        self.recipes, self.phases, self.orbits = tuple(recipes), tuple(phases), dict(orbits)
        self.replicas_per_unit = replicas_per_unit
        self.known: dict[tuple[int, int, State], Seconds] = dict(known or {})
        self.simulated, self.seconds = 0, 0.0
        self._graph: ClusterGraph | None = None
        self._answers: dict[tuple[int, State], Seconds] = {}

    def __call__(self, phase: int, state: State) -> Seconds:
        """Seconds of a step of a phase in a state; never less than healthy."""
        found = self._answers.get((phase, state))
        if found is None:
            recipe, healthy = self.phases[phase]
            found = self._answers[phase, state] = healthy * self.slowdown(recipe, state)
        return found

    def slowdown(self, recipe: int, state: State) -> float:
        """Time of a step over that of a healthy one; at least 1."""
        factor, missing, slow = 1.0, 0, []
        for component in state:
            kind, _, severity = component
            if kind == "job":
                factor *= 1 + severity / 100
            elif kind == "missing_replicas":
                missing += severity
            else:
                slow.append(component)
        if not missing and not slow:
            return factor
        healthy = self._time(recipe, 0, ())
        if len(slow) > SIMULATED:
            return factor * max(1.0, self._of_many(recipe, missing, slow) / healthy)
        return factor * max(1.0, self._time(recipe, missing, tuple(sorted(slow))) / healthy)

    def _of_many(self, recipe: int, missing: int, slow: list[Component]) -> Seconds:
        """A state of many components: as the slowest of the class that is slowest alone, and of the next one.

        Two of a class are in different replicas, which wait for the slower of them. What the second adds to the first
        is found at severities in steps of `ANCHOR`, so that the states to simulate stay few.
        """
        worst: dict[tuple[str, int], int] = {}
        for kind, number, severity in slow:
            worst[kind, number] = max(severity, worst.get((kind, number), 0))
        found = [(kind, number, severity) for (kind, number), severity in worst.items()]
        found.sort(key=lambda one: (-self._alone(recipe, one), one))
        near = [
            (kind, number, min(95, max(1, round(lost / ANCHOR)) * ANCHOR)) for kind, number, lost in found[:SIMULATED]
        ]
        together = self._time(recipe, missing, tuple(sorted(near)))
        return together * self._alone(recipe, found[0]) / max(self._alone(recipe, one) for one in near)

    def _alone(self, recipe: int, component: Component) -> float:
        """About how slow a component is alone: between steps of `ANCHOR` per cent linear in the time it takes."""
        kind, number, severity = component
        below = min(95, severity // ANCHOR * ANCHOR)
        if severity == below or (recipe, 0, (component,)) in self.known:
            return self._time(recipe, 0, (component,))
        above = min(99, below + ANCHOR)
        ends = [self._time(recipe, 0, ((kind, number, end),) if end else ()) for end in (below, above)]
        takes = [1 / (1 - per_cent / 100) for per_cent in (below, severity, above)]
        return ends[0] + (ends[1] - ends[0]) * (takes[1] - takes[0]) / (takes[2] - takes[0])

    def warm(self, states: Iterable[tuple[int, State]], progress: Callable[[float], None] | None = None) -> None:
        """Simulate what some (phase, state) need, ahead of time."""
        wanted = list(states)
        for done, (phase, state) in enumerate(wanted):
            self(phase, state)
            if progress is not None:
                progress((done + 1) / len(wanted))

    def _time(self, recipe: int, missing: int, slow: State) -> Seconds:
        key = (recipe, missing, slow)
        if key not in self.known:
            began = time.perf_counter()
            self.known[key] = self._simulate(self.recipes[recipe], missing * self.replicas_per_unit, slow)
            self.simulated += 1
            self.seconds += time.perf_counter() - began
        return self.known[key]

    def _simulate(self, scenario: Scenario, missing: int, slow: State) -> Seconds:
        job = without_replicas(scenario, missing)
        conditions = tuple(self._condition(scenario, job, which, one) for which, one in enumerate(slow))
        cluster = disturbed(scenario, self._cluster(), conditions)
        return simulate_program(job, build_program(job, cluster)).step_time

    def _condition(self, scenario: Scenario, job: Scenario, which: int, component: Component) -> Condition:
        kind, number, severity = component
        own = self.orbits[kind]
        member = own.member(number, which)
        if job is not scenario:
            member = _moved(scenario, job, self._cluster(), kind, member)
        return own.condition(member, severity)

    def _cluster(self) -> ClusterGraph:
        if self._graph is None:
            scenario = self.recipes[0]
            self._graph = build_cluster(scenario.cluster, scenario.conditions)
        return self._graph

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the graph."""
        return {**self.__dict__, "_graph": None}


def disturbed(scenario: Scenario, cluster: ClusterGraph, conditions: Sequence[Condition]) -> ClusterGraph:
    """The scenario's cluster with more conditions; slow GPUs leave the graph as it is."""
    if not all(isinstance(condition, SlowGpu | SlowNode) for condition in conditions):
        return build_cluster(scenario.cluster, (*scenario.conditions, *conditions))
    speed = cluster.speed.copy()
    for condition in conditions:
        if isinstance(condition, SlowGpu):
            speed[condition.gpu] *= condition.speed
        elif isinstance(condition, SlowNode):
            speed[cluster.node_of == condition.node] *= condition.speed
    slower = dataclasses.replace(cluster, speed=speed)
    # What has been found out about the links does not depend on speeds.
    slower.__dict__.update({name: found for name, found in cluster.__dict__.items() if name not in slower.__dict__})
    return slower


def simulate_program(scenario: Scenario, program: StepProgram, *, fuse: bool = True, skip: bool = True) -> StepResult:
    """One step, as long as it takes when the next one follows it."""
    step = simulate_step(program, fuse=fuse, skip=skip)
    return step if scenario.training.schedule.synchronous else own_time(step)


def without_replicas(scenario: Scenario, missing: int) -> Scenario:
    """The same job with fewer data-parallel replicas and the same global batch, its microbatches rounded up.

    Raises
    ------
    LayoutError
        None is left.
    """
    if not missing:
        return scenario
    split, training = scenario.parallelism, scenario.training
    left = split.dp - missing
    if left < 1:
        raise LayoutError(f"{missing} of dp {split.dp} replicas missing leave none to train with")
    per_pipeline = -(-training.global_batch_size // (left * training.micro_batch_size))
    whole = -(-per_pipeline // (split.pp or 1)) * (split.pp or 1)  # as interleaved schedules want it
    for dp in (left, split.dp):
        for count in (per_pipeline, whole):
            try:
                return fit(
                    scenario.model_copy(
                        update={
                            "job_gpus": None,
                            "parallelism": split.model_copy(update={"dp": dp}),
                            "training": training.model_copy(
                                update={"global_batch_size": count * dp * training.micro_batch_size}
                            ),
                        }
                    )
                )
            except LayoutError as error:
                reason = error
    raise reason


def _moved(scenario: Scenario, job: Scenario, cluster: ClusterGraph, kind: str, member: Member) -> Member:
    """The component of the smaller job that has the same place in its replica."""
    if kind == "degraded_link":
        return member
    gpu_of_rank = place(scenario, cluster)
    if kind == "slow_gpu":
        here = gpu_of_rank == member[0]
    else:
        here = cluster.node_of[gpu_of_rank] == member[0]
        if kind == "slow_nic":
            here &= cluster.rail[gpu_of_rank] == member[1]
    position = scenario.parallelism.coordinates(int(np.flatnonzero(here)[0]))
    position["dp"] = min(position["dp"], job.parallelism.dp - 1)
    gpu = int(place(job, cluster)[job.parallelism.rank(position)])
    if kind == "slow_gpu":
        return (gpu,)
    node = int(cluster.node_of[gpu])
    return (node,) if kind == "slow_node" else (node, int(cluster.rail[gpu]))
