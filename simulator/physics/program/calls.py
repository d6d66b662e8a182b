"""Collectives of a program: calls of coflows on the constraints that can bind, one for each class of groups.

All members of a class of groups run the same at the same time (`fold`), so one call stands for all of them, and its
coflows carry the traffic of all of them on the constraints.

Pinned by tests/physics/program/test_calls.py.
"""

from __future__ import annotations

import numpy as np

from simulator.physics.collectives.algorithms import Phase, Plan, phase_latency, rate_cap
from simulator.physics.collectives.groups import FloatArray, Pattern
from simulator.physics.program.fold import Fold
from simulator.physics.program.layout import PAIRS, Layout, Need
from simulator.physics.program.steps import Call, CallPhase, Coflow
from simulator.physics.sharing import max_min_rates
from simulator.scenario.units import Bytes, Seconds

EXPOSED_AS = {
    "tp": "tp", "etp": "tp", "cp": "cp", "ep": "ep", "pp": "pp",
    "dp": "dp", "edp": "dp", "embedding": "dp", "copies": "dp",
}  # fmt: skip
"""Breakdown key of an axis: expert tensor parallelism counts as tp, all else (gradients, parameters) as dp."""


class Calls:
    """All calls of a program, made when a rank class first asks for one; members share the object."""

    def __init__(self, layout: Layout, folded: Fold) -> None:
        self.layout, self.fold = layout, folded
        self.coflows: list[Coflow] = []
        self.capacity = (1.0,) * (int(folded.rows.row.max(initial=-1)) + 1)
        self._calls: dict[tuple[Need, int], Call] = {}
        self._alone: dict[Call, Seconds] = {}
        self._coflow_ids: dict[tuple[int, float], int] = {}
        self._terms: dict[tuple[int, int, float], FloatArray] = {}
        order = np.argsort(folded.rows.column, kind="stable")
        self._columns = folded.rows.column[order]
        self._rows, self._shares = folded.rows.row[order], folded.rows.share[order]
        self._class_count = int(folded.group_class.max(initial=-1)) + 1

    def call(self, need: Need, rank: int) -> Call:
        """Collective that a rank takes part in."""
        axis = self.layout.axes[need.axis]
        group_class = int(self.fold.group_class[axis.first + self.layout.group(need, rank)])
        key = (need, group_class)
        if key not in self._calls:
            self._calls[key] = self._build(need, group_class)
        return self._calls[key]

    def alone(self, call: Call) -> Seconds:
        """Duration of a call of one group that has all links to itself, also from groups of its own class."""
        return self._alone.get(call, call.seconds)

    def _build(self, need: Need, group_class: int) -> Call:
        axis = self.layout.axes[need.axis]
        group = int(self.fold.group_of_class[group_class]) - axis.first
        plan, place = self.layout.plan(need, int(axis.batch_of[group])), int(axis.place[group])
        phases = tuple(self._phase(need, plan, phase, group_class, place) for phase in plan.phases)
        classes = self.fold.rank_class[axis.ranks[group]].tolist()
        members = tuple(classes) if need.axis in PAIRS else tuple(sorted(set(classes)))
        used = frozenset(c for phase in phases for index, _ in phase.transfers for c in self.coflows[index].constraints)
        seconds, name = self._solo_seconds(phases), f"{need.axis}.{need.op}"
        axis_key, across = EXPOSED_AS.get(need.axis, "dp"), need.axis in PAIRS
        call = Call(name, axis_key, members, phases, seconds, used, across)
        self._alone[call] = sum(
            phase.latency + max((size / self.coflows[index].cap for index, size in phase.transfers), default=0.0)
            for phase in phases
        )
        return call

    def _phase(self, need: Need, plan: Plan, phase: Phase, group_class: int, place: int) -> CallPhase:
        key = (id(plan), id(phase), need.size)
        if key not in self._terms:
            self._terms[key] = phase_latency(plan, phase, need.size)
        transfers = []
        for pattern, wire in phase.traffic:
            if pattern.indptr[place] < pattern.indptr[place + 1]:
                cap = self._cap(plan, pattern, need.size, place)
                transfers.append((self._coflow(need, pattern, group_class, cap), need.size * wire))
        return CallPhase(float(self._terms[key][place]), tuple(transfers))

    def _cap(self, plan: Plan, pattern: Pattern, size: Bytes, place: int) -> float:
        key = (id(plan), id(pattern), size)
        if key not in self._terms:
            self._terms[key] = rate_cap(plan, pattern, size)
        return float(self._terms[key][place])

    def _coflow(self, need: Need, pattern: Pattern, group_class: int, cap: float) -> int:
        number, _ = self.layout.uses[id(pattern)]
        column = number * self._class_count + group_class
        if (column, cap) not in self._coflow_ids:
            self._coflow_ids[column, cap] = len(self.coflows)
            part = slice(*np.searchsorted(self._columns, [column, column + 1]).tolist())
            rows, shares = tuple(self._rows[part].tolist()), tuple(self._shares[part].tolist())
            solo = min(cap, min((1.0 / share for share in shares), default=np.inf))
            name = f"{need.axis} {need.op} stage {need.stage}"
            self.coflows.append(Coflow(name, rows, shares, pattern.weight, cap, solo))
        return self._coflow_ids[column, cap]

    def _solo_seconds(self, phases: tuple[CallPhase, ...]) -> Seconds:
        """Time of a call that has its constraints to itself."""
        return sum(
            phase.latency + drain([(self.coflows[index], size) for index, size in phase.transfers]) for phase in phases
        )


def drain(left: list[tuple[Coflow, Bytes]]) -> Seconds:
    """Time until the slowest of these transfers ends: they start together and share what they have in common."""
    seconds = 0.0
    while left:
        rates = [coflow.solo_rate for coflow, _ in left] if len(left) == 1 else _fair([coflow for coflow, _ in left])
        first = min(size / rate for (_, size), rate in zip(left, rates, strict=True))
        seconds += first
        rest = [(coflow, size - rate * first) for (coflow, size), rate in zip(left, rates, strict=True)]
        left = [(coflow, size) for (coflow, size), (_, before) in zip(rest, left, strict=True) if size > 1e-12 * before]
    return seconds


def _fair(coflows: list[Coflow]) -> list[float]:
    """Rates of coflows in progress at once."""
    links = np.concatenate([coflow.constraints for coflow in coflows]).astype(np.int64)
    rates = max_min_rates(
        np.ones(int(links.max(initial=-1)) + 1),
        np.cumsum([0, *(len(coflow.constraints) for coflow in coflows)]),
        links,
        np.concatenate([coflow.usage for coflow in coflows]),
        np.array([coflow.weight for coflow in coflows]),
        np.array([coflow.cap for coflow in coflows]),
    )
    return [float(rate) for rate in rates]
