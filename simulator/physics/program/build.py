"""Scenario + cluster → StepProgram.

Bodies are written once to learn which collectives they need, so that all traffic can be laid on the links together and
folded (`fold`), and then compiled for each class of ranks (`compiling`).

Pinned by tests/physics/program/test_build.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from simulator.physics.cluster import ClusterGraph
from simulator.physics.collectives.algorithms import BASE, NETWORK_HOP, NVLINK_HOP
from simulator.physics.collectives.exchanges import crossing_share
from simulator.physics.collectives.groups import IntArray
from simulator.physics.layers.rank import Rank
from simulator.physics.program.assembly import Assembly
from simulator.physics.program.bodies import Bodies
from simulator.physics.program.calls import Calls
from simulator.physics.program.compiling import Compiler, RankClass
from simulator.physics.program.fold import fold
from simulator.physics.program.layout import Layout, Need
from simulator.physics.program.pace import pace_of, with_kernels
from simulator.physics.program.placement import place
from simulator.physics.program.profile import action_times, kept_share
from simulator.physics.program.steps import Call, CallPhase, StepProgram
from simulator.physics.schedules.tables import AUTOMATIC, Table, build_table
from simulator.physics.schedules.zero_bubble import EQUAL, KEPT
from simulator.physics.stages import cut_by
from simulator.scenario.scenario import Scenario


def rank_of(scenario: Scenario) -> Rank:
    """What one rank sees of the scenario."""
    stack = scenario.stack
    fused_loss = (scenario.training.cross_entropy or stack.cross_entropy) == "fused"
    return Rank(
        scenario.model, scenario.parallelism, scenario.training, with_kernels(scenario.accelerator, stack),
        aligned_batches=stack.aligned_batches, fp8_gathers=stack.fp8_gathers, fused_loss=fused_loss, host=scenario.host,
    )  # fmt: skip


def schedule_table(scenario: Scenario) -> Table:
    """The pipeline schedule."""
    schedule, pp = scenario.training.schedule, scenario.parallelism.pp or 1
    times, kept = EQUAL, KEPT
    if schedule.kind in AUTOMATIC:
        stages, own = cut_by(scenario.model, schedule, pp), rank_of(scenario)
        middle = stages[len(stages) // 2]
        times, kept = action_times(Bodies(own, stages, scenario.stack), middle), kept_share(own, middle)
    return build_table(
        schedule.kind, pp=pp, num_microbatches=scenario.num_microbatches, vpp=schedule.vpp, times=times, kept=kept
    )


def build_program(scenario: Scenario, cluster: ClusterGraph, *, folded: bool = True) -> StepProgram:
    """Everything that the engine needs for one step.

    Parameters
    ----------
    folded
        Whether equal ranks are simulated once; the result is the same.

    Raises
    ------
    LayoutError, ScheduleError, TopologyError
        The split, the schedule or the cluster is impossible.
    """
    job = _Job(scenario, cluster)
    structure = fold(job.layout, job.programs, exact=folded)
    calls = Calls(job.layout, structure)
    count = int(structure.rank_class.max()) + 1
    gradient_norm = _gradient_norm(cluster, job.gpu_of_rank, count, job.pp)
    classes = [job.rank_class(number, structure.rank_class) for number in range(count)]
    pace = pace_of(scenario)
    compilers = [Compiler(own, job.assembly(own.rank), calls, gradient_norm, pace) for own in classes]
    prologue = tuple(compiler.prologue() for compiler in compilers)
    tasks = tuple(tuple(compiler.tasks()) for compiler in compilers)
    epilogue = tuple(compiler.epilogue() for compiler in compilers)
    flops = sum(own.count * job.assembly(own.rank).flops(own.pipeline_rank) for own in classes)
    return StepProgram(
        rank_counts=tuple(own.count for own in classes),
        pipeline_ranks=tuple(own.pipeline_rank for own in classes),
        class_of_rank=structure.rank_class,
        prologue=prologue,
        tasks=tasks,
        epilogue=epilogue,
        coflows=tuple(calls.coflows),
        capacity=calls.capacity,
        blocking_p2p=job.blocking_p2p,
        overlap_slowdown=scenario.stack.overlap_slowdown,
        executed_flops=flops,
        table=job.table,
        vpp=scenario.training.schedule.chunks,
        link_classes=structure.link_classes,
    )


class _Job:
    """Ranks on their GPUs, and what each has to do."""

    def __init__(self, scenario: Scenario, cluster: ClusterGraph) -> None:
        self.scenario, self.cluster = scenario, cluster
        self.pp = scenario.parallelism.pp or 1
        self.table = schedule_table(scenario)
        self.stages = cut_by(scenario.model, scenario.training.schedule, self.pp)
        self.gpu_of_rank = place(scenario, cluster)
        self._assemblies: dict[tuple[int, int], Assembly] = {}

    @property
    def blocking_p2p(self) -> bool:
        """Whether a send or receive holds the compute stream until it is done."""
        return self.scenario.stack.blocking_p2p and self.scenario.training.schedule.kind in ("gpipe", "1f1b")

    @cached_property
    def layout(self) -> Layout:
        """Groups, plans and traffic."""
        ranks = np.unique(self.variants, axis=0, return_index=True)[1].tolist()
        needs: dict[Need, None] = {}
        beside = set() if self.blocking_p2p else {"pp"}
        for rank in ranks:
            needs.update(dict.fromkeys(self.assembly(rank).needs()))
            beside |= self.assembly(rank).beside()
        scenario = self.scenario
        named = scenario.training.collectives.model_dump(exclude_none=True)
        loads = rank_of(scenario).expert_loads
        moe = scenario.model.moe
        crossing = None if moe is None else partial(_crossing, moe.top_k, moe.node_limit)
        return Layout(
            self.cluster, scenario.parallelism, self.gpu_of_rank, needs, named, loads, beside, crossing,
            scenario.stack.dispatcher,
        )  # fmt: skip

    @cached_property
    def pipeline_rank(self) -> IntArray:
        """[W]."""
        return self.scenario.parallelism.index("pp")

    @cached_property
    def variants(self) -> IntArray:
        """Coordinates on which a rank's load depends: cp where causal work is uneven, ep where experts are. [W, 2].

        Of ep coordinates with equal loads the first stands for all.
        """
        split, whole = self.scenario.parallelism, rank_of(self.scenario)
        nothing = np.zeros(split.world_size, dtype=np.int64)
        context = split.index("cp") if whole.context_is_uneven else nothing
        expert = nothing
        if whole.expert_loads is not None:
            _, first, load = np.unique(whole.expert_loads, return_index=True, return_inverse=True)
            expert = first[load][split.index("ep")]
        return np.stack([context, expert], axis=1)

    @cached_property
    def programs(self) -> IntArray:
        """Ranks with equal numbers do the same at the same speed; they rise with the pipeline rank [W]."""
        speed = np.unique(self.cluster.speed[self.gpu_of_rank], return_inverse=True)[1]
        kinds = np.column_stack([self.pipeline_rank, self.variants, speed])
        return np.unique(kinds, axis=0, return_inverse=True)[1].reshape(-1)

    def assembly(self, rank: int) -> Assembly:
        """What a rank has to do."""
        context, expert = self.variants[rank].tolist()
        if (context, expert) not in self._assemblies:
            own = replace(rank_of(self.scenario), context_index=context, expert_index=expert)
            bodies = Bodies(own, self.stages, self.scenario.stack)
            self._assemblies[context, expert] = Assembly(bodies, self.table, self.stages, self.pp)
        return self._assemblies[context, expert]

    def rank_class(self, number: int, classes: IntArray) -> RankClass:
        """One class of ranks."""
        members = np.flatnonzero(classes == number)
        first = int(members[0])
        speed = float(self.cluster.speed[self.gpu_of_rank[first]])
        return RankClass(number, first, len(members), int(self.pipeline_rank[first]), speed)


def _crossing(top_k: int, limit: int | None, domains: int) -> float:
    return crossing_share(top_k, domains, limit)


def _gradient_norm(cluster: ClusterGraph, gpu_of_rank: IntArray, classes: int, pp: int) -> Call:
    """An 8-byte all-reduce over all ranks: latency of a tree over the domains, in the protocol for small sizes.

    Source: NVIDIA/nccl, src/graph/tuning.cc, tree latency.
    """
    key, ranks = ("tree", "ll"), len(gpu_of_rank)
    domains = len(np.unique(cluster.domain[gpu_of_rank]))
    local = max(1, ranks // domains)
    latency = 0.0
    if ranks > 1:
        depth = int(np.log2(domains))
        latency = BASE[key] + 2 * ((local - 1) * NVLINK_HOP[key] + depth * NETWORK_HOP[key])
    members = tuple(range(classes))
    return Call("gradient_norm", "world", members, (CallPhase(latency, ()),), latency, across_stages=pp > 1)
