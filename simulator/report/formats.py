"""Numbers for people: seconds in a fitting unit, powers of ten, percent.

Pinned by tests/report/test_formats.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_PREFIXES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
# unit, seconds in it, seconds from which it is used: minutes late, because step times are compared in seconds
_LONG = (("d", 86400.0, 2 * 86400.0), ("h", 3600.0, 2 * 3600.0), ("min", 60.0, 600.0))
_SHORT = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_FRACTIONS = ("mfu", "hfu", "bubble", "goodput", "effective", "healthy", "failure_induced", "ettr")


def percent(fraction: float) -> str:
    """Format a fraction as a percentage with one decimal."""
    return f"{_positive_zero(100 * fraction, 1):.1f} %"


def points(fraction: float, whole: float = 1.0) -> str:
    """Format a part of an MFU in points of it: two decimals, or more where the whole MFU is less than a point."""
    digits = 2 if whole >= 0.01 or whole <= 0 else min(9, 1 - math.floor(math.log10(100 * whole)) + 1)
    return f"{_positive_zero(100 * fraction, digits):.{digits}f}"


def count(number: float) -> str:
    """Thousands separated, no decimals above 100."""
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:,.1f}"


def quantity(number: float, unit: str) -> str:
    """Four significant digits with a decimal prefix to the unit: ``5.598 GB``."""
    scaled, prefix = _scaled(number)
    return f"{scaled:.4g} {prefix}{unit}"


def amount(number: float, noun: str = "") -> str:
    """Four significant digits of something counted: ``13 T tokens``."""
    scaled, prefix = _scaled(number)
    return " ".join(part for part in (f"{scaled:.4g}", prefix, noun) if part)


def seconds(time: float) -> str:
    """Format a time in a unit that fits it: ``41.112 s``, ``2.6 h``, ``147.0 d``."""
    for unit, size, start in _LONG:
        if abs(time) >= start:
            return f"{time / size:.1f} {unit}"
    return seconds_beside(time)(time)


def duration(time: float) -> str:
    """Format a time of people and machines, minutes early and one decimal: ``23.7 s``, ``9.8 min``, ``2.9 h``."""
    if 1.0 <= abs(time) < 120.0 or time == 0:
        return f"{time:.1f} s"
    return f"{time / 60:.1f} min" if 120.0 <= abs(time) < 600.0 else seconds(time)


def seconds_beside(reference: float) -> Callable[[float], str]:
    """Formatter of times in the unit that fits a reference, for columns that are added up or compared."""
    unit, size = next(((unit, size) for unit, size in _SHORT if abs(reference) >= size), _SHORT[-1])
    if reference == 0:
        unit, size = _SHORT[0]
    return lambda time: f"{_positive_zero(time / size, 3):.3f} {unit}"


def by_key(key: str, value: float | None) -> str:
    """Format a figure by the unit in its name."""
    if value is None:
        return "–"
    if key.endswith("_s") and "per_s" not in key:
        return seconds(value)
    if key.endswith("_bytes"):
        return quantity(value, "B")
    if key.endswith("_kwh"):
        return quantity(1000 * value, "Wh")
    if key.endswith("_usd"):
        return amount(value, "USD")
    if key.endswith("_flops"):
        return quantity(value, "FLOP")
    if is_fraction(key):
        return percent(value)
    return amount(value) if value >= 1e6 else count(value)


def is_fraction(key: str) -> bool:
    """Whether a figure of that name is shown in percent."""
    return key.startswith(_FRACTIONS) and not key.endswith("_s")


def _scaled(number: float) -> tuple[float, str]:
    for factor, prefix in _PREFIXES:
        if abs(number) >= factor:
            return number / factor, prefix
    return number, ""


def _positive_zero(number: float, digits: int) -> float:
    """Round; what is left of a negative hair loses its sign."""
    return round(number, digits) + 0.0
