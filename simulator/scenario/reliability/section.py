"""The `reliability:` section of a scenario: what breaks, what saves the run, how it goes on.

It says how often things happen and how long people and machines take; what that costs over months is the campaign's
business. Absent, nothing fails.

Pinned by tests/scenario/reliability/test_section.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from simulator.scenario.reliability.checkpoint import Checkpoint
from simulator.scenario.reliability.durations import DurationField, LogNormal, add
from simulator.scenario.reliability.failures import FailureClass
from simulator.scenario.reliability.forms import PositiveCount, Section, Share
from simulator.scenario.reliability.machines import Lemons, Repair, Spares
from simulator.scenario.reliability.presets import PresetName, read_presets
from simulator.scenario.reliability.recovery import RESTART, Recovery, Restart
from simulator.scenario.reliability.slow import SlowSource
from simulator.scenario.reliability.stops import (
    DataStalls,
    Diurnal,
    Evaluation,
    GarbageCollection,
    LossSpikes,
    Maintenance,
)
from simulator.scenario.units import PositiveSecondsField, SecondsField


class Reliability(Section):
    """How things break and how the run goes on.

    Attributes
    ----------
    preset
        Failures (and lemons) of a published cluster; own entries of the same name replace its, others are added.
    rate_scale
        Factor on the rates of all failures.
    step_time
        A measured step on healthy machines, in place of the simulated one: of the phase with the most steps, the others
        take as much longer or shorter as they would without. Slow machines still slow it by what the simulation says.
    failures
        Failure classes; none, and no preset: nothing breaks, but saves still take their time. `all_failures` has those
        of the preset too.
    failures_during_restart
        Whether failures strike during detection and restart too. False gives the textbook forms.
    restart
        Scheduling, containers and communicator set-up, without loading the checkpoint.
    restart_per_gpu
        Seconds more per GPU of the job.
    restart_in_place
        The same where no machine was lost; left out: as `restart`.
    start
        The first start of the job; left out: no time.
    nodes_per_rack
        So many consecutive nodes are a rack, which share power and go down together; left out: scale-up domains.
    spares
        Nodes standing by; left out: all nodes of the cluster that the job does not use.
    slow
        Machines and links that become slow.
    sequence_imbalance
        How much longer every step takes, as a share, because sequences are not equally long.
    """

    preset: PresetName | None = None
    rate_scale: Annotated[float, Field(strict=True, ge=0)] = 1.0
    step_time: PositiveSecondsField | None = None
    failures: tuple[FailureClass, ...] = ()
    failures_during_restart: bool = True
    lemons: Lemons | None = None
    checkpoint: Checkpoint = Checkpoint()
    restart: Restart = Restart(scheduling=RESTART)
    restart_per_gpu: SecondsField = 0.0
    restart_in_place: DurationField | None = None
    start: DurationField | None = None
    recovery: Recovery = Recovery()
    nodes_per_rack: PositiveCount | None = None
    spares: Spares = Spares()
    repair: Repair = Repair()
    slow: tuple[SlowSource, ...] = ()
    diurnal: Diurnal | None = None
    garbage_collection: GarbageCollection | None = None
    sequence_imbalance: Share = 0.0
    maintenance: Maintenance | None = None
    evaluation: Evaluation | None = None
    data_stalls: DataStalls | None = None
    loss_spikes: LossSpikes | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {name: value for name, value in content.items() if value is not None}

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        # Counts and random streams are keyed by name.
        names = [failure.name for failure in self.failures]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"failures: {name!r} is the name of {names.count(name)} classes; each needs its own")
        others = [source.name for source in self.slow]
        others += [stop for stop in ("maintenance", "data_stalls", "loss_spikes") if getattr(self, stop) is not None]
        taken = [failure.name for failure in self.all_failures] + others
        for name in others:
            if taken.count(name) > 1:
                raise ValueError(f"slow: {name!r} names something else of this section too; each needs its own name")
        return self

    @property
    def expanded(self) -> Reliability:
        """The same without its preset: `failures` and `lemons` are all there are, `rate_scale` is 1."""
        own = {failure.name: failure for failure in self.failures}
        lemons = self.lemons
        listed: dict[str, FailureClass] = {}
        if self.preset is not None:
            preset = read_presets()[self.preset]
            listed = {failure.name: failure for failure in preset.failures}
            lemons = preset.lemons if lemons is None else lemons
        failures = tuple(failure.scaled(self.rate_scale) for failure in {**listed, **own}.values())
        return self.model_copy(update={"preset": None, "rate_scale": 1.0, "failures": failures, "lemons": lemons})

    @property
    def all_failures(self) -> tuple[FailureClass, ...]:
        """Those of the preset and the section's own, at the rates that `rate_scale` makes of them."""
        return self.expanded.failures

    @property
    def all_lemons(self) -> Lemons | None:
        """The section's own, else those of the preset."""
        return self.expanded.lemons

    def restart_time(self, gpus: int) -> LogNormal:
        """Of a job of so many GPUs, from machines in place to loading the checkpoint."""
        return add(self.restart.time(gpus), LogNormal(gpus * self.restart_per_gpu))
