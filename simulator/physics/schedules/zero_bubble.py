"""Zero-bubble schedules on one chunk a rank: backward split into I, which others wait for, and W, which fills gaps.

Source: Zero Bubble Pipeline Parallelism, arXiv 2401.10241. ZB-H1 and ZB-H2 are drawn by hand (section 2): as 1F1B, but
the weight gradients of rank r come r (H1) or 2 r (H2) microbatches late, so that all ranks keep as many microbatches in
flight; ZB-H2 starts with 2 (p - r) - 1 forwards instead of p - r. ZB-1p and ZB-2p are found by the heuristic of section
3.1 (`automatic`) from measured times, in as much activation memory as 1F1B's first rank has, or twice as much.

A microbatch keeps all of its activations until its I; of the memory, what W needs stays until W (`weight_share`).

Limits: the heuristic takes one time per kind of action, the same on all ranks; the paper's integer program, which
improved its answers by little, is not run.

Pinned by tests/physics/test_schedules.py and tests/physics/test_bubbles.py.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import ceil
from typing import NamedTuple

from simulator.physics.schedules.actions import Action, Table
from simulator.scenario.units import Seconds


class Times(NamedTuple):
    """Seconds of a stage's forward, backward for the input, backward for the weights, and of a message."""

    forward: Seconds = 1.0
    input: Seconds = 1.0
    weight: Seconds = 1.0
    message: Seconds = 0.0

    @property
    def by_kind(self) -> dict[str, Seconds]:
        """Seconds of an action by its letter."""
        return {"F": self.forward, "B": self.input + self.weight, "I": self.input, "W": self.weight}


EQUAL = Times()

KEPT = 0.5
"""Share of a microbatch's activation memory that stays from I to W, where nobody says. Assumption: between the 0.37 of
the paper's models and the 0.94 of fused attention (`weight_share`)."""


def weight_share(*, hidden_size: int, heads: int, sequence_length: int, fused: bool) -> float:
    """Share of a microbatch's activation memory that stays from I to W.

    W needs inputs and output gradients of all linears, 32 s b h bytes; a layer keeps 34 s b h, and 5 a s s b of scores
    where attention is not fused (arXiv 2401.10241, table 1 and appendix; arXiv 2205.05198, equation 1).
    """
    scores = 0.0 if fused else 5 * heads * sequence_length / hidden_size
    return 32 / (34 + scores)


def zb_h1(pp: int, num_microbatches: int) -> Table:
    """1F1B with the weight gradients of rank r put off by r microbatches (arXiv 2401.10241, section 2.1)."""
    return _by_hand(pp, num_microbatches, [(pp - rank - 1, rank) for rank in range(pp)])


def zb_h2(pp: int, num_microbatches: int) -> Table:
    """Twice the forwards before the first backward, no bubble with equal times (arXiv 2401.10241, section 2.2)."""
    return _by_hand(pp, num_microbatches, [(2 * (pp - rank - 1), 2 * rank) for rank in range(pp)])


def _by_hand(pp: int, num_microbatches: int, shape: list[tuple[int, int]]) -> Table:
    """Per rank some forwards, then F I W in turn, W late by some microbatches, then what is left."""
    rows = []
    for rank, (warmup, delay) in zip(range(pp), shape, strict=True):
        forwards = [Action(rank, "F", microbatch) for microbatch in range(num_microbatches)]
        weights = [Action(rank, "W", microbatch) for microbatch in range(num_microbatches)]
        row = forwards[:warmup]
        for microbatch in range(num_microbatches):
            row += forwards[warmup + microbatch : warmup + microbatch + 1]
            row.append(Action(rank, "I", microbatch))
            row += weights[microbatch - delay : microbatch - delay + 1] if microbatch >= delay else []
        rows.append((*row, *weights[max(0, num_microbatches - delay) :]))
    return tuple(rows)


# The heuristic ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def automatic(pp: int, num_microbatches: int, times: Times, limit: int, kept: float = KEPT) -> Table:
    """Schedule by the heuristic of arXiv 2401.10241, section 3.1: the best of eight greedy walks.

    Before its first I a rank runs as many forwards as fit into the wait and the limit. Then one F and one I in turn; W
    fills a gap that is long enough for it, and a shorter one too where the rank has idled less than the worst one; W
    comes early where the limit asks for it. Three switches are tried both ways: an additional forward that delays the
    first I, forwards put off so that the next rank's backward comes first, and short gaps filled always or not.

    Parameters
    ----------
    times
        The same on all ranks.
    limit
        Activation memory of a rank, in microbatches.
    kept
        Share of a microbatch's memory that stays from I to W.

    Returns
    -------
    The table of the walk whose longest rank, from its first to its last action, is shortest.
    """
    switches = product((True, False), (True, False), (True, False))
    walks = [_Walk(pp, num_microbatches, times, (limit, kept), each) for each in switches]
    return min((walk.run() for walk in walks), key=lambda found: found[0])[1]


_ROUNDING = 1e-9  # of sums of shares


