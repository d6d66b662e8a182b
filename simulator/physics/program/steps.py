"""The step program: everything that the engine needs to execute one training step, and nothing to decide.

Per rank class a list of `Task`s in schedule order. A task receives its input, runs a body and sends its output; a
body is a list of chains (kernels, and collectives of this rank class alone), shared collectives, launches and awaits.
Collectives are `Call`s: phases of coflows on the constraints that can bind.

A rank class stands for all ranks that cannot be told apart (`fold.py`); coflows carry the traffic of all groups of
their class on the links (`calls.py`).

Pinned by tests/physics/program/test_build.py and tests/engine/test_iteration.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from simulator.physics.collectives.groups import IntArray
from simulator.physics.schedules.tables import Table
from simulator.scenario.units import Bytes, Flop, Seconds


class Coflow(NamedTuple):
    """Traffic that shares links: `usage` of each constraint per byte/s of rate, `weight` connections to share it.

    `solo_rate` is the rate without contention; `cap` the most that its protocol moves.
    """

    name: str
    constraints: tuple[int, ...]
    usage: tuple[float, ...]
    weight: float
    cap: float
    solo_rate: float


class CallPhase(NamedTuple):
    """Coflows (index, bytes to move) that start together after `latency`."""

    latency: Seconds
    transfers: tuple[tuple[int, Bytes], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A collective or a message ready to run. Calls are compared by identity: all members hold the same object.

    Attributes
    ----------
    axis
        Whose time it is when exposed: tp, cp, ep, pp, dp, or `world` for the gradient norm.
    members
        Rank classes that have to arrive before it starts; of a message the sender and the receiver.
    phases
        Run one after another; a phase ends with the slowest of its transfers.
    seconds
        Its duration where nothing else is on its links.
    constraints
        Everything that its coflows use.
    across_stages
        Whether its members are on several pipeline ranks: waiting for them is waiting for the pipeline.
    """

    name: str
    axis: str
    members: tuple[int, ...]
    phases: tuple[CallPhase, ...]
    seconds: Seconds
    constraints: frozenset[int] = frozenset()
    across_stages: bool = False


class Segment(NamedTuple):
    """A stretch of a chain: `state` is the breakdown state it counts as.

    A kernel slows down beside communication. A segment with a `call` is a collective that has only this rank class as a
    member: it takes `seconds` (the call's) as long as nothing else is on its links.
    """

    seconds: Seconds
    state: str
    kernel: bool
    call: Call | None = None


class Chain(NamedTuple):
    """Segments that follow one another on the compute stream without waiting for another rank class.

    `seconds` and `parts` hold while no communication runs beside it and nothing else is on its `constraints`, the union
    of those of its calls.
    """

    segments: tuple[Segment, ...]
    seconds: Seconds
    parts: tuple[tuple[str, Seconds], ...]
    constraints: frozenset[int] = frozenset()


class Shared(NamedTuple):
    """A collective that the compute stream waits for and that other traffic can slow."""

    call: Call


class Start(NamedTuple):
    """Put a collective on the stream of its axis, beside compute."""

    tag: str
    call: Call


class Join(NamedTuple):
    """Wait for a started collective."""

    tag: str


Step: TypeAlias = Chain | Shared | Start | Join
Body: TypeAlias = tuple[Step, ...]


class Message(NamedTuple):
    """A point-to-point transfer between rank classes on two pipeline ranks.

    Both sides know it by its call and by `(kind, stage)` of the action that receives it, and number it by `microbatch`.
    """

    call: Call
    kind: str
    stage: int
    microbatch: int


class Task(NamedTuple):
    """One action of the schedule. Tasks of a rank class that do the same share one `body` object."""

    name: str
    receive: Message | None
    body: Body
    send: Message | None


@dataclass(frozen=True)
class StepProgram:
    """A training step, ready to execute.

    Attributes
    ----------
    rank_counts
        GPUs that each rank class stands for. [R]
    pipeline_ranks
        Pipeline rank of each rank class. [R]
    class_of_rank
        Rank class of every rank of the job. [W]
    prologue, tasks, epilogue
        Per rank class: before the first action, the actions, and from the last backward to the end of the step.
    capacity
        Capacity of every constraint that the coflows refer to, in the unit of their usage (here 1: usage is a share).
    blocking_p2p
        Whether a send or receive holds the compute stream until it is done.
    overlap_slowdown
        Time of a kernel beside a collective over its time alone.
    executed_flops
        Matmul FLOPs of the whole job, recomputation included.
    table, vpp
        The schedule by pipeline rank, for the dry run that tells bubble from imbalance.
    link_classes
        Classes of links that could bind; `capacity` has those of them that no other one implies.
    """

    rank_counts: tuple[int, ...]
    pipeline_ranks: tuple[int, ...]
    class_of_rank: IntArray
    prologue: tuple[Body, ...]
    tasks: tuple[tuple[Task, ...], ...]
    epilogue: tuple[Body, ...]
    coflows: tuple[Coflow, ...]
    capacity: tuple[float, ...]
    blocking_p2p: bool
    overlap_slowdown: float
    executed_flops: Flop
    table: Table
    vpp: int
    link_classes: int = 0
