"""Times that people and machines take: a constant, or drawn anew each time.

Recovery times are heavy-tailed: a run on 512 B200 had a median of 3.7 min and a mean of 38.9 min (Lambda on OLMo
Hybrid). So wherever a duration is asked for, `10 min` is a constant and `{median: 3.7 min, mean: 38.9 min}`,
`{median: 2 h, sigma: 1}` or `{mean: 2 h, sigma: 1}` a lognormal one.

Pinned by tests/scenario/reliability/test_durations.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from simulator.scenario.units import EXAMPLES, Seconds, format_quantity, parse_quantity

# Assumption: a mean of e^18 = 66 million medians is no duration but a slip of the pen.
MAX_SIGMA = 6.0
_FORMS = "a time like '10 min', or {median, mean}, {median, sigma} or {mean, sigma}"


class LogNormal(NamedTuple):
    """A time that is drawn anew each time: lognormal with this median and sigma of its logarithm; constant at 0."""

    median: Seconds
    sigma: float = 0.0

    @property
    def mean(self) -> Seconds:
        """The expected time: median e^(sigma²/2)."""
        return self.median * math.exp(self.sigma**2 / 2)

    @property
    def variance(self) -> float:
        """Square of the standard deviation: mean² (e^(sigma²) - 1). [s²]."""
        return self.mean**2 * math.expm1(self.sigma**2)


NONE = LogNormal(0.0)


def add(*times: LogNormal) -> LogNormal:
    """One time after the other: the lognormal with their mean and variance (Fenton, IRE Trans. CS-8(1), 1960).

    Exact for constants and where only one of them is not zero; else their sum is not quite lognormal.
    """
    drawn = [time for time in times if time.median > 0]
    if len(drawn) == 1:
        return drawn[0]
    mean = math.fsum(time.mean for time in drawn)
    variance = math.fsum(time.variance for time in drawn)
    if not variance:
        return LogNormal(mean)
    spread = math.log1p(variance / mean**2)
    return LogNormal(mean * math.exp(-spread / 2), math.sqrt(spread))


def read_duration(value: object) -> LogNormal:
    """Read a constant or lognormal time.

    Raises
    ------
    ValueError
        Says which forms there are.

    Examples
    --------
    >>> read_duration("10 min")
    LogNormal(median=600.0, sigma=0.0)
    >>> round(read_duration({"median": "3.7 min", "mean": "38.9 min"}).sigma, 2)
    2.17
    """
    if isinstance(value, LogNormal):
        return value
    if not isinstance(value, dict):
        return LogNormal(_seconds(value))
    given = {str(name) for name in value}
    if unknown := sorted(given - {"median", "mean", "sigma"}):
        raise ValueError(f"unknown key {unknown[0]!r} in a duration; write {_FORMS}")
    if len(given) != 2:
        stated = " and ".join(sorted(given)) or "nothing"
        raise ValueError(f"a lognormal time needs two of median, mean and sigma, and here is {stated}; write {_FORMS}")
    sigma = _sigma(value["sigma"]) if "sigma" in given else _sigma_between(value)
    if "median" in given:
        return LogNormal(_seconds(value["median"]), sigma)
    return LogNormal(_seconds(value["mean"]) * math.exp(-(sigma**2) / 2), sigma)


def _seconds(value: object) -> Seconds:
    try:
        return parse_quantity(value, "time")
    except ValueError as error:
        raise ValueError(f"{error}; a duration is {_FORMS}") from error


def _sigma(value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= MAX_SIGMA:  # type: ignore[arg-type]
        raise ValueError(
            f"sigma {value!r} must be a number from 0 (constant) to {MAX_SIGMA:g}; 1 puts two thirds between 0.4 and"
            " 2.7 medians"
        )
    return float(value)  # type: ignore[arg-type]


def _sigma_between(value: dict[Any, Any]) -> float:
    """Sigma from mean = median e^(sigma²/2)."""
    median, mean = _seconds(value["median"]), _seconds(value["mean"])
    if not 0 < median <= mean:
        raise ValueError(
            f"median {value['median']!r} and mean {value['mean']!r}: the mean of a lognormal time is not below its"
            " median, and neither is zero; swap them, or write one time for a constant"
        )
    return _sigma(math.sqrt(2 * math.log(mean / median)))


def write_duration(time: LogNormal) -> str | dict[str, Any]:
    """Write a time so that `read_duration` reads back the same."""
    median = format_quantity(time.median, "time")
    return {"median": median, "sigma": time.sigma} if time.sigma else median


_TIME = {"type": "string", "description": "a time with its unit", "examples": [EXAMPLES["time"]]}
DURATION: dict[str, Any] = {
    "description": "a time with its unit, or a lognormal one by two of its median, mean and sigma",
    "anyOf": [
        _TIME,
        {
            "type": "object",
            "properties": {
                "median": _TIME,
                "mean": _TIME,
                "sigma": {"type": "number", "minimum": 0, "maximum": MAX_SIGMA},
            },
            "additionalProperties": False,
            "minProperties": 2,
        },
    ],
}
"""JSON Schema of a duration."""
DurationField = Annotated[
    LogNormal, BeforeValidator(read_duration), PlainSerializer(write_duration), WithJsonSchema(DURATION)
]