class _Walk:
    """One greedy walk: rows grow in time order, microbatch by microbatch."""

    def __init__(
        self, pp: int, count: int, times: Times, memory: tuple[int, float], switches: tuple[bool, bool, bool]
    ) -> None:
        self.pp, self.count, self.times = pp, count, times
        self.limit, self.kept = memory[0], max(memory[1], 0.01)  # something always stays
        self.extra_forward, self.backward_first, self.fill_short = switches
        self.rows: list[list[Action]] = [[] for _ in range(pp)]
        self.clock = [0.0] * pp
        self.idle = [0.0] * pp
        self.done = {kind: [0] * pp for kind in "FIW"}
        self.ends: dict[str, list[list[Seconds]]] = {kind: [[] for _ in range(pp)] for kind in "FIW"}
        self._seconds = times.by_kind

    def run(self) -> tuple[Seconds, Table]:
        """Walk; seconds of the longest rank and the table."""
        self._warm_up()
        for microbatch in range(1, self.count):
            for rank, wanted in enumerate(self._forwards_wanted()):
                if wanted:
                    self._put_filled(rank, "F")
            for rank in reversed(range(self.pp)):
                if rank == 0 and self.done["F"][0] == self.count:
                    self._flush(rank)
                self._put_filled(rank, "I")
            assert all(done == microbatch + 1 for done in self.done["I"])
        for rank in range(self.pp):
            self._flush(rank)
        first = [ends[0] - self.times.forward for ends in self.ends["F"]]
        return max(end - start for end, start in zip(self.clock, first, strict=True)), tuple(map(tuple, self.rows))

    def _arrival(self, rank: int, kind: str) -> Seconds:
        """When the input of a rank's next F or I is there."""
        source = rank + (-1 if kind == "F" else 1)
        if kind == "W" or not 0 <= source < self.pp:
            return 0.0
        return self.ends[kind][source][self.done[kind][rank]] + self.times.message

    def _put(self, rank: int, kind: str) -> None:
        start = max(self.clock[rank], self._arrival(rank, kind))
        if self.rows[rank]:
            self.idle[rank] += start - self.clock[rank]
        self.rows[rank].append(Action(rank, kind, self.done[kind][rank]))
        self.clock[rank] = end = start + self._seconds[kind]
        self.ends[kind][rank].append(end)
        self.done[kind][rank] += 1

    def _room(self, rank: int) -> float:
        """Memory that is free, in microbatches."""
        forwards, halves, weights = (self.done[kind][rank] for kind in "FIW")
        return self.limit - forwards + (1 - self.kept) * halves + self.kept * weights + _ROUNDING

    def _owes_weights(self, rank: int) -> bool:
        return self.done["W"][rank] < self.done["I"][rank]

    def _flush(self, rank: int) -> None:
        while self._owes_weights(rank):
            self._put(rank, "W")

    def _put_filled(self, rank: int, kind: str) -> None:
        """Put an F or I, with W where the limit asks for it and in the gap before it."""
        while kind == "F" and self._room(rank) < 1 and self._owes_weights(rank):
            self._put(rank, "W")
        arrival = self._arrival(rank, kind)
        while self._owes_weights(rank) and self.clock[rank] + self.times.weight <= arrival:
            self._put(rank, "W")
        gap = arrival - self.clock[rank]
        if gap > 0 and self._owes_weights(rank):
            spare = gap <= max(self.idle) - self.idle[rank]
            if self.fill_short or not spare:
                self._put(rank, "W")
        self._put(rank, kind)

    def _warm_up(self) -> None:
        """First forwards, then the first I of every rank."""
        for rank in range(self.pp):
            self._put(rank, "F")
        more, back = [0] * self.pp, self.clock[-1] + self.times.input
        for rank in reversed(range(self.pp - 1)):
            arrival, clock = back + self.times.message, self.clock[rank]
            while 1 + more[rank] < min(self.count, self.limit):
                longer = clock + self.times.forward
                if (longer > arrival) if self.extra_forward else (clock >= arrival):
                    break
                clock, more[rank] = longer, more[rank] + 1
            back = max(clock, arrival) + self.times.input
        for rank in range(1, self.pp):  # a rank cannot run more than the one before it has sent
            more[rank] = max(0, min(more[rank], more[rank - 1] - 1))
        for rank, number in enumerate(more):
            for _ in range(number):
                self._put(rank, "F")
        for rank in reversed(range(self.pp)):
            self._put(rank, "I")

    def _forwards_wanted(self) -> list[bool]:
        """Which ranks run a forward before their next I; one only if those behind it do, too."""
        wanted = [self._forward_wanted(rank) for rank in range(self.pp)]
        for rank in reversed(range(self.pp - 1)):
            wanted[rank] = wanted[rank] and (wanted[rank + 1] or self.done["F"][rank + 1] == self.count)
        return [want and done < self.count for want, done in zip(wanted, self.done["F"], strict=True)]

    def _forward_wanted(self, rank: int) -> bool:
        """Whether a forward fits before the next rank's backward comes, where that has been asked for."""
        forwards, behind = self.done["F"], rank + 1
        if forwards[rank] >= self.count:
            return False
        if not self.backward_first or behind == self.pp or forwards[rank] < forwards[behind] + 2:
            return True
        arrival = self.clock[behind] + self.times.forward + self.times.input + self.times.message
        if self.clock[rank] >= arrival:
            return False
        owed = self.done["I"][rank] - self.done["W"][rank]
        before = min(max(ceil((1 - self._room(rank)) / self.kept), 0), owed)
        if self.clock[rank] + self.times.forward + before * self.times.weight <= arrival:
            return True
        return arrival - self.clock[rank] > max(self.idle) - self.idle[rank]
