"""Unit strings: what they mean in SI, what is refused, and that printing reads back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.scenario.units import (
    EXAMPLES,
    UNITS,
    Rate,
    format_quantity,
    format_rate,
    format_steps,
    parse_quantity,
    parse_rate,
    parse_steps,
    readable_time,
)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("400 Gbps", "bandwidth", 5e10),  # 400e9 bit / 8
        ("50 GB/s", "bandwidth", 5e10),
        ("1 GiB", "bytes", 2**30),
        ("80 GB", "bytes", 80e9),
        ("989 TFLOP/s", "flops", 989e12),
        ("30 min", "time", 1800),
        ("90 d", "time", 7_776_000),
        ("130 ns", "time", 130e-9),
        ("13e12 tokens", "tokens", 13e12),
        ("2 USD/h", "hourly price", 2),
        ("1 kWh", "energy", 3.6e6),
        ("50 GWh", "energy", 1.8e14),
        ("80 USD/MWh", "energy price", 0.08),
    ],
)
def test_what_a_unit_string_means(text: str, dimension: str, value: float) -> None:
    """Decimal and binary prefixes, bits and bytes, times."""
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("value", [3, 3.5, "3", "", "GB", "3 Gb", "3 GB/s", "-3 GB", "nan GB", "1e999 GB", None, True])
def test_what_is_refused_as_a_size(value: object) -> None:
    """Bare numbers, bits and bandwidths for bytes, negative and endless numbers."""
    with pytest.raises(ValueError, match=r"unit|must be"):
        parse_quantity(value, "bytes")


@pytest.mark.parametrize("dimension", sorted(UNITS))
@given(value=st.floats(min_value=0, max_value=1e30))
def test_printing_reads_back(dimension: str, value: float) -> None:
    """The same float, to the last bit."""
    assert parse_quantity(format_quantity(value, dimension), dimension) == value


@pytest.mark.parametrize("dimension", sorted(UNITS))
def test_examples_are_valid(dimension: str) -> None:
    """What an error message suggests is accepted."""
    assert parse_quantity(EXAMPLES[dimension], dimension) > 0


def test_rates() -> None:
    """Events per second and per what: 4 / 1000 / 86,400 per node; 2 / 86,400 per job."""
    assert parse_rate("4 per 1000 node-days") == (pytest.approx(4 / 1000 / 86400), "node")
    assert parse_rate("2 per day") == (pytest.approx(2 / 86400), "job")
    assert parse_rate("1 per 10 s") == (0.1, "job")
    assert parse_rate("3 per 30 min") == (pytest.approx(3 / 1800), "job")
    assert parse_rate("1 per 6 link-h") == (pytest.approx(1 / 21600), "link")
    for part in ("gpu", "nic", "leaf", "rack", "job"):
        assert parse_rate(f"0.1 per {part}-year") == (pytest.approx(0.1 / 31557600), part)
    for wrong in ("4", "4 per node", "per day", 4, "-4 per day", "4 per 0 node-days", "1.2.3 per day"):
        with pytest.raises(ValueError, match=r"rate|divides|number"):
            parse_rate(wrong)


@pytest.mark.parametrize("per", ["gpu", "node", "nic", "leaf", "rack", "job"])
@given(per_second=st.floats(min_value=0, max_value=1e3))
def test_any_rate_survives_printing(per: str, per_second: float) -> None:
    """Whatever its unit, a rate is read back as the same float."""
    assert parse_rate(format_rate(Rate(per_second, per))) == (per_second, per)


def test_counts_of_steps() -> None:
    """Whole numbers with their unit; anything else is no count."""
    assert (parse_steps("100 steps"), parse_steps("1 step"), parse_steps(format_steps(7))) == (100, 1, 7)
    for other in ("100", 100, "2.5 steps", "-1 steps", None):
        assert parse_steps(other) is None


@given(st.floats(1e-6, 1e9))
def test_readable_times_read_back_within_half_a_percent_and_inside_limits(value: float) -> None:
    """Three digits; where they would leave a limit, the other side of it."""
    assert parse_quantity(readable_time(value), "time") == pytest.approx(value, rel=0.0051)
    assert parse_quantity(readable_time(value, at_least=value), "time") >= value
    assert parse_quantity(readable_time(value, at_most=value), "time") <= value
