"""What holds a healthy run up: evaluation, maintenance, data stalls, loss spikes, and what every step suffers.

Pinned by tests/scenario/reliability/test_stops.py.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.scenario.reliability.durations import DurationField
from simulator.scenario.reliability.forms import Section
from simulator.scenario.units import PositiveSecondsField, RateField, SecondsField, StepsField


class Diurnal(Section):
    """Steps take up to `amplitude` longer once a `period`.

    Llama 3's throughput swung by 1-2 % with the day's temperature (arXiv 2407.21783).
    """

    amplitude: Annotated[float, Field(strict=True, ge=0, lt=1)]
    period: PositiveSecondsField = 86400.0


class GarbageCollection(Section):
    """All ranks collect garbage together, every so many steps."""

    every: StepsField
    pause: SecondsField


class Evaluation(Section):
    """Training stops every so many steps."""

    every: StepsField
    duration: SecondsField


class Maintenance(Section):
    """Planned stops, at random with a `rate` or regularly `every` so often: the job saves, stops and restarts."""

    rate: RateField | None = None
    every: PositiveSecondsField | None = None
    duration: DurationField

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.rate is None) == (self.every is None):
            raise ValueError("maintenance needs one of rate (like 0.87 per day) and every (like 7 d)")
        return self


class DataStalls(Section):
    """Times without data to train on."""

    rate: RateField
    duration: DurationField


class LossSpikes(Section):
    """The loss jumps: training goes back `rewind` steps at least, and leaves out the data of `skip` steps.

    PaLM restarted some 100 steps before each of about 20 spikes and skipped 200-500 batches (arXiv 2204.02311, section
    5.1). What is left out is replaced by other data: it takes no time of its own and is only counted.
    """

    rate: RateField
    rewind: StepsField
    skip: StepsField | None = None
