"""What a long run is made of, as the campaign executes it: phases, what breaks, saves, machines, recovery.

A plan is plain numbers in seconds, counts and shares of the *job*: rates are of all its components together, and what
the scenario says of hardware has already been looked up on the cluster graph (physics/campaign/planning.py). The
engine decides nothing that is not in here.

Pinned by tests/physics/campaign/test_planning.py and tests/engine/campaign/.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from simulator.scenario.units import Flop, Seconds, Tokens

ALL_MACHINES = 1 << 30
"""More machines than any job has: what a save on the shared storage survives the loss of."""


class Duration(NamedTuple):
    """A time that is drawn anew each time: lognormal with this median and sigma of its logarithm; constant at 0."""

    median: Seconds
    sigma: float = 0.0

    @property
    def mean(self) -> Seconds:
        """Median times e^(sigma²/2)."""
        return self.median * math.exp(self.sigma**2 / 2)


ZERO = Duration(0.0)


class Window(NamedTuple):
    """From `start` to `end` (seconds of wall-clock) a rate is `factor` times itself; windows multiply."""

    start: Seconds
    end: Seconds
    factor: float


class BurnIn(NamedTuple):
    """A rate starts (1 + excess) times itself and its excess decays by e every `decay` seconds."""

    excess: float
    decay: Seconds


class Hazard(NamedTuple):
    """When something happens to the job.

    Attributes
    ----------
    kind
        `poisson`: at `rate` events per second in the mean, modulated by `windows` and `burn_in`. `renewal`: gaps of the
        whole job, Weibull of `shape` or lognormal of `sigma`, with mean 1/`rate`. `batch`: `units` parts of one
        hardware batch, cumulative hazard units·(t/scale)^shape at the parts' calendar age t = age + wall-clock.
        `times`: exactly at `times`, ascending (injected, for tests and replays).
    """

    kind: Literal["poisson", "renewal", "batch", "times"]
    rate: float = 0.0
    shape: float | None = None
    sigma: float | None = None
    units: int = 0
    scale: Seconds = 0.0
    age: Seconds = 0.0
    windows: tuple[Window, ...] = ()
    burn_in: BurnIn | None = None
    times: tuple[Seconds, ...] = ()


class JobFailure(NamedTuple):
    """A failure class as the job sees it.

    Attributes
    ----------
    effect
        `crash` and `hang` stop the job at once (they differ in detection). `silent` corrupts state: training goes on
        until it is found `detection` later, and only saves that began before it struck are good. `pause` holds the job
        up for `detection` (a link flap), nothing is lost. `rewind` (a loss spike) goes back to the newest save that is
        at least `rewind` steps old.
    detection, diagnosis
        Until the job is known to be dead, and until the machine is named.
    wrong_diagnosis
        Probability that another machine is named: it is drained, and the same failure strikes again when training
        resumes.
    machine_share
        Probability that machines are lost; else the job restarts where it is.
    machines
        How many of the job's machines it takes, if any: (count, probability), adding up to 1.
    burst
        (probability, further machines): with it, a failure takes more machines with it.
    repair
        Until a lost machine serves again; None: through the shop.
    restart
        In place of the plan's `restart`, where given.
    lemon_share
        Part of this class' rate that is the extra of lemons: it comes from bad machines only, in proportion to those in
        the job now over those at the start (0: independent of lemons).
    skip
        Steps whose data each one leaves out; only counted.
    """

    name: str
    hazard: Hazard
    effect: Literal["crash", "hang", "silent", "pause", "rewind"] = "crash"
    detection: Duration = ZERO
    diagnosis: Duration = ZERO
    wrong_diagnosis: float = 0.0
    machine_share: float = 1.0
    machines: tuple[tuple[int, float], ...] = ((1, 1.0),)
    burst: tuple[float, int] = (0.0, 0)
    repair: Duration | None = None
    restart: Duration | None = None
    rewind: int = 0
    lemon_share: float = 0.0
    skip: int = 0


Component: TypeAlias = tuple[str, int, int]
"""What is degraded: (kind, rank class, severity in per cent). Kind is `slow_gpu`, `slow_node` (severity: speed lost),
`slow_nic`, `degraded_link` (capacity lost), `missing_replicas` (class 0, severity: how many are gone) or `job` (class
0, severity: per cent that a step takes longer)."""

State: TypeAlias = tuple[Component, ...]
"""A degraded cluster: its components in ascending order; () is healthy."""

StepTimes: TypeAlias = Callable[[int, State], Seconds]
"""Seconds of a step of a phase (by its number) in a state. Must be deterministic and not less than healthy."""


class SlowSource(NamedTuple):
    """Machines and links that become slow without failing.

    Attributes
    ----------
    kind
        As in `Component`.
    classes
        Components of each rank class: the class of a slow one is drawn in proportion. Their sum is what `share` is of.
    share
        Of the components that are slow from the start.
    hazard
        When another one becomes slow.
    severity
        Per cent lost, (lowest, highest): drawn evenly, rounded to whole per cent.
    duration
        Until it is well again by itself; None: until it is found (or its machine fails).
    detection
        Until it is found; None: never.
    swap
        What is done when found: True stops the job, takes a spare and restarts (`elastic`: as if it had
        failed, behind a save); False only reports.
    """

    name: str
    kind: str
    classes: tuple[int, ...]
    share: float
    hazard: Hazard
    severity: tuple[int, int]
    duration: Duration | None
    detection: Duration | None
    swap: bool


class Tier(NamedTuple):
    """A place where checkpoints go. Tiers are ordered, the nearest first.

    Attributes
    ----------
    every
        Steps between saves; a multiple of that of the tier before it.
    seconds
        Where given, the interval is this wall-clock from the start of one save to that of the next, rounded up to a
        step, whatever passes in it: slow steps, evaluations, pauses (only with one tier). Where the job starts or
        resumes it counts as if a save had just ended. `every` is what it comes to at the healthy pace.
    blocking, persist
        Seconds that a save stops training, and then takes in the background until it is durable.
    load
        Seconds to load from here.
    survives
        Machines lost at once that it survives: 0 for host memory, the copies for peers, ALL_MACHINES for storage.
    """

    name: str
    every: int
    seconds: Seconds | None
    blocking: Seconds
    persist: Seconds
    load: Seconds
    survives: int = ALL_MACHINES


class Phase(NamedTuple):
    """A stretch of training with one recipe: `steps` of `step_time` seconds, `flops` model FLOPs, `tokens` each."""

    name: str
    steps: int
    step_time: Seconds
    flops: Flop
    tiers: tuple[Tier, ...]
    tokens: Tokens = 0.0


class Pause(NamedTuple):
    """Something that holds a healthy job up, booked under `key` (`data_stall`, `planned`): nothing is lost.

    `planned` stops save first at a step end and are followed by a restart (booked as `planned` as well).
    """

    name: str
    key: Literal["data_stall", "planned"]
    hazard: Hazard
    duration: Duration


class Evaluation(NamedTuple):
    """Training stops every `every` steps for `duration` seconds."""

    every: int
    duration: Seconds


class Pool(NamedTuple):
    """Machines standing by: `size` of them; a failure waits `swap` for those it takes (once, not per machine)."""

    size: int
    swap: Duration


class Shop(NamedTuple):
    """Repairs: automatic first; with `escalation` followed by a manual one. Either may leave a lemon a lemon."""

    automatic: Duration
    escalation: float
    manual: Duration
    silent_automatic: float = 0.0
    silent_manual: float = 0.0


class Lemons(NamedTuple):
    """Bad machines: `share` of all machines, pools included; each fails `factor` times as often as a good one.

    `retire_after`: a machine that has been in the shop so often does not come back; 0: never.
    """

    share: float
    factor: float
    retire_after: int = 0


class Elastic(NamedTuple):
    """Carry on without a data-parallel replica.

    Attributes
    ----------
    nodes_per_replica
        Machines of one replica; it needs all of them. The first machine that a failure takes is drawn evenly from
        those left, the others stand next to it, in the same replica first: scattered failures cost a replica each. A
        machine that comes goes to the replica that lacks fewest.
    replicas, fewest
        Data-parallel degree, and how many must be left; with fewer the job waits.
    reconfigure, rejoin
        Pauses: after detection, and when replicas are whole again. Repaired machines join at once, those of the pools
        after `swap` and `restart`; the others train meanwhile.
    keeps_state
        Whether the others hold all state: then only the step in progress is lost, else the job goes back to a save.
    """

    nodes_per_replica: int
    replicas: int
    fewest: int
    reconfigure: Duration
    rejoin: Duration
    keeps_state: bool


_NO_POOL, _NO_SHOP, _NO_LEMONS = Pool(0, ZERO), Shop(ZERO, 0.0, ZERO), Lemons(0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignPlan:
    """Everything that a campaign needs to know.

    Attributes
    ----------
    phases
        In order; at least one.
    machines
        Nodes of the job.
    failures, slow, pauses
        What happens to it.
    evaluation
        Regular stops, or None.
    restart
        From machines in place to loading: scheduling, containers, communicators.
    restart_in_place
        The same where no machine was lost (in-process restart); None: as `restart`.
    start
        The first start of the job; booked as `restart`.
    failures_during_restart
        Whether failures strike detection, restart, loading and stops; they always strike training and saves, never
        waiting for machines.
    hot, warm, preempted
        Pools that are tried in this order; `warm` refills `hot` to its size when it is used. Machines of `preempted`
        are not owned: repaired ones go back there while any is borrowed, else to `hot` up to its size, then to `warm`
        (to `hot` where there is no warm pool).
    policy
        `restart`, `wait` (for the repair of the very machine; no pool is used) or `elastic`.
    diurnal
        (amplitude, period): a step takes 1 + amplitude·(1 - cos(2π t/period))/2 times as long, evaluated every 24th of
        the period; (0, 1) is none.
    step_factor
        Constant factor on every step for what the simulated step has not: sequence-length imbalance and the like;
        `garbage_collection` seconds come on top of every step.
    """

    phases: tuple[Phase, ...]
    machines: int
    failures: tuple[JobFailure, ...] = ()
    slow: tuple[SlowSource, ...] = ()
    pauses: tuple[Pause, ...] = ()
    evaluation: Evaluation | None = None
    restart: Duration = ZERO
    restart_in_place: Duration | None = None
    start: Duration = ZERO
    failures_during_restart: bool = True
    hot: Pool = _NO_POOL
    warm: Pool = _NO_POOL
    preempted: Pool = _NO_POOL
    shop: Shop = _NO_SHOP
    lemons: Lemons = _NO_LEMONS
    policy: Literal["restart", "wait", "elastic"] = "restart"
    elastic: Elastic | None = None
    diurnal: tuple[float, Seconds] = (0.0, 1.0)
    step_factor: float = 1.0
    garbage_collection: Seconds = 0.0

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return sum(phase.steps for phase in self.phases)
