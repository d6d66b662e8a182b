"""What a simulation leaves behind: immutable records, below every room.

The engine emits records and nothing else; every metric, table and plot is a function of records. A record
holds SI floats. Two clocks: an iteration's starts at 0 and lasts seconds, a campaign's lasts months.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import NamedTuple, Protocol

# What a rank's compute stream does at an instant: the keys of the breakdown, in print order. `waiting` is
# not among them: results/waterfall.py tells it apart into `imbalance` and `bubble` with the dry run.
BREAKDOWN_KEYS = (
    "ideal_compute",
    "recomputation",
    "kernel_inefficiency",
    "overlap_slowdown",
    "exposed_tp",
    "exposed_cp",
    "exposed_ep",
    "exposed_pp",
    "exposed_dp",
    "imbalance",
    "bubble",
    "optimizer",
    "host",
)

# Where a campaign's wall-clock goes, in print order. Saves that were cut short or never became durable are
# `checkpoint` too; swapping in spares and loading a checkpoint are `restart`. `degraded`: pauses by link flaps, and
# what kept steps took longer with replicas missing; `straggling`: longer for slow machines or links, and swaps;
# `slowdown`: longer for what every step of the job suffers (diurnal swing, garbage collection, imbalance);
# `rewind`: steps given up to a loss spike and going back.
CAMPAIGN_KEYS = (
    "productive",
    "lost_work",
    "checkpoint",
    "detection",
    "restart",
    "waiting",
    "degraded",
    "straggling",
    "slowdown",
    "evaluation",
    "planned",
    "data_stall",
    "rewind",
)
# Of these, what failures cost: the parts of the failure-induced MFU loss.
FAILURE_KEYS = ("lost_work", "detection", "restart", "waiting", "degraded")


class Span(NamedTuple):
    """A stretch of one rank class's stream.

    `parts` tells the span's seconds by state: `compute` (forward and backward kernels), `recomputation`,
    `overlap_slowdown`, `exposed_*`, `imbalance`, `waiting` (for the pipeline), `optimizer`, `host`; they add
    up to `end - start`.
    """

    rank: int
    stream: str
    name: str
    start: float
    end: float
    parts: tuple[tuple[str, float], ...]


class Transfer(NamedTuple):
    """One coflow from its start to its end; `size` is bytes on its busiest edge."""

    coflow: int
    name: str
    start: float
    end: float
    size: float


class Incident(NamedTuple):
    """Something that happened in a campaign, and what it cost.

    Attributes
    ----------
    time
        When it struck, on the wall-clock.
    kind
        Name of the failure class, slow source or stop.
    lost_work_s
        Work since the save that was gone back to.
    down_s
        Seconds without training: detection, waiting and restart together, until training runs again or the next
        failure strikes.
    detection_s, waiting_s, restart_s
        Its parts.
    machines
        Machines lost.
    tier
        Where the state came back from: a checkpoint tier's name, `replicas` (others held it), or "" (nothing loaded).
    step
        Steps kept when it was over.
    """

    time: float
    kind: str
    lost_work_s: float
    down_s: float
    detection_s: float = 0.0
    waiting_s: float = 0.0
    restart_s: float = 0.0
    machines: int = 0
    tier: str = ""
    step: int = 0


class Progress(NamedTuple):
    """A stretch of a campaign: from `start` to `end` the step count went from `first` to `last`, doing `key`.

    `key` is a fate of `CAMPAIGN_KEYS`; steps that were lost later belong to `lost_work` and are counted again.
    """

    start: float
    end: float
    first: float
    last: float
    key: str


class Named(Protocol):
    """What has a name: an action of a schedule."""

    @property
    def name(self) -> str:
        """Name of its span."""


class Repeated(NamedTuple):
    """Spans of a period of a steady state that lasts `times` periods of `period` seconds.

    The spans are those of the first period. Of span i, `places[i]` is the place of its action in the row of its rank,
    -1 if it belongs to none; in the next period it is that of the action `strides[rank]` places further on.
    """

    spans: tuple[Span, ...]
    places: tuple[int, ...]
    strides: tuple[int, ...]
    times: int
    period: float
    rows: Sequence[Sequence[Named]]

    def expand(self) -> Iterator[Span]:
        """All spans of all periods."""
        for turn in range(self.times):
            shift = turn * self.period
            for (rank, stream, name, start, end, parts), place in zip(self.spans, self.places, strict=True):
                named = name if place < 0 else self.rows[rank][place + turn * self.strides[rank]].name
                yield Span(rank, stream, named, start + shift, end + shift, parts)


@dataclass(frozen=True)
class StepResult:
    """One simulated training step.

    Attributes
    ----------
    step_time
        Seconds from the start of the step to the end of the last rank.
    rank_counts
        GPUs that each rank class stands for. [R]
    pieces
        Compute-stream spans in order of their end, periods of a steady state once.
    transfers
        Coflows in order of their end, where they were asked for.
    events, solves
        Counted work: simpy events processed and max-min problems solved.
    skipped
        Periods of steady states that were not simulated again.
    pipeline_ranks
        Pipeline rank of each rank class; empty where each stands for the one of its number. [R]
    """

    step_time: float
    rank_counts: tuple[int, ...]
    pieces: tuple[Span | Repeated, ...]
    transfers: tuple[Transfer, ...] = ()
    events: int = 0
    solves: int = 0
    skipped: int = 0
    pipeline_ranks: tuple[int, ...] = ()

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Compute-stream spans; per rank class they tile [0, step_time] without gaps."""
        expanded = (each.expand() if isinstance(each, Repeated) else (each,) for each in self.pieces)
        return tuple(chain.from_iterable(expanded))

    def counted_spans(self) -> Iterator[tuple[Span, int]]:
        """Every span that was simulated, and how many times it stands for."""
        for piece in self.pieces:
            if isinstance(piece, Repeated):
                for span in piece.spans:
                    yield span, piece.times
            else:
                yield piece, 1


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """A simulated training run; every second of `wall_clock` is in exactly one of `time_s`.

    Attributes
    ----------
    steps
        Steps kept.
    time_s
        Seconds by fate, keyed by `CAMPAIGN_KEYS`. `productive` is what the kept steps take on a healthy cluster.
    failures
        Count by class name, of the failures that struck.
    incidents, progress
        In time order, where they were asked for: one `Incident` per failure, swap and planned stop, and the stretches
        between. Down seconds and lost work of the incidents add up to those of `time_s`.
    by_cause
        `time_s` but for `productive`, by cause: a failure class, a slow source, `checkpoint`, `evaluation`, a pause,
        `elastic`, `diurnal`, `garbage_collection`, `step_factor`, `start`: {cause: {key: seconds}}.
    phases
        Seconds of wall-clock by phase, in order: those after the first step of a phase that was kept until the first
        of the next.
    saves
        Saves that became durable, by tier.
    recoveries
        Recoveries by where the state came from.
    machine_s
        Machine-seconds of owned machines out of service (`repair`), standing by (`idle`) and of borrowed ones
        (`borrowed`).
    draws
        Machines drawn by pool (`hot`, `warm`, `preempted`), times that `warm` was called on (`selections`), waits for a
        machine (`waits`), machines repaired by hand (`manual`), retired (`retired`).
    hours
        Productive seconds of each hour of wall-clock, for the sliding ETTR, where records were asked for.
    repairs
        From when to when each machine was out of service, in the shop or retired, where records were asked for.
    undiscovered
        Silent corruptions that struck kept steps and were never found: what the run ends with may be wrong.
    """

    wall_clock: float
    steps: int
    time_s: dict[str, float]
    failures: dict[str, int]
    incidents: tuple[Incident, ...] = field(default=())
    progress: tuple[Progress, ...] = field(default=())
    by_cause: dict[str, dict[str, float]] = field(default_factory=dict)
    phases: tuple[float, ...] = field(default=())
    saves: dict[str, int] = field(default_factory=dict)
    recoveries: dict[str, int] = field(default_factory=dict)
    machine_s: dict[str, float] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)
    hours: tuple[float, ...] = field(default=())
    repairs: tuple[tuple[float, float], ...] = field(default=())
    undiscovered: int = 0
