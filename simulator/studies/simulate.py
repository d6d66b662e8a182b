"""One scenario from beginning to end: cluster, step, memory, campaign, figures.

Pinned by tests/studies/test_simulate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from simulator import __version__
from simulator.engine.campaign import simulate_campaign
from simulator.errors import CapacityError, LayoutError
from simulator.physics.campaign.plan import CampaignPlan
from simulator.physics.campaign.planning import job_spares
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.memory import StageMemory, check_capacity, job_memory
from simulator.physics.program.build import build_program, rank_of, schedule_table
from simulator.physics.program.steps import StepProgram
from simulator.physics.stages import cut_by
from simulator.records import CampaignResult, StepResult
from simulator.results.campaign import campaign_figures, fleet_of
from simulator.results.metrics import step_figures
from simulator.scenario.expected import Expected, agrees
from simulator.scenario.pipeline import stage_layers
from simulator.scenario.scenario import Scenario
from simulator.studies.optimal_interval import at_interval, optimal_interval
from simulator.studies.phases import PreparedRun, Simulated, prepare_run
from simulator.studies.run_warnings import run_warnings
from simulator.studies.step_times import simulate_program
from simulator.studies.uncertainty import uncertainty

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Simulation:
    """A scenario with its records and figures.

    Attributes
    ----------
    step_figures, campaign_figures
        As in the JSON output; no campaign without `tokens`.
    plan, run
        What the campaign executed, and the step times that it asked for.
    warnings
        What the user should know before trusting the figures.
    """

    scenario: Scenario
    program: StepProgram
    step: StepResult
    memory: tuple[StageMemory, ...]
    campaign: CampaignResult | None
    step_figures: dict[str, Any]
    campaign_figures: dict[str, Any] | None
    warnings: tuple[str, ...]
    plan: CampaignPlan | None = None
    run: PreparedRun | None = None

    def figures(self) -> dict[str, Any]:
        """Everything that can be printed or compared: the object that `--json` prints."""
        result: dict[str, Any] = {"step": self.step_figures, "memory": self.memory_figures()}
        if self.campaign_figures is not None:
            result["campaign"] = self.campaign_figures
        result["expected"] = self.expected_figures()
        result["warnings"] = list(self.warnings)
        result["scenario"] = self.scenario.resolved()
        result["version"] = __version__
        result["seed"] = self.scenario.seed
        return result

    def memory_figures(self) -> dict[str, Any]:
        """Bytes per GPU of every pipeline stage, by part, against capacity."""
        stages = [{"stage": s.rank, "total_bytes": s.total, "parts_bytes": dict(s.parts)} for s in self.memory]
        return {"capacity_bytes": self.scenario.accelerator.memory, "stages": stages}

    def expected_figures(self) -> list[dict[str, Any]]:
        """Published figures beside simulated ones."""
        found = {
            **self.step_figures,
            **(self.campaign_figures or {}),
            "memory_bytes": max(stage.total for stage in self.memory),
            "total_parameters": self.scenario.model.total_parameters,
            "active_parameters": self.scenario.model.active_parameters,
        }
        return [_beside(name, entry, found.get(name)) for name, entry in self.scenario.expected.items()]


def _beside(name: str, entry: Expected, simulated: float | None) -> dict[str, Any]:
    if entry.value is not None:
        published: Any = entry.value
    else:
        published = entry.model_dump(exclude_none=True, include={"between", "at_least", "at_most"})
        published = list(published["between"]) if "between" in published else published
    error = None
    if simulated is not None and entry.value:
        error = simulated / entry.value - 1
    return {
        "name": name,
        "simulated": simulated,
        "published": published,
        "agrees": None if simulated is None else agrees(entry, simulated),
        "error": error,
        "source": entry.source,
        "note": entry.note,
    }


def plan_memory(scenario: Scenario) -> tuple[StageMemory, ...]:
    """Bytes per GPU of every pipeline stage."""
    schedule = scenario.training.schedule
    stages = cut_by(scenario.model, schedule, scenario.parallelism.pp or 1)
    return job_memory(rank_of(scenario), stages, schedule_table(scenario))


def fit_or_refuse(scenario: Scenario, memory: tuple[StageMemory, ...]) -> list[str]:
    """Refuse a model that does not fit, or warn where the scenario says so.

    Raises
    ------
    CapacityError
        Needed, available and the three largest parts.
    """
    problem = check_capacity(scenario.accelerator, memory, scenario.host)
    if problem is None:
        return []
    if scenario.memory.enforce:
        raise CapacityError(
            f"{problem}; raise tp, pp, ep or zero_stage, ask for recomputation, or write memory: {{enforce: false}}"
        )
    return [problem]


def recipe_warnings(scenario: Scenario) -> list[str]:
    """What is allowed but rarely meant."""
    found = []
    optimizer, pp = scenario.training.optimizer, scenario.parallelism.pp or 1
    if optimizer.zero_stage >= 2 and pp > 1 and not (optimizer.zero_stage == 2 and optimizer.no_sync):
        found.append(
            f"zero_stage {optimizer.zero_stage} with pp {pp} communicates in every microbatch; "
            "Megatron and DeepSpeed pair pipelines with stage 1"
        )
    layers, schedule = scenario.model.num_layers, scenario.training.schedule
    sizes = stage_layers(schedule, layers, pp)
    if not schedule.says_layers and len(set(sizes)) > 1:
        found.append(
            f"{layers} layers do not divide into {len(sizes)} stages: the first {sizes.count(sizes[0])} have {sizes[0]}"
            f" and the others {sizes[-1]}; training.schedule says otherwise (layers, first_stage_layers,"
            " last_stage_layers, embedding_and_loss_as_layers)"
        )
    modules = set(scenario.training.recompute_modules) - {"core_attn"}
    if scenario.training.recompute == "selective" and scenario.training.attention == "flash" and not modules:
        found.append("recompute: selective has nothing to drop: flash attention keeps no scores")
    idle = scenario.cluster.gpus - scenario.gpus - spare_gpus(scenario)
    if idle > 0:
        spare = f"{spare_gpus(scenario):,} are spares, " if spare_gpus(scenario) else ""
        found.append(f"the job uses {scenario.gpus:,} of {scenario.cluster.gpus:,} GPUs; {spare}{idle:,} stay idle")
    gemm = scenario.accelerator.kernels.gemm
    if all(model.fit is None for model in gemm.values()):
        found.append(f"kernel times of {scenario.accelerator.name} are a prior, not a fit to measurements")
    return found


def choose_plan(run: PreparedRun, progress: Callable[[float], None] | None = None) -> CampaignPlan:
    """Plan a run; the interval between saves is found by simulation where the scenario says `simulated`."""
    plan = run.plan()
    section = run.scenario.reliability
    if section is None or section.checkpoint.interval.rule != "simulated":
        return plan
    best = optimal_interval(plan, run.step_times, run.scenario.seed, progress=progress)
    return at_interval(plan, best.steps)


def job_nodes(scenario: Scenario) -> int:
    """Nodes that the job needs; the last may be used in part."""
    return -(-scenario.gpus // scenario.cluster.topology.gpus_per_node)


def spare_gpus(scenario: Scenario) -> int:
    """GPUs of the nodes that stand by; none where nothing fails or no run is simulated."""
    return 0 if scenario.steps is None else sum(job_spares(scenario)) * scenario.cluster.topology.gpus_per_node


MAX_STEPS = 20_000_000
"""Chains, collectives and messages of a step. Assumption: a minute; 1,024 ranks of the 175B step have 16.5 million
without folding, the folded GPT-4 step some ten thousand."""
MAX_UNFOLDED = 1_000_000
"""Forward and backward passes of a step without folding. Assumption: a minute or two, and some gigabytes."""


class Shortcuts(NamedTuple):
    """Exact reductions of work, each of which can be switched off to see that it changes nothing.

    Attributes
    ----------
    fold
        Simulate equal ranks once.
    fuse
        Run kernels and collectives that nothing disturbs in one go.
    skip
        Jump over the repeating middle of the schedule.
    """

    fold: bool = True
    fuse: bool = True
    skip: bool = True


ALL_SHORTCUTS = Shortcuts()


def _refuse_crowd(scenario: Scenario, shortcuts: Shortcuts) -> None:
    """Refuse to simulate every rank of a large job.

    Raises
    ------
    LayoutError
        Says how many actions there would be.
    """
    actions = scenario.gpus * 2 * scenario.num_microbatches * scenario.training.schedule.chunks
    if not shortcuts.fold and actions > MAX_UNFOLDED:
        raise LayoutError(
            f"without folding {scenario.gpus:,} ranks run {actions:,} forward and backward passes; at most"
            f" {MAX_UNFOLDED:,} are simulated; leave --no-fold out, or use fewer GPUs or microbatches"
        )


def _refuse_endless(program: StepProgram) -> None:
    """Refuse a step that would be simulated for minutes.

    Raises
    ------
    LayoutError
        Says how many pieces the step has and how to have fewer.
    """
    steps = sum(1 + len(task.body) for tasks in program.tasks for task in tasks)
    if steps > MAX_STEPS:
        raise LayoutError(
            f"the step has {steps:,} kernels, collectives and messages; at most {MAX_STEPS:,} are simulated;"
            " use fewer microbatches (a smaller global_batch_size, a larger dp or micro_batch_size)"
        )


def build(scenario: Scenario) -> ClusterGraph:
    """Graph of the scenario's cluster."""
    return build_cluster(scenario.cluster, scenario.conditions)


