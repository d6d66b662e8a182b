"""Means and quantiles of independent replications, with confidence intervals.

A mean has Student's interval, a quantile that of order statistics: whatever the distribution, the number of values
below the true quantile is binomial, so that two of the values in order enclose it. Sums are exact (`math.fsum`): the
figures do not depend on who summed what.

Pinned by tests/results/test_statistics.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2


class Mean(NamedTuple):
    """A mean, the sample's standard deviation, and how far the interval reaches to either side.

    `half_width` is None below two values.
    """

    value: float
    deviation: float
    half_width: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the confidence interval."""
        return None if self.half_width is None else (self.value - self.half_width, self.value + self.half_width)


def mean(values: Sequence[float]) -> Mean:
    """Mean of independent values with Student's confidence interval."""
    number = len(values)
    centre = math.fsum(values) / number
    if number < 2:
        return Mean(centre, 0.0, None)
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (number - 1))
    return Mean(centre, deviation, student_quantile(number - 1) * deviation / math.sqrt(number))


def student_quantile(freedom: int, tail: float = _TAIL) -> float:
    """Student's t that is exceeded with probability `tail`.

    Closed forms for one and two degrees of freedom; for more the expansion around the normal quantile (Abramowitz and
    Stegun 1964, 26.7.5), good to 0.1 % from three degrees on at a tail of 2.5 %.
    """
    if freedom == 1:
        return 1 / math.tan(math.pi * tail)
    if freedom == 2:
        spread = 1 - 2 * tail
        return spread * math.sqrt(2 / (1 - spread**2))
    z = NormalDist().inv_cdf(1 - tail)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Quantile of ascending values, linear between order statistics (Hyndman and Fan 1996, type 7)."""
    place = (len(ordered) - 1) * share
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def quantile_interval(ordered: Sequence[float], share: float) -> tuple[float | None, float | None]:
    """Order statistics that enclose the true quantile with the confidence, at least; None where there are too few.

    With x(1) ... x(n) ascending, P(q < x(l)) = P(B < l) and P(q > x(u)) = P(B >= u) for B binomial (n, share)
    (Conover 1999, section 3.2): each is at most half of what is left.
    """
    number = len(ordered)
    if not 0 < share < 1:
        raise ValueError(f"a quantile of {share} has no interval; use more than 0 and less than 1")
    lower = upper = None
    below = 0.0  # P(B <= k)
    for k in range(number + 1):
        if k and below <= _TAIL:  # P(B < k)
            lower = ordered[k - 1]
        if k and upper is None and 1 - below <= _TAIL:  # P(B >= k)
            upper = ordered[k - 1]
        if lower is not None and upper is not None and below > _TAIL:
            break
        below += math.exp(
            math.lgamma(number + 1)
            - math.lgamma(k + 1)
            - math.lgamma(number - k + 1)
            + k * math.log(share)
            + (number - k) * math.log1p(-share)
        )
    return lower, upper
