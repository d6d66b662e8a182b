"""Coflows in time, against hand-worked shares and an exact event-by-event oracle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.network import Network
from simulator.errors import TopologyError
from simulator.physics.program.steps import Coflow


class Arrival(NamedTuple):
    """`size` bytes of coflow `index` posted at `time`."""

    time: float
    index: int
    size: float


def coflow(usage: dict[int, float], capacity: Sequence[float], *, weight: float = 1.0, cap: float = math.inf) -> Coflow:
    """A coflow with the solo rate that follows from its usage."""
    solo = min([cap, *(capacity[link] / share for link, share in usage.items())])
    return Coflow("test", tuple(usage), tuple(usage.values()), weight, cap, solo)


def run(
    coflows: Sequence[Coflow], capacity: Sequence[float], arrivals: Sequence[Arrival], kind: type[Network] = Network
) -> tuple[list[float], Network]:
    """When each arrival is delivered, and the network afterwards."""
    env = simpy.Environment()
    network = kind(env, tuple(coflows), tuple(capacity))
    ends = [math.nan] * len(arrivals)

    def post(place: int, arrival: Arrival) -> Iterator[simpy.Event]:
        if arrival.time:
            yield env.timeout(arrival.time)
        yield network.transfer(arrival.index, arrival.size)
        ends[place] = env.now

    for place, arrival in enumerate(arrivals):
        env.process(post(place, arrival))
    env.run()
    return ends, network


# --- worked examples -------------------------------------------------------------------------------------------------


def test_alone_a_coflow_takes_its_size_over_its_rate() -> None:
    """A rate is bytes/s on the busiest edge: half the usage of a link gives twice the rate."""
    capacity = [10.0, 8.0]
    coflows = [coflow({0: 1.0}, capacity), coflow({0: 0.5, 1: 1.0}, capacity), coflow({0: 1.0}, capacity, cap=4.0)]
    for index, rate in enumerate([10.0, 8.0, 4.0]):
        ends, network = run(coflows, capacity, [Arrival(0.0, index, 40.0)])
        assert ends == [40.0 / rate]
        assert network.solves == 0, "nothing is shared, so nothing has to be solved"


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_coflows_share_equally(count: int) -> None:
    """n equal coflows on a link end together, n times as late as one alone, with one solve."""
    capacity = [10.0]
    ends, network = run([coflow({0: 1.0}, capacity)], capacity, [Arrival(0.0, 0, 30.0)] * count)
    assert ends == [pytest.approx(count * 3.0, rel=1e-12)] * count
    assert network.solves == 1


def test_rates_change_when_a_coflow_starts_and_when_it_ends() -> None:
    """Link of 10 B/s. A: 100 B at 0 s; B: 20 B at 4 s.

    By 4 s A has moved 40 B. Then both have 5 B/s: B ends at 4 + 20/5 = 8 s, when A has 60 - 20 = 40 B left, which take
    4 s at 10 B/s: A ends at 12 s.
    """
    capacity = [10.0]
    ends, network = run([coflow({0: 1.0}, capacity)], capacity, [Arrival(0.0, 0, 100.0), Arrival(4.0, 0, 20.0)])
    assert ends == [12.0, 8.0]
    assert network.solves == 1


def test_a_newcomer_can_make_another_coflow_faster() -> None:
    """Links A and B of 1 B/s; 1 uses A, 2 uses A and B, 3 uses B: 1/2 each. At 1 s coflow 4 starts on A.

    Now A gives 1/3 to each of 1, 2 and 4, and 3 gets 2/3. Of its 10 B coflow 3 has 9.5 left at 1 s. Coflow 4 (1 B) ends
    at 1 + 3 = 4 s, when 3 has 7.5 left; back at 1/2, with 2 (10 B: 0.5 + 1 done, 8.5 left, 17 s) until 3 ends at
    4 + 15 = 19 s, when 2 has 1 B left, half of A, and ends at 21 s, as 1 does.
    """
    capacity = [1.0, 1.0]
    coflows = [coflow(usage, capacity) for usage in ({0: 1.0}, {0: 1.0, 1: 1.0}, {1: 1.0}, {0: 1.0})]
    arrivals = [Arrival(0.0, 0, 10.0), Arrival(0.0, 1, 10.0), Arrival(0.0, 2, 10.0), Arrival(1.0, 3, 1.0)]
    ends, _ = run(coflows, capacity, arrivals)
    assert ends == pytest.approx([21.0, 21.0, 19.0, 4.0], rel=1e-12)


def test_shares_follow_weights_and_what_a_cap_leaves() -> None:
    """Link of 12 B/s: weights 1 and 2 get 4 and 8; capped at 3 the second leaves 9 to the first."""
    capacity = [12.0]
    plain, double = coflow({0: 1.0}, capacity), coflow({0: 1.0}, capacity, weight=2.0)
    ends, _ = run([plain, double], capacity, [Arrival(0.0, 0, 4.0), Arrival(0.0, 1, 8.0)])
    assert ends == pytest.approx([1.0, 1.0], rel=1e-12)
    slow = coflow({0: 1.0}, capacity, weight=2.0, cap=3.0)
    ends, _ = run([plain, slow], capacity, [Arrival(0.0, 0, 9.0), Arrival(0.0, 1, 3.0)])
    assert ends == pytest.approx([1.0, 1.0], rel=1e-12)


# --- edges -----------------------------------------------------------------------------------------------------------


def test_nothing_to_move_takes_no_time() -> None:
    """Zero bytes, and coflows that nothing holds back, are delivered at once and disturb nobody."""
    capacity = [10.0, math.inf]
    free = Coflow("free", (), (), 1.0, math.inf, math.inf)
    coflows = [coflow({0: 1.0}, capacity), free, coflow({1: 1.0}, capacity)]
    arrivals = [Arrival(0.0, 0, 20.0), Arrival(1.0, 0, 0.0), *(Arrival(1.0, index, 1e12) for index in (1, 2, 2))]
    ends, network = run(coflows, capacity, arrivals)
    assert ends == [2.0, 1.0, 1.0, 1.0, 1.0]
    assert network.solves == 0


def test_a_link_without_capacity_is_refused() -> None:
    """A transfer that would never end is a TopologyError that names it, not a hang."""
    dead = Coflow("dp all_reduce stage 0", (0,), (1.0,), 1.0, math.inf, 0.0)
    with pytest.raises(TopologyError, match=r"dp all_reduce stage 0 .* without capacity"):
        run([dead], [0.0], [Arrival(0.0, 0, 1.0)])


def test_ends_within_rounding_are_one_instant() -> None:
    """Sizes that differ in the last bits end at the same time: what shares with them is solved once, not twice."""
    capacity = [10.0]
    noisy = 30.0 * (1 + 4e-16)
    arrivals = [Arrival(0.0, 0, 30.0), Arrival(0.0, 0, noisy), Arrival(0.0, 1, 100.0), Arrival(0.0, 1, 120.0)]
    ends, network = run([coflow({0: 1.0}, capacity)] * 2, capacity, arrivals)
    assert noisy != 30.0
    assert ends[0] == ends[1] == pytest.approx(12.0)
    assert network.solves == 2, "four together, then two"


def test_ends_in_different_components_are_one_instant() -> None:
    """What one end starts meets the other end's leftovers only if that end is not the same instant.

    Two links, a coflow on each, ending within rounding at 3 s. The first is followed by one that uses both links: it
    finds both free and is never solved with the dregs of the second.
    """
    capacity = [10.0, 10.0]
    coflows = [coflow(usage, capacity) for usage in ({0: 1.0}, {1: 1.0}, {0: 1.0, 1: 1.0})]
    env = simpy.Environment()
    network = Network(env, tuple(coflows), tuple(capacity))

    def first() -> Iterator[simpy.Event]:
        yield network.transfer(0, 30.0)
        yield network.transfer(2, 10.0)

    process = env.process(first())
    second = network.transfer(1, 30.0 * (1 + 4e-16))
    env.run()
    assert process.processed
    assert second.processed
    assert env.now == 4.0
    assert network.solves == 0


def test_a_start_within_rounding_of_an_end_finds_the_link_free() -> None:
    """A start at 3 s shares nothing with a coflow that ends four rounding errors later."""
    capacity = [10.0]
    arrivals = [Arrival(0.0, 0, 30.0 * (1 + 4e-16)), Arrival(3.0, 0, 10.0)]
    ends, network = run([coflow({0: 1.0}, capacity)], capacity, arrivals)
    assert ends == pytest.approx([3.0, 4.0], rel=1e-12)
    assert network.solves == 0


def test_an_end_that_moved_is_forgotten() -> None:
    """A would have ended at 10 s, as C on another link does; B slows it from 4 s to 8 s, and only C ends at 10 s."""
    capacity = [10.0, 10.0]
    coflows = [coflow({0: 1.0}, capacity), coflow({1: 1.0}, capacity)]
    arrivals = [Arrival(0.0, 1, 100.0), Arrival(0.0, 0, 100.0), Arrival(4.0, 0, 20.0)]
    ends, _ = run(coflows, capacity, arrivals)
    assert ends == [10.0, 12.0, 8.0]


def test_a_combination_is_solved_once() -> None:
    """Which coflows share is all that matters: neither when nor in which order they started."""
    capacity = [10.0, 10.0]
    coflows = [coflow({0: 1.0}, capacity), coflow({0: 1.0, 1: 0.5}, capacity)]
    once = [Arrival(0.0, 0, 10.0), Arrival(0.5, 1, 10.0)]
    again = [Arrival(10.0, 1, 10.0), Arrival(10.5, 0, 10.0)]
    ends, network = run(coflows, capacity, once + again)
    assert ends == pytest.approx([1.5, 2.0, 11.5, 12.0], rel=1e-12)
    assert network.solves == 1


def test_rates_are_solved_once_per_instant() -> None:
    """Starts at one instant are solved together, also those that are only brought about by others at that instant."""
    capacity = [10.0]
    env = simpy.Environment()
    network = Network(env, (coflow({0: 1.0}, capacity),) * 5, tuple(capacity))

    def late(hops: int) -> Iterator[simpy.Event]:
        yield env.timeout(1.0)
        for _ in range(hops):
            yield env.timeout(0.0)
        yield network.transfer(hops, 10.0)

    processes = [env.process(late(hops)) for hops in range(5)]
    env.run()
    assert all(process.processed for process in processes)
    assert env.now == pytest.approx(6.0, rel=1e-12)
    assert network.solves == 1


# --- laws and oracle -------------------------------------------------------------------------------------------------


def exact_rates(coflows: Sequence[Coflow], capacity: Sequence[float]) -> list[Fraction]:
    """Weighted max-min rates by progressive filling in exact arithmetic."""
    free = [Fraction(each) for each in capacity]
    rates: dict[int, Fraction] = {}
    while len(rates) < len(coflows):
        rising = [f for f in range(len(coflows)) if f not in rates]
        demand = [Fraction(0)] * len(capacity)
        for f in rising:
            for link, use in zip(coflows[f].constraints, coflows[f].usage, strict=True):
                demand[link] += Fraction(use) * Fraction(coflows[f].weight)
        full_at = {link: free[link] / total for link, total in enumerate(demand) if total}
        capped = {
            f: Fraction(coflows[f].cap) / Fraction(coflows[f].weight) for f in rising if coflows[f].cap < math.inf
        }
        level = min([*full_at.values(), *capped.values()])
        for f in rising:
            if capped.get(f) == level or any(full_at[link] == level for link in coflows[f].constraints):
                rates[f] = level * Fraction(coflows[f].weight)
                for link, use in zip(coflows[f].constraints, coflows[f].usage, strict=True):
                    free[link] -= Fraction(use) * rates[f]
    return [rates[f] for f in range(len(coflows))]


def exact_ends(coflows: Sequence[Coflow], capacity: Sequence[float], arrivals: Sequence[Arrival]) -> list[float]:
    """Fluid simulation from event to event: every rate from scratch, every number exact."""
    now, left = Fraction(0), {place: Fraction(arrival.size) for place, arrival in enumerate(arrivals)}
    ends = [math.nan] * len(arrivals)
    while left:
        active = [place for place in left if arrivals[place].time <= now]
        rates = exact_rates([coflows[arrivals[place].index] for place in active], capacity)
        due = [now + left[place] / rate for place, rate in zip(active, rates, strict=True)]
        due += [Fraction(arrivals[place].time) for place in left if arrivals[place].time > now]
        then = min(due)
        for place, rate in zip(active, rates, strict=True):
            left[place] -= rate * (then - now)
            if left[place] == 0:
                del left[place]
                ends[place] = float(then)
        now = then
    return ends


QUARTERS = st.integers(1, 40).map(lambda n: n / 4)


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[Coflow], list[float], list[Arrival]]:
    """A few coflows on a few links, posted at random times."""
    capacity = draw(st.lists(QUARTERS, min_size=1, max_size=4))
    links = st.integers(0, len(capacity) - 1)
    coflows = []
    for _ in range(draw(st.integers(1, 4))):
        usage = draw(st.dictionaries(links, st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=1))
        cap = draw(st.one_of(st.just(math.inf), QUARTERS))
        coflows.append(coflow(usage, capacity, weight=draw(st.sampled_from([1.0, 2.0, 3.0])), cap=cap))
    times = st.integers(0, 12).map(lambda n: n / 2)
    arrival = st.builds(Arrival, times, st.integers(0, len(coflows) - 1), QUARTERS)
    return coflows, capacity, draw(st.lists(arrival, min_size=1, max_size=8))


@given(traffic())
def test_deliveries_are_those_of_an_exact_simulation(case: tuple[list[Coflow], list[float], list[Arrival]]) -> None:
    """Every delivery comes when exact arithmetic, with no memory, component or timer, says so: bytes out = bytes in."""
    coflows, capacity, arrivals = case
    ends, _ = run(coflows, capacity, arrivals)
    assert ends == pytest.approx(exact_ends(coflows, capacity, arrivals), rel=1e-9)


class Watched(Network):
    """Forgets every solution, and checks rates against capacity."""

    def _shared_rates(self, component: list) -> tuple[float, ...]:  # type: ignore[type-arg]
        rates = super()._shared_rates(component)
        load = np.zeros(len(self.capacity))
        for flow, rate in zip(component, rates, strict=True):
            load[list(flow.coflow.constraints)] += np.array(flow.coflow.usage) * rate
            assert 0 < rate <= flow.coflow.solo_rate * (1 + 1e-12), "sharing is never quicker than being alone"
        assert (load <= self.capacity * (1 + 1e-12)).all()
        return rates

    def _assign(self, component: list) -> None:  # type: ignore[type-arg]
        self.known.clear()
        super()._assign(component)


@given(traffic())
def test_remembered_rates_are_fresh_rates_and_fit_the_links(
    case: tuple[list[Coflow], list[float], list[Arrival]],
) -> None:
    """Solving everything afresh gives the same deliveries to the last bit; no solution overloads a link."""
    coflows, capacity, arrivals = case
    ends, network = run(coflows, capacity, arrivals)
    fresh, watched = run(coflows, capacity, arrivals, Watched)
    assert ends == fresh
    assert network.solves <= watched.solves


@given(traffic())
def test_a_link_never_carries_more_than_its_capacity_allows(
    case: tuple[list[Coflow], list[float], list[Arrival]],
) -> None:
    """Bytes over a link between any start and any later end, of transfers inside that window, fit into it."""
    coflows, capacity, arrivals = case
    ends, _ = run(coflows, capacity, arrivals)
    for start in {arrival.time for arrival in arrivals}:
        for end in set(ends):
            load = np.zeros(len(capacity))
            for arrival, done in zip(arrivals, ends, strict=True):
                if arrival.time >= start and done <= end:
                    used = coflows[arrival.index]
                    load[list(used.constraints)] += np.array(used.usage) * arrival.size
            assert (load <= np.array(capacity) * max(0.0, end - start) * (1 + 1e-9)).all()


@given(traffic(), st.randoms(use_true_random=False))
def test_the_order_of_simultaneous_starts_does_not_matter(
    case: tuple[list[Coflow], list[float], list[Arrival]], random: object
) -> None:
    """Posting the same transfers in another order gives the same deliveries to the last bit."""
    coflows, capacity, arrivals = case
    order = list(range(len(arrivals)))
    random.shuffle(order)  # type: ignore[attr-defined]
    ends, _ = run(coflows, capacity, arrivals)
    shuffled, _ = run(coflows, capacity, [arrivals[place] for place in order])
    assert [ends[place] for place in order] == shuffled
