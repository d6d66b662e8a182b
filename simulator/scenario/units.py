"""Quantities: unit strings at the door, SI floats inside.

`"400 Gbps"` becomes 5e10 (bytes/s). `k M G T P` are powers of ten, `Ki Mi Gi Ti` powers of two, `b` is a
bit and `B` a byte. A bare number for a quantity with a dimension is refused, because the two commonest
bugs of training simulators are a factor of eight and a factor of 2^30/10^9 (ASTRA-sim reads "GB/s" as
either, depending on the file). Ratios and counts of layers or ranks are plain numbers.

The aliases (`Seconds`, `Bytes`, ...) are for signatures: plain floats whose name says the unit. The
`...Field` types are for pydantic models: they parse a unit string and print one back.

Pinned by tests/scenario/test_units.py.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

Seconds: TypeAlias = float
Bytes: TypeAlias = float
BytesPerSecond: TypeAlias = float
Flop: TypeAlias = float
FlopPerSecond: TypeAlias = float
Tokens: TypeAlias = float
Dollars: TypeAlias = float
PerNodeSecond: TypeAlias = float
Watts: TypeAlias = float

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_TIME = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0,
    "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": 86400.0, "day": 86400.0, "days": 86400.0,
    "week": 604800.0, "weeks": 604800.0, "month": 2629800.0, "months": 2629800.0,
    "year": 31557600.0, "years": 31557600.0,
}  # fmt: skip


def _scaled(symbol: str, *, binary: bool = False) -> dict[str, float]:
    prefixes = {**_DECIMAL, **_BINARY} if binary else _DECIMAL
    return {prefix + symbol: factor for prefix, factor in prefixes.items()}


def _bandwidths() -> dict[str, float]:
    table: dict[str, float] = {}
    for prefix, factor in {**_DECIMAL, **_BINARY}.items():
        table[f"{prefix}B/s"] = factor
        for bit in ("bps", "b/s", "bit/s"):
            table[prefix + bit] = factor / 8
    return table


# dimension -> unit symbol -> factor to SI
UNITS: dict[str, dict[str, float]] = {
    "time": _TIME,
    "bytes": _scaled("B", binary=True),
    "bandwidth": _bandwidths(),
    "flops": {**_scaled("FLOP/s"), **_scaled("FLOPS"), **_scaled("FLOPs")},
    "tokens": _scaled("tokens") | {"tokens": 1.0, "k tokens": 1e3, "M tokens": 1e6, "B tokens": 1e9, "T tokens": 1e12},
    "throughput": {"tokens/s": 1.0},
    "money": {"USD": 1.0, "$": 1.0, "k$": 1e3, "M$": 1e6, "kUSD": 1e3, "MUSD": 1e6},
    "gpu-hours": {"GPU-h": 1.0, "GPU-hours": 1.0, "kGPU-h": 1e3, "MGPU-h": 1e6},
    "hourly price": {"USD/h": 1.0, "$/h": 1.0},
    "frequency": _scaled("Hz"),
    "power": _scaled("W"),
    "energy": {**_scaled("J"), **{unit: 3600 * factor for unit, factor in _scaled("Wh").items()}},
    "energy price": {"USD/kWh": 1.0, "$/kWh": 1.0, "USD/MWh": 1e-3, "$/MWh": 1e-3},
}
EXAMPLES = {
    "time": "30 min", "bytes": "80 GiB", "bandwidth": "400 Gbps", "flops": "989 TFLOP/s", "tokens": "13e12 tokens",
    "throughput": "1500 tokens/s", "money": "63e6 USD", "gpu-hours": "1.7e6 GPU-h", "hourly price": "2 USD/h",
    "frequency": "1410 MHz", "power": "700 W", "energy": "50 GWh", "energy price": "0.08 USD/kWh",
    "failure rate": "4 per 1000 node-days", "steps": "100 steps",
}  # fmt: skip
_SI = {
    "time": "s", "bytes": "B", "bandwidth": "B/s", "flops": "FLOP/s", "tokens": "tokens", "throughput": "tokens/s",
    "money": "USD", "gpu-hours": "GPU-h", "hourly price": "USD/h", "frequency": "Hz", "power": "W",
    "energy": "J", "energy price": "USD/kWh",
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*")


def parse_quantity(text: object, dimension: str) -> float:
    """Read a unit string as an SI float.

    Parameters
    ----------
    text
        For example ``"400 Gbps"``.
    dimension
        A key of `UNITS`.

    Raises
    ------
    ValueError
        For a bare number, an unknown or foreign unit, a negative number or one that is not finite.

    Examples
    --------
    >>> parse_quantity("400 Gbps", "bandwidth")
    50000000000.0
    >>> parse_quantity("80 GiB", "bytes")
    85899345920.0
    """
    example = EXAMPLES[dimension]
    if isinstance(text, bool) or not isinstance(text, str):
        raise ValueError(f"unit: {text!r} has no unit; a {dimension} is written like '{example}'")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"unit: {text!r} is not a number with a unit; a {dimension} is written like '{example}'")
    number, symbol = float(match[1]), match[2]
    if not symbol:
        raise ValueError(f"unit: {text!r} has no unit; a {dimension} is written like '{example}'")
    factor = UNITS[dimension].get(symbol)
    if factor is None:
        raise ValueError(
            f"unit: {symbol!r} is not a unit of {dimension}{_foreign(symbol)}; allowed: {_allowed(dimension)}"
        )
    value = number * factor
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} must be a finite number that is not negative")
    return value


def _foreign(symbol: str) -> str:
    for dimension, table in UNITS.items():
        if symbol in table:
            return f" (it is one of {dimension})"
    return ""


def _allowed(dimension: str) -> str:
    names = list(UNITS[dimension])
    shown = names if len(names) <= 24 else [*names[:24], "…"]
    return ", ".join(shown)


def format_quantity(value: float, dimension: str) -> str:
    """Print an SI float so that `parse_quantity` reads back the same float."""
    return f"{value!r} {_SI[dimension]}"


def readable_time(value: float, at_least: float = 0.0, at_most: float = math.inf) -> str:
    """Write seconds for a message, three digits in a unit that fits: ``21.5 s``, ``1.68 d``; `parse_quantity` reads it.

    Where rounding leaves the limits, the next such number inside is written.

    Examples
    --------
    >>> readable_time(90.0), readable_time(36000.0), readable_time(0.0015)
    ('90 s', '10 h', '1.5 ms')
    """
    for unit, least in (("d", 2 * 86400.0), ("h", 3600.0), ("min", 120.0), ("s", 0.1), ("ms", 1e-3), ("us", 0.0)):
        if value >= least and value > 0:
            texts = [f"{float(f'{value * nudge / _TIME[unit]:.3g}'):g} {unit}" for nudge in (1.0, 1.005, 0.995)]
            return next((each for each in texts if at_least <= parse_quantity(each, "time") <= at_most), texts[0])
    return "0 s"


_RATE = re.compile(
    r"\s*(-?[\d.]+(?:[eE][+-]?\d+)?)\s+per\s+(?:([\d.]+(?:[eE][+-]?\d+)?)\s+)?"
    r"(?:(node|gpu|nic|link|leaf|rack|job)-)?(\w+?)s?\s*",
    re.IGNORECASE,
)
_RATE_PERIODS = {
    "s": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0, "d": 86400.0,
    "day": 86400.0, "week": 604800.0, "month": 2629800.0, "year": 31557600.0,
}  # fmt: skip


def parse_rate(text: object) -> tuple[float, str]:
    """Read a rate: events per second, and per what (`gpu`, `node`, `nic`, `link`, `leaf`, `rack` or `job`).

    Examples
    --------
    >>> rate, per = parse_rate("4 per 1000 node-days")
    >>> round(rate * 86400, 6), per
    (0.004, 'node')
    >>> parse_rate("1 per 10 s")
    (0.1, 'job')
    """
    example = EXAMPLES["failure rate"]
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[4].lower() not in _RATE_PERIODS:
        raise ValueError(
            f"unit: {text!r} is not a rate of events; write it like '{example}', '2 per day' or '1 per 10 min'"
        )
    events, denominator = _rate_number(match[1], text), _rate_number(match[2] or "1", text)
    if events < 0:
        raise ValueError(f"{text!r} is negative; a rate is zero or more, like '{example}'")
    if denominator <= 0:
        raise ValueError(f"{text!r} divides by {denominator}")
    return events / denominator / _RATE_PERIODS[match[4].lower()], (match[3] or "job").lower()


def _rate_number(digits: str, text: object) -> float:
    try:
        return float(digits)
    except ValueError:
        raise ValueError(f"unit: {digits!r} in {text!r} is not a number; write '{EXAMPLES['failure rate']}'") from None


def _quantity(dimension: str, positive: bool = False) -> tuple[Any, ...]:
    def read(value: object) -> float:
        number = parse_quantity(value, dimension)
        if positive and number == 0:
            raise ValueError(f"{value!r} must be more than zero")
        return number

    def write(value: float) -> str:
        return format_quantity(value, dimension)

    schema = {
        "type": "string",
        "description": f"a {dimension} with its unit",
        "examples": [EXAMPLES[dimension]],
        "pattern": r"^\s*[+]?[0-9.]+([eE][+-]?[0-9]+)?\s*\S.*$",
    }
    return BeforeValidator(read), PlainSerializer(write), WithJsonSchema(schema)


SecondsField = Annotated[float, *_quantity("time")]
PositiveSecondsField = Annotated[float, *_quantity("time", positive=True)]
BytesField = Annotated[float, *_quantity("bytes")]
BandwidthField = Annotated[float, *_quantity("bandwidth", positive=True)]
FlopsField = Annotated[float, *_quantity("flops", positive=True)]
TokensField = Annotated[float, *_quantity("tokens", positive=True)]
HourlyPriceField = Annotated[float, *_quantity("hourly price")]
FrequencyField = Annotated[float, *_quantity("frequency", positive=True)]
PowerField = Annotated[float, *_quantity("power")]
EnergyPriceField = Annotated[float, *_quantity("energy price")]


class Rate(NamedTuple):
    """Events per second, and per what: `gpu`, `node`, `nic`, `link`, `leaf`, `rack` or (the whole) `job`."""

    per_second: float
    per: str


def _read_rate(value: object) -> Rate:
    if isinstance(value, Rate):
        return value
    rate = Rate(*parse_rate(value))
    if not math.isfinite(rate.per_second):
        raise ValueError(f"{value!r} must be a finite rate; write it like '{EXAMPLES['failure rate']}'")
    return rate


def format_rate(rate: Rate) -> str:
    """Print a failure rate so that `parse_rate` reads back the same float: in days where they are exact."""
    count, unit = {"node": (1000, "1000 node-days"), "job": (1, "day")}.get(rate.per, (1, f"{rate.per}-day"))
    text = f"{float(f'{rate.per_second * 86400 * count:.12g}')!r} per {unit}"
    if parse_rate(text)[0] == rate.per_second:
        return text
    return f"{rate.per_second!r} per {'second' if rate.per == 'job' else f'{rate.per}-second'}"


RateField = Annotated[
    Rate,
    BeforeValidator(_read_rate),
    PlainSerializer(format_rate),
    WithJsonSchema({"type": "string", "description": "a failure rate", "examples": [EXAMPLES["failure rate"]]}),
]


_STEPS = re.compile(r"\s*(\d{1,15})\s+steps?\s*")


def parse_steps(text: object) -> int | None:
    """Read a count of steps, such as ``"100 steps"``; None where the text is something else.

    Examples
    --------
    >>> parse_steps("100 steps"), parse_steps("100 s")
    (100, None)
    """
    match = _STEPS.fullmatch(text) if isinstance(text, str) else None
    return int(match[1]) if match else None


def _read_steps(value: object) -> int:
    steps = parse_steps(value)
    if not steps:
        raise ValueError(f"unit: {value!r} is no count of steps; write a whole number above zero like '100 steps'")
    return steps


def format_steps(steps: int) -> str:
    """Print a count of steps so that `parse_steps` reads it back."""
    return f"{steps} steps"


StepsField = Annotated[
    int,
    BeforeValidator(_read_steps),
    PlainSerializer(format_steps),
    WithJsonSchema(
        {
            "type": "string",
            "description": "a count of steps",
            "examples": [EXAMPLES["steps"]],
            "pattern": r"^\s*[0-9]+\s+steps?\s*$",
        }
    ),
]
