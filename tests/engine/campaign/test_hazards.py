"""When things happen: counts, gaps, windows, burn-in, batches, lemons, and what an arrival brings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.campaign.hazards import Arrivals, Clock, LemonStream, Stream, generator
from simulator.engine.campaign.marks import Marks
from simulator.physics.campaign.plan import BurnIn, CampaignPlan, Duration, Hazard, JobFailure, Phase, Tier, Window

DAY = 86400.0


def _until(hazard: Hazard, end: float, seed: int = 0, share: float = 1.0) -> list[float]:
    arrivals = Arrivals([Stream(hazard, generator(seed, 0, "a"), share)], end)
    times = []
    while arrivals.time < end:
        times.append(arrivals.time)
        arrivals.pop()
    return times


def _fits(sample: Sequence[float], survival: object) -> None:
    """Kolmogorov and Smirnov: the largest distance is below 1.95/sqrt(n) in 99.9 % of samples."""
    ordered = np.sort(np.array(sample))
    expected = 1 - np.array([survival(value) for value in ordered])  # type: ignore[operator]
    places = np.arange(1, len(ordered) + 1) / len(ordered)
    assert np.max(np.abs(places - expected)) < 1.95 / math.sqrt(len(ordered))


def test_poisson_counts() -> None:
    """Mean and variance of 400 counts with mean 50 are 50, within 4 standard errors."""
    counts = [len(_until(Hazard("poisson", rate=0.5), 100.0, seed)) for seed in range(400)]
    assert statistics.mean(counts) == pytest.approx(50, abs=4 * math.sqrt(50 / 400))
    assert statistics.variance(counts) == pytest.approx(50, abs=4 * 50 * math.sqrt(2 / 400))


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.5])
def test_weibull_gaps(shape: float) -> None:
    """Gaps have mean 1/rate and survival e^(-(t/scale)^k), scale = mean/Gamma(1 + 1/k)."""
    gaps = np.diff([0.0, *_until(Hazard("renewal", rate=0.1, shape=shape), 40_000.0)])
    scale = 10.0 / math.gamma(1 + 1 / shape)
    assert np.mean(gaps) == pytest.approx(10.0, rel=0.1)
    _fits(gaps.tolist(), lambda t: math.exp(-((t / scale) ** shape)))


def test_lognormal_gaps() -> None:
    """Gaps have mean 1/rate: median 10 e^(-sigma^2/2)."""
    gaps = np.diff([0.0, *_until(Hazard("renewal", rate=0.1, sigma=1.2), 40_000.0)])
    middle = math.log(10.0) - 1.2**2 / 2
    _fits(gaps.tolist(), lambda t: 0.5 * math.erfc((math.log(t) - middle) / (1.2 * math.sqrt(2))))


def test_a_batch_fails_by_its_age() -> None:
    """N parts of age a: N [((a + t)/eta)^k - (a/eta)^k] expected failures until t; uniform after that transform."""
    hazard = Hazard("batch", units=1000, shape=2.6, scale=1000 * DAY, age=100 * DAY)

    def mean(days: float) -> float:
        return 1000.0 * (((100 + days) / 1000) ** 2.6 - 0.1**2.6)

    counts = [len(_until(hazard, 200 * DAY, seed)) for seed in range(200)]
    assert statistics.mean(counts) == pytest.approx(mean(200), abs=4 * math.sqrt(mean(200) / 200))
    times = [time for seed in range(20) for time in _until(hazard, 200 * DAY, seed)]
    _fits(times, lambda t: 1 - mean(t / DAY) / mean(200))


def test_a_bad_week_has_three_times_as_many() -> None:
    """Three times the rate from day 10 to day 17, none from day 16 to 18: windows multiply where they overlap."""
    hazard = Hazard(
        "poisson", rate=100 / DAY, windows=(Window(10 * DAY, 17 * DAY, 3.0), Window(16 * DAY, 18 * DAY, 0.0))
    )
    times = np.array(_until(hazard, 30 * DAY)) / DAY
    assert np.sum((times >= 10) & (times < 16)) == pytest.approx(1800, abs=4 * math.sqrt(1800))
    assert np.sum((times >= 16) & (times < 18)) == 0
    assert np.sum(times >= 18) == pytest.approx(1200, abs=4 * math.sqrt(1200))


def test_burn_in_fades() -> None:
    """(1 + 3 e^(-t/7 d)) times the rate: 30 + 3 x 7 (1 - e^(-30/7)) days' worth in 30 days."""
    hazard = Hazard("poisson", rate=100 / DAY, burn_in=BurnIn(3.0, 7 * DAY))
    times = np.array(_until(hazard, 30 * DAY)) / DAY
    expected = 100 * (30 + 21 * (1 - math.exp(-30 / 7)))
    assert len(times) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    _fits(times.tolist(), lambda t: 1 - 100 * (t + 21 * (1 - math.exp(-t / 7))) / expected)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50), st.floats(0, 5)), max_size=4), st.floats(0, 5))
