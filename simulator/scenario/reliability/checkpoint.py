"""What saves the run: when and how training state is written, and to which places.

The checkpoint itself goes to the shared storage. `tiers` are nearer places that are written more often: host memory
survives a software crash, a peer's memory the loss of as many nodes as there are copies.

Pinned by tests/scenario/reliability/test_checkpoint.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from simulator.scenario.explain import nearest
from simulator.scenario.reliability.forms import PositiveCount, Section, Share
from simulator.scenario.units import (
    BandwidthField,
    Seconds,
    SecondsField,
    format_quantity,
    format_steps,
    parse_quantity,
    parse_steps,
    readable_time,
)

# Assumption: between 0.59 s (ByteCheckpoint, arXiv 2407.20143, Table 8) and the "several seconds" of MegaScale
# (arXiv 2402.15627) to copy the state to host memory.
STALL: Seconds = 2.0
# bf16 weights and fp32 master weights with Adam's two moments (ZeRO, arXiv 1910.02054, section 3.1, less the
# gradients): 2 + 4 + 4 + 4.
BYTES_PER_PARAMETER = 14.0

Rule: TypeAlias = Literal["optimal", "young", "daly", "renewal", "simulated"]
RULES: tuple[Rule, ...] = get_args(Rule)


class Interval(NamedTuple):
    """How often to save: every so many seconds of wall-clock, or steps, or by a rule; `optimal` where all are None."""

    seconds: Seconds | None = None
    steps: int | None = None
    rule: Rule | None = None


OPTIMAL = Interval(rule="optimal")


def _read_interval(value: object) -> Interval:
    if isinstance(value, Interval):
        return value
    if value in RULES:
        return Interval(rule=value)
    steps = parse_steps(value)
    interval = Interval(seconds=_interval_seconds(value)) if steps is None else Interval(steps=steps)
    if not (interval.steps or interval.seconds):
        raise ValueError(f"interval: {value!r} must be more than zero")
    return interval


def _interval_seconds(value: object) -> Seconds:
    try:
        return parse_quantity(value, "time")
    except ValueError as error:
        rules = ", ".join(map(repr, RULES[:-1])) + f" or {RULES[-1]!r}"
        hint = nearest(value, RULES) if isinstance(value, str) else ""
        raise ValueError(f"{error}; an interval may also be '100 steps' or {rules}{hint}") from error


def _write_interval(interval: Interval) -> str:
    if interval.steps is not None:
        return format_steps(interval.steps)
    return interval.rule or "optimal" if interval.seconds is None else format_quantity(interval.seconds, "time")


IntervalField = Annotated[
    Interval,
    BeforeValidator(_read_interval),
    PlainSerializer(_write_interval),
    WithJsonSchema(
        {
            "type": "string",
            "description": "a time with its unit, a count of steps, or a rule: 'optimal' (the best by renewal theory,"
            " as 'renewal'), 'young' or 'daly' (their formulas), 'simulated' (the best of simulated runs)",
            "examples": ["30 min", "100 steps", *RULES],
        }
    ),
]


class Incremental(Section):
    """Saves that write only what changed.

    Attributes
    ----------
    share
        Part of a full save that a delta writes.
    full_every
        Every so manieth save is a full one; loading reads it and the deltas since, half of them in the mean.
    """

    share: Share
    full_every: PositiveCount


class Tier(Section):
    """A place for saves that is nearer than the shared storage.

    Attributes
    ----------
    to
        `host`: the node's own memory, which survives what loses no machine. `peer`: the memory of other nodes too.
    interval
        Steps between saves.
    copies
        Nodes that can be lost at once (`peer` only; 1 by default).
    stall
        Seconds that a save stops training.
    bandwidth
        Bytes/s at which a node writes and reads; left out: its PCIe links (host) or NICs (peer).
    save_time, load_time
        Override what the bandwidth gives.
    """

    to: Literal["host", "peer"]
    interval: IntervalField
    copies: PositiveCount | None = None
    stall: SecondsField = 0.0
    bandwidth: BandwidthField | None = None
    save_time: SecondsField | None = None
    load_time: SecondsField | None = None

    @model_validator(mode="after")
    def _counts_steps(self) -> Self:
        if self.interval.steps is None:
            raise ValueError(f"interval {_write_interval(self.interval)!r}: a tier saves by steps; write '10 steps'")
        if self.copies is not None and self.to == "host":
            raise ValueError(f"copies {self.copies} are kept by peers; write to: peer, or leave copies out")
        return self

    @property
    def survives(self) -> int:
        """Machines that can be lost at once."""
        return 0 if self.to == "host" else self.copies or 1


class Checkpoint(Section):
    """When and how training state is saved.

    Attributes
    ----------
    interval
        Wall-clock since the last save began (rounded up to a step), a count of steps, or a rule: ``optimal`` (the best
        by renewal theory), ``young``, ``daly``, ``renewal``, ``simulated``.
    mode
        `sync` stops training for the whole save. `async` stops it for `stall` only and writes in the
        background; the save is durable when all is written, and a failure before falls back one save more.
    bytes_per_parameter
        Size of the saved state.
    save_time, load_time
        Override what storage and network would give; `save_time` is the full save, until durable.
    stall
        Seconds that an async save blocks training.
    readers
        `once`: every byte is read once, and passed on to the replicas (MegaScale, arXiv 2402.15627, section 4.4);
        `every` rank reads all that it needs, which grows with the replicas.
    incremental
        Saves that write only what changed.
    tiers
        Nearer places for saves, the nearest first.
    """

    interval: IntervalField = OPTIMAL
    mode: Literal["sync", "async"] = "sync"
    bytes_per_parameter: float = Field(default=BYTES_PER_PARAMETER, gt=0)
    save_time: SecondsField | None = None
    load_time: SecondsField | None = None
    stall: SecondsField | None = None
    readers: Literal["once", "every"] = "once"
    incremental: Incremental | None = None
    tiers: tuple[Tier, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _stall_is_for_async(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("stall") is not None and fields.get("mode", "sync") == "sync":
            raise ValueError(
                f"stall {fields['stall']!r} is how long an async save blocks training; "
                "a sync one blocks for all of save_time: write mode: async or leave stall out"
            )
        return fields

    @model_validator(mode="after")
    def _interval_holds_a_save(self) -> Self:
        every, save = self.interval.seconds, self.save_time
        if every is not None and save is not None and every < save:
            raise ValueError(
                f"interval {readable_time(every)} is shorter than the save_time of {readable_time(save)}; save at most"
                f" every {readable_time(save)}, or write interval: optimal"
            )
        return self

    @model_validator(mode="after")
    def _readers_of_what(self) -> Self:
        if self.readers == "every" and self.load_time is not None:
            raise ValueError(
                f"readers 'every' changes nothing about a load_time of {readable_time(self.load_time)}; leave one of"
                " them out"
            )
        return self

    @model_validator(mode="after")
    def _tiers_in_order(self) -> Self:
        places = [tier.to for tier in self.tiers]
        if places not in ([], ["host"], ["peer"], ["host", "peer"]):
            raise ValueError(f"tiers to {', '.join(places)}: each at most once, the nearest first: host, then peer")
        for near, far in pairwise(self.tiers):
            near_steps, far_steps = near.interval.steps or 1, far.interval.steps or 1
            if far_steps % near_steps:
                raise ValueError(
                    f"tiers: {far.to} saves every {far_steps} steps, which is no multiple of the {near_steps} of"
                    f" {near.to}, which is nearer; write {-(-far_steps // near_steps) * near_steps} steps"
                )
        last = self.tiers[-1].interval.steps if self.tiers else None
        if last and self.interval.steps and self.interval.steps % last:
            raise ValueError(
                f"interval {self.interval.steps} steps is no multiple of the {last} of tier {places[-1]}; write"
                f" {-(-self.interval.steps // last) * last} steps"
            )
        return self

    @property
    def blocking_stall(self) -> Seconds:
        """Seconds that an async save blocks training: `stall`, or a default of 2 s."""
        return STALL if self.stall is None else self.stall
