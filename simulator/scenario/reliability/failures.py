"""What breaks: classes of failures with their rate, blast radius, how they show and what they need.

Rates are means over all machines, lemons included, of what the class says they are `per`. The blast radius
(`component`) is found on the cluster graph: losing a leaf switch takes every node of the job below it.

Limits: classes are independent of each other but for `burst`; a class keeps its blast radius.

Pinned by tests/scenario/reliability/test_failures.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from simulator.scenario.reliability.distributions import BurnIn, Distribution, Window
from simulator.scenario.reliability.durations import NONE, DurationField, LogNormal
from simulator.scenario.reliability.forms import PositiveCount, Section, Share
from simulator.scenario.units import PositiveSecondsField, Rate, RateField, StepsField

Component: TypeAlias = Literal["gpu", "node", "nic", "link", "leaf", "rack", "job"]
Effect: TypeAlias = Literal["crash", "hang", "silent", "pause", "rewind"]

# Until the job is known to be dead. crash: Assumption: InfiniBand's transport gives up after some 30 s; hang: the
# default timeout of PyTorch's NCCL process groups (torch.distributed, 10 min); silent: Assumption: found at the next
# validation, a day later; pause: Assumption: a link flap lasts as long as the transport retries; rewind: the loss is
# seen at once.
DETECTION = {
    "crash": LogNormal(30.0),
    "hang": LogNormal(600.0),
    "silent": LogNormal(86400.0),
    "pause": LogNormal(30.0),
    "rewind": NONE,
}
# Until the machine is named. With a crash's detection it is the 5 min of RSC's health checks (arXiv 2410.21680);
# MegaScale detects and diagnoses in under 10 min (arXiv 2402.15627).
DIAGNOSIS = LogNormal(270.0)


def _read_share(value: object) -> bool | float:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise ValueError(f"needs_machine {value!r} must be true, false, or a probability from 0 to 1")


MachineShare = Annotated[
    bool | float,
    BeforeValidator(_read_share),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 1}]}),
]


class Burst(Section):
    """With this probability a failure takes so many further machines with it."""

    probability: Share
    machines: PositiveCount


def _rate(fields: dict[str, Any]) -> Any:
    mtbf = fields.get("mtbf")
    return None if mtbf is None else Rate(1 / mtbf, "job")


def _component(fields: dict[str, Any]) -> Any:
    rate, needs = fields.get("rate"), fields.get("needs_machine")
    if rate is None or rate.per == "job":
        return "node" if needs else "job"
    return rate.per


def _detection(fields: dict[str, Any]) -> LogNormal:
    return DETECTION[fields.get("effect", "crash")]


def _diagnosis(fields: dict[str, Any]) -> LogNormal:
    return NONE if fields.get("effect") in ("pause", "rewind") else DIAGNOSIS


class FailureClass(Section):
    """One kind of failure of the job's machines or software.

    Attributes
    ----------
    rate
        Events per gpu, node, nic, link, leaf, rack or job and time: ``"4 per 1000 node-days"``, ``"2 per day"``.
    mtbf
        In its place: the mean time between such failures of this job.
    distribution, windows, burn_in
        When they strike.
    effect
        `crash` stops the job at once; `hang` too, but it takes a watchdog to see it; `silent` corrupts state, and only
        saves from before it struck are good when it is found; `pause` holds the job up for `detection` and nothing is
        lost (a link flap); `rewind` goes back `rewind` steps at least (a loss spike).
    component
        What is hit: the node that holds a gpu or a nic, every node of the job below a leaf switch, or in a rack; a
        `link` between a NIC and its switch takes the node if the NIC has no other; `job` hits no machine. By default
        what the rate is per; a rate of the job hits a node if it needs a machine.
    detection
        From the failure until the job is known to be dead.
    diagnosis
        From then until its machine is named; none by default where `detection` is stated.
    wrong_diagnosis
        Probability that the wrong machine is named, so that the failure strikes again when training resumes.
    needs_machine
        True: what is hit goes to repair and spares take its place. False: the job restarts where it is. Or the
        probability that it does.
    time_to_repair
        Until a lost machine may serve again; left out: through the repair shop.
    restart
        In place of the section's own.
    burst
        Further machines that go down with it.
    """

    name: str = Field(min_length=1)
    mtbf: PositiveSecondsField | None = None
    rate: RateField = Field(default_factory=_rate)
    distribution: Distribution = Distribution()
    windows: tuple[Window, ...] = ()
    burn_in: BurnIn | None = None
    effect: Effect = "crash"
    needs_machine: MachineShare = True
    component: Component = Field(default_factory=_component)
    detection: DurationField = Field(default_factory=_detection)
    diagnosis: DurationField = Field(default_factory=_diagnosis)
    wrong_diagnosis: Share = 0.0
    time_to_repair: DurationField | None = None
    restart: DurationField | None = None
    rewind: StepsField | None = None
    burst: Burst | None = None

    @model_validator(mode="before")
    @classmethod
    def _what_follows(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        implied: dict[str, Any] = {}
        if content.get("component") == "job" or content.get("effect") in ("pause", "rewind"):
            implied["needs_machine"] = False
        if content.get("detection") is not None:
            implied["diagnosis"] = NONE  # a stated detection includes it, unless both are stated
        return {**implied, **{name: value for name, value in content.items() if value is not None}}

    @model_validator(mode="after")
    def _has_one_rate(self) -> Self:
        if self.rate is None:
            raise ValueError(f"{self.name!r} has no rate; write rate: 4 per 1000 node-days, or mtbf: 3 h")
        if self.mtbf is not None and self.rate != Rate(1 / self.mtbf, "job"):
            raise ValueError(f"{self.name!r} has a rate and an mtbf that disagree; write one of them")
        return self

    @model_validator(mode="after")
    def _machines_make_sense(self) -> Self:
        if self.needs_machine and self.effect in ("pause", "rewind"):
            raise ValueError(
                f"{self.name!r} is a {self.effect}, which loses no machine; leave needs_machine out, or write"
                " effect: crash"
            )
        if self.needs_machine and self.component == "job":
            raise ValueError(
                f"{self.name!r} hits the job and no machine; leave needs_machine out, or name the component: node"
            )
        if self.burst is not None and not self.needs_machine:
            raise ValueError(f"{self.name!r} has a burst of machines but needs none; leave burst out")
        return self

    @model_validator(mode="after")
    def _rewinds(self) -> Self:
        if (self.rewind is not None) != (self.effect == "rewind"):
            if self.rewind is None:
                raise ValueError(f"{self.name!r} is a rewind but does not say how far; write rewind: 100 steps")
            raise ValueError(
                f"{self.name!r} rewinds {self.rewind} steps but is a {self.effect}; write effect: rewind, or leave"
                " rewind out"
            )
        return self

    @model_validator(mode="after")
    def _times_make_sense(self) -> Self:
        kind = self.distribution.kind
        if kind != "exponential" and (self.windows or self.burn_in):
            raise ValueError(
                f"{self.name!r} is {kind}: windows and burn_in change the rate of exponential failures only; leave"
                " them out, or the distribution"
            )
        if self.distribution.is_batch and self.rate.per == "job":
            raise ValueError(
                f"{self.name!r} is a batch of parts but its rate is of the job; write it per gpu, node or nic, like"
                " '4 per 1000 node-days'"
            )
        return self

    @property
    def machine_share(self) -> float:
        """Probability that it takes machines."""
        return float(self.needs_machine)

    def scaled(self, factor: float) -> FailureClass:
        """The same, `factor` times as often."""
        if factor == 1:
            return self
        return self.model_copy(
            update={"rate": self.rate._replace(per_second=self.rate.per_second * factor), "mtbf": None}
        )