def test_the_clock_is_inverted(windows: list[tuple[float, float, float]], excess: float) -> None:
    """`times` is where `sum` is reached, with any windows and burn-in."""
    hazard = Hazard(
        "poisson", rate=2.0, windows=tuple(Window(a, a + b, factor) for a, b, factor in windows),
        burn_in=BurnIn(excess, 20.0),
    )  # fmt: skip
    clock = Clock(hazard)
    wanted = np.linspace(0.1, 400.0, 50)
    assert [clock.sum(time) for time in clock.times(wanted)] == pytest.approx(wanted.tolist(), rel=1e-9)


def test_streams_merge_in_order() -> None:
    """Four streams come out as their sorted union, whatever the blocks."""
    hazards = [Hazard("poisson", rate=rate) for rate in (5.0, 0.2, 0.0)] + [Hazard("times", times=(3.0, 3.0, 90.0))]
    for block in (8, 100_000):
        streams = [Stream(hazard, generator(0, 0, str(n))) for n, hazard in enumerate(hazards)]
        arrivals, got = Arrivals(streams, 100.0, block), []
        while arrivals.time < 100.0:
            got.append((arrivals.time, arrivals.source))
            arrivals.pop()
        alone = [Arrivals([Stream(hazard, generator(0, 0, str(n)))], 100.0) for n, hazard in enumerate(hazards)]
        expected = []
        for number, each in enumerate(alone):
            while each.time < 100.0:
                expected.append((each.time, number))
                each.pop()
        assert got == sorted(expected)
        assert len(got) > 400


def test_lemons_speed_the_clock_up() -> None:
    """No lemon, no arrival; between changes the rate is theirs: 1/s each, ten from 100 s on, one from 200 s on."""
    counts = np.zeros(3)
    for seed in range(50):
        stream = LemonStream(Hazard("poisson", rate=4.0), 0.25, 1.0, generator(seed, 0, "a"))
        assert math.isinf(stream.time)
        for phase, (start, lemons) in enumerate(((0.0, 0), (100.0, 10), (200.0, 1))):
            stream.change(start, lemons)
            while stream.time < start + 100.0:
                counts[phase] += 1
                stream.pop()
    assert counts[0] == 0
    assert counts[1] == pytest.approx(50_000, abs=4 * math.sqrt(50_000))
    assert counts[2] == pytest.approx(5_000, abs=4 * math.sqrt(5_000))


PLAN = CampaignPlan(phases=(Phase("a", 1, 1.0, 1.0, (Tier("s", 1, None, 0.0, 0.0, 0.0),)),), machines=100)


def test_marks_follow_their_probabilities() -> None:
    """Machines lost, bursts, wrong diagnoses and lognormal detection of 4,000 arrivals."""
    failure = JobFailure(
        "a", Hazard("poisson", rate=1.0), detection=Duration(10.0, 0.5), wrong_diagnosis=0.1, machine_share=0.5,
        machines=((1, 0.7), (4, 0.3)), burst=(0.2, 5),
    )  # fmt: skip
    marks = Marks(failure, PLAN, generator(0, 0, "a"))
    rows = [marks.next() for _ in range(4000)]
    machines = [row.machines for row in rows]
    assert set(machines) == {0, 1, 4, 6, 9}
    assert machines.count(0) == pytest.approx(2000, abs=130)
    assert machines.count(9) == pytest.approx(4000 * 0.5 * 0.3 * 0.2, abs=45)
    assert statistics.median(row.detection for row in rows) == pytest.approx(10.0, rel=0.05)
    assert sum(row.wrong for row in rows) == pytest.approx(200, abs=60)
    assert not any(row.wrong and row.machines == 0 for row in rows)


def test_marks_do_not_depend_on_each_other() -> None:
    """Common random numbers: another restart or detection leaves machines, victims and repairs alone."""
    first = JobFailure("a", Hazard("poisson", rate=1.0), detection=Duration(10.0, 0.5), machines=((1, 0.7), (4, 0.3)))
    second = first._replace(detection=Duration(99.0), restart=Duration(5.0, 2.0), wrong_diagnosis=0.5)
    one, other = (Marks(each, PLAN, generator(0, 0, "a")) for each in (first, second))
    other.skip()
    one.next()
    for _ in range(200):
        a, b = one.next(), other.next()
        assert (a.machines, a.victim, a.repair, a.cured) == (b.machines, b.victim, b.repair, b.cured)