def simulate(scenario: Scenario, progress: Progress | None = None, shortcuts: Shortcuts = ALL_SHORTCUTS) -> Simulation:
    """Simulate one step and, where `tokens` says how long the run is, the campaign.

    Parameters
    ----------
    progress
        Called with what is being done and the fraction of it that is done.
    shortcuts
        Which exact reductions to use.

    Raises
    ------
    CapacityError
        The model does not fit and `memory: {enforce: false}` is not said.
    SimulatorError
        Everything else that is wrong with the scenario.
    """
    tell = progress or (lambda _what, _fraction: None)
    memory = plan_memory(scenario)
    notes = [*fit_or_refuse(scenario, memory), *recipe_warnings(scenario)]
    _refuse_crowd(scenario, shortcuts)
    tell("cluster", 0.0)
    cluster = build(scenario)
    tell("program", 0.0)
    program = build_program(scenario, cluster, folded=shortcuts.fold)
    _refuse_endless(program)
    tell("step", 0.0)
    step = simulate_program(scenario, program, fuse=shortcuts.fuse, skip=shortcuts.skip)
    given = Simulated(step.step_time, program.class_of_rank) if shortcuts.fold else None
    run = prepare_run(scenario, cluster, given, lambda fraction: tell("step", fraction))
    campaign = campaign_numbers = plan = None
    if run is not None:
        plan = choose_plan(run, lambda fraction: tell("interval", fraction))
        campaign = simulate_campaign(
            plan,
            scenario.seed,
            step_times=run.step_times,
            keep_records=True,  # for what the figures say hour by hour
            progress=lambda fraction: tell("campaign", fraction),
        )
        campaign_numbers = campaign_figures(fleet_of(scenario, plan), plan, campaign)
        notes += run_warnings(scenario, plan, campaign_numbers)
    trust, doubts = uncertainty(scenario)
    return Simulation(
        scenario,
        program,
        step,
        memory,
        campaign,
        {**step_figures(scenario, program, step), "uncertainty": trust},
        campaign_numbers,
        (*notes, *doubts),
        plan,
        run,
    )
