"""When failures strike: evenly, in clusters, as parts wear out, or more often for a while.

`exponential` failures strike at a rate that may change over time (`windows`, `burn_in`). The others have a memory:
`system` ones are a renewal process of the whole job, `batch` ones follow the calendar age of parts that went into
service together.

Pinned by tests/scenario/reliability/test_failures.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from simulator.scenario.reliability.forms import Section, also
from simulator.scenario.units import PositiveSecondsField, Seconds, SecondsField, readable_time

# Assumption: beyond these a Weibull shape is a slip of the pen. Fits reach from 0.7 (times between failures of HPC
# systems, Schroeder and Gibson 2006) to 2.6 (GPUs that wear out: the old batch of Titan's K20X).
SHAPES = (0.1, 20.0)
MAX_SIGMA = 6.0

Factor: TypeAlias = Annotated[float, Field(strict=True, ge=0)]


class Distribution(Section):
    """How the times between failures of a class are spread.

    Attributes
    ----------
    kind
        `exponential`: without memory; `weibull` needs its `shape` (below 1 failures come in clusters, above 1 parts
        wear out), `lognormal` its `sigma`.
    scope
        `system`: gaps between failures of the whole job are drawn, with the mean that the rate says. `batch` (Weibull
        only): the parts that the rate is per are one batch, `age` old at the start; the rate is that of a new part over
        its mean life, and replacing one part does not make the others younger.
    """

    model_config = ConfigDict(json_schema_extra=also({"type": "string", "enum": ["exponential"]}))

    kind: Literal["exponential", "weibull", "lognormal"] = "exponential"
    shape: float | None = Field(default=None, strict=True)
    sigma: float | None = Field(default=None, strict=True)
    scope: Literal["system", "batch"] | None = None
    age: SecondsField | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, content: Any) -> Any:
        return {"kind": content} if isinstance(content, str) else content

    @model_validator(mode="after")
    def _has_its_parameter(self) -> Self:
        _needs(self.kind, "weibull", "shape", self.shape, SHAPES)
        _needs(self.kind, "lognormal", "sigma", self.sigma, (0.01, MAX_SIGMA))
        if self.kind == "exponential" and self.scope is not None:
            raise ValueError(
                f"scope {self.scope!r} means nothing for exponential failures, which have no memory; leave it out, or"
                " write kind: weibull with its shape"
            )
        if self.scope == "batch" and self.kind != "weibull":
            raise ValueError(
                f"scope 'batch' needs kind: weibull, not {self.kind}; write scope: system, or kind: weibull"
            )
        if self.age is not None and self.scope != "batch":
            raise ValueError("age is that of a batch of parts: write scope: batch with it, or leave it out")
        return self

    @property
    def is_batch(self) -> bool:
        """Hazard by the age of parts."""
        return self.scope == "batch"

    def scale(self, rate: float) -> Seconds:
        """Weibull scale of a part with `rate` failures per second over its mean life: 1 / (rate Γ(1 + 1/shape))."""
        assert self.shape is not None
        return 1 / (rate * math.gamma(1 + 1 / self.shape))


def _needs(kind: str, owner: str, name: str, value: float | None, limits: tuple[float, float]) -> None:
    if value is None and kind == owner:
        raise ValueError(f"{owner} failures need their {name}: write {{kind: {owner}, {name}: ...}}")
    if value is not None and kind != owner:
        raise ValueError(f"{name} {value!r} belongs to {owner} failures, not to {kind} ones; leave it out")
    if value is not None and not limits[0] <= value <= limits[1]:
        raise ValueError(f"{name} {value!r} must be from {limits[0]:g} to {limits[1]:g}")


class Window(Section):
    """A rate is `factor` times itself from one moment of the run to another: a bad firmware week."""

    from_: SecondsField = Field(alias="from")
    until: SecondsField
    factor: Factor

    @model_validator(mode="after")
    def _ends_later(self) -> Self:
        if self.until <= self.from_:
            raise ValueError(
                f"a window from {readable_time(self.from_)} until {readable_time(self.until)} ends before it begins;"
                " swap from and until"
            )
        return self


class BurnIn(Section):
    """A rate starts `factor` times itself, and what it is more decays by e every `decay`."""

    factor: Annotated[float, Field(strict=True, ge=1)]
    decay: PositiveSecondsField
