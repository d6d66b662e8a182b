"""What is slow without being dead: machines and links that come to run at a part of their speed.

Pinned by tests/scenario/reliability/test_slow.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from simulator.scenario.reliability.distributions import BurnIn, Window
from simulator.scenario.reliability.durations import DurationField
from simulator.scenario.reliability.forms import Section, Share, also
from simulator.scenario.units import RateField

_Part = Annotated[float, Field(strict=True, gt=0, le=1)]
_CAPACITY = ("slow_nic", "degraded_link")


class Between(Section):
    """A part of full speed that is drawn evenly: `0.9` is short for `{between: [0.9, 0.9]}`."""

    model_config = ConfigDict(json_schema_extra=also({"type": "number", "exclusiveMinimum": 0, "maximum": 1}))

    between: tuple[_Part, _Part]

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, content: Any) -> Any:
        return content if isinstance(content, dict | Between) else {"between": [content, content]}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.between
        if low > high:
            raise ValueError(f"between [{low:g}, {high:g}] is empty; write the lower end first: [{high:g}, {low:g}]")
        return self


class SlowSource(Section):
    """Machines or links that become slow without failing.

    Attributes
    ----------
    kind
        `slow_gpu`, `slow_node` (compute at `speed` times that of healthy ones), `slow_nic`, `degraded_link` (at
        `capacity` times that of healthy ones), or `job`: the whole job at `speed` times its own.
    share
        Of them, slow from the start; of a job, the probability.
    rate
        How often another one becomes slow.
    windows, burn_in
        When that rate is another, as of failures.
    duration
        Until it is well again by itself; left out: until it is found, or its machine fails.
    detection
        Until it is found; left out: never.
    swap
        When found, the job stops, takes a spare and restarts; else it is only reported.
    """

    name: str = Field(min_length=1)
    kind: Literal["slow_gpu", "slow_node", "slow_nic", "degraded_link", "job"]
    share: Share = 0.0
    rate: RateField | None = None
    windows: tuple[Window, ...] = ()
    burn_in: BurnIn | None = None
    speed: Between | None = None
    capacity: Between | None = None
    duration: DurationField | None = None
    detection: DurationField | None = None
    swap: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="before")
    @classmethod
    def _how_slow(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        right, wrong = ("capacity", "speed") if content.get("kind") in _CAPACITY else ("speed", "capacity")
        if content.get(wrong) is not None:
            raise ValueError(f"{wrong} is not what a {content.get('kind')} loses; write {right}: {content[wrong]}")
        if content.get(right) is None:
            raise ValueError(f"a {content.get('kind')} needs its {right}, like {right}: 0.9 or {{between: [0.5, 0.9]}}")
        return content

    @model_validator(mode="after")
    def _happens(self) -> Self:
        if not self.share and self.rate is None:
            raise ValueError(f"{self.name!r} never happens; write its share, like 0.005, or its rate")
        if self.rate is None and (self.windows or self.burn_in):
            raise ValueError(f"{self.name!r} has windows or a burn_in of a rate that it has not; write its rate, too")
        if self.swap and self.detection is None:
            raise ValueError(f"{self.name!r} is swapped when found, but never found; write its detection, like 1 d")
        if self.swap and self.kind in ("degraded_link", "job"):
            raise ValueError(f"{self.name!r} is a {self.kind}, for which no spare is kept; leave swap out")
        return self

    @property
    def remains(self) -> tuple[float, float]:
        """Least and most of the speed or capacity that it keeps."""
        part = self.capacity if self.kind in _CAPACITY else self.speed
        assert part is not None
        return part.between

    @property
    def severity(self) -> tuple[int, int]:
        """Least and most per cent lost, whole and at least 1; of a `job`, per cent that its steps take longer."""
        low, high = self.remains
        lost = [1 / part - 1 if self.kind == "job" else 1 - part for part in (high, low)]
        least, most = (max(1, round(100 * each)) for each in lost)
        return (least, most) if self.kind == "job" else (min(99, least), min(99, most))
