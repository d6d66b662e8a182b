"""Stretches of bodies that several rank classes go through together, and where they may be one event.

A *stretch* is a run of chains and shared collectives in a body. Classes whose stretches share a collective, directly
or through others, form a *gang*; the n-th stretches of its members are one *meeting*. If nobody can disturb a meeting,
what happens in it follows from when each member begins its stretch, and need not be walked event by event (`gangs`).

Nobody can, if each member begins with everything joined that it has started, and each call of the meeting is *private*:
whatever else uses one of its links needs the compute stream of one of its members (a shared collective, a chain, a
blocking message), or has to be started by one of them. The members are inside the meeting until the call ends, so it
cannot run; nor can it slow their kernels.

All members take the same decision, before the step begins. A gang is given up where its members do not have as many
stretches, or those of a meeting do not have the same calls as often. A meeting is walked in detail where it has fewer
than two calls, where a member may have a collective beside it, or where a member could be through before the last one
has begun (then it does not depend on all).

Limits: no meeting reaches from one task into the next, or over a launch or a join.

Pinned by tests/engine/test_joint.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from simulator.engine.step.plans import CallPlan, ChainPlan, PlannedBody, Plans
from simulator.physics.program.steps import Body, Call, Join, Shared, Start, StepProgram
from simulator.physics.program.steps import Chain as ChainStep

Agreed: TypeAlias = list[dict[int, dict[int, "Stretch"]]]
"""Per rank class, by the place of the task and the step in its body: stretches to go through in one."""

_LEAST_CALLS = 2


class Stretch:
    """Steps [first, stop) of a body of a rank class; `gang` and `size` are its gang's, once it is agreed."""

    __slots__ = ("calls", "first", "gang", "rank", "size", "steps", "stop")

    def __init__(self, rank: int, first: int, steps: tuple[ChainPlan | CallPlan, ...]) -> None:
        self.rank, self.first, self.stop, self.steps = rank, first, first + len(steps), steps
        self.calls = frozenset(step for step in steps if isinstance(step, CallPlan))
        self.gang = self.size = -1


class Meet(NamedTuple):
    """A call of a meeting, and each member (by its number in the gang) with its chains before the call."""

    plan: CallPlan
    members: tuple[tuple[int, tuple[ChainPlan, ...]], ...]


class Meeting(NamedTuple):
    """What the members of a gang do in one stretch each: calls in an order in which they can start, chains after them.

    `whole` tells that the end of each member depends on the beginning of each.
    """

    meets: tuple[Meet, ...]
    tails: tuple[tuple[ChainPlan, ...], ...]
    whole: bool


def meeting_of(stretches: Sequence[Stretch]) -> Meeting | None:
    """How stretches, one of each member, go together; None where they do not."""
    number = {stretch.rank: place for place, stretch in enumerate(stretches)}
    ahead = [iter(stretch.steps) for stretch in stretches]
    chains: list[list[ChainPlan]] = [[] for _ in stretches]
    reach = [1 << place for place in range(len(stretches))]
    arrived: dict[CallPlan, list[int]] = {}
    meets: list[Meet] = []
    free = list(range(len(stretches)))
    while free:
        member = free.pop()
        for step in ahead[member]:
            if isinstance(step, ChainPlan):
                chains[member].append(step)
                continue
            there = arrived.setdefault(step, [])
            there.append(member)
            if len(there) == len(step.call.members):
                meets.append(Meet(step, tuple((each, tuple(chains[each])) for each in sorted(there))))
                known = 0
                for each in there:
                    known |= reach[each]
                for each in there:
                    reach[each], chains[each] = known, []
                free += arrived.pop(step)
            break
    if arrived or any(not set(meet.plan.call.members) <= number.keys() for meet in meets):
        return None
    everyone = (1 << len(stretches)) - 1
    return Meeting(tuple(meets), tuple(map(tuple, chains)), all(known == everyone for known in reach))


def agreed(plans: Plans) -> Agreed:
    """Stretches that all members of their gangs go through in one."""
    program = plans.program
    found: Agreed = [{} for _ in program.rank_counts]
    private = _Private(plans)
    rows = [list(_row(plans, rank, private)) for rank in range(len(found))]
    gangs = _gangs({stretch: None for row in rows for _, stretch, _ in row})
    columns: dict[int, dict[int, list[tuple[int, Stretch, bool]]]] = {}
    for rank, row in enumerate(rows):
        for entry in row:
            columns.setdefault(gangs[entry[1]], {}).setdefault(rank, []).append(entry)
    for gang, members in columns.items():
        for meeting in _meetings(list(members.values())):
            for place, stretch, _ in meeting:
                stretch.gang, stretch.size = gang, len(members)
                found[stretch.rank].setdefault(place, {})[stretch.first] = stretch
    return found


def _meetings(members: list[list[tuple[int, Stretch, bool]]]) -> Iterator[tuple[tuple[int, Stretch, bool], ...]]:
    """Meetings of a gang that can be gone through in one; none if its members do not fit together."""
    if len(members) == 1 or len({len(row) for row in members}) > 1:
        return
    tried: dict[tuple[Stretch, ...], Meeting | None] = {}
    taken = []
    for meeting in zip(*members, strict=True):
        stretches = tuple(stretch for _, stretch, _ in meeting)
        if stretches not in tried:
            tried[stretches] = meeting_of(stretches)
        known = tried[stretches]
        if known is None:
            return
        if known.whole and len(known.meets) >= _LEAST_CALLS and all(quiet for _, _, quiet in meeting):
            taken.append(meeting)
    yield from taken


def _gangs(stretches: Iterable[Stretch]) -> dict[Stretch, int]:
    """Number of the gang of each stretch: those that share a call, directly or through others, are in one."""
    parent: dict[object, object] = {}

    def root(each: object) -> object:
        while (above := parent.setdefault(each, each)) is not each:
            parent[each] = parent[above]
            each = above
        return each

    listed = list(stretches)
    for stretch in listed:
        for plan in stretch.calls:
            parent[root(stretch)] = root(plan)
    number: dict[object, int] = {}
    return {stretch: number.setdefault(root(stretch), len(number)) for stretch in listed}


# --- rows ------------------------------------------------------------------------------------------------------------


def _row(plans: Plans, rank: int, private: _Private) -> Iterator[tuple[int, Stretch, bool]]:
    """Stretches of a rank class in the order of the step: place of the task, stretch, all joined when it begins."""
    program = plans.program
    tasks = program.tasks[rank]
    known: dict[tuple[int, frozenset[tuple[str, int]]], tuple[list[tuple[Stretch, bool]], Counter[str]]] = {}
    cut: dict[int, list[Stretch]] = {}
    begun: Counter[str] = Counter()
    bodies = [program.prologue[rank], *(task.body for task in tasks), program.epilogue[rank]]
    for place, body in enumerate(bodies, -1):
        key = id(body), frozenset(begun.items())
        if key not in known:
            if id(body) not in cut:
                cut[id(body)] = list(_cut(rank, plans.body(body), private))
            known[key] = _walk(body, cut[id(body)], begun)
        stretches, begun = known[key]
        for stretch, quiet in stretches:
            yield place, stretch, quiet


def _cut(rank: int, body: PlannedBody, private: _Private) -> Iterator[Stretch]:
    """Cut a body into stretches; those without a call are left out."""
    run: list[ChainPlan | CallPlan] = []
    for place, step in enumerate((*body, None)):
        if isinstance(step, ChainPlan | CallPlan) and private.has(rank, step):
            run.append(step)
            continue
        if any(isinstance(each, CallPlan) for each in run):
            yield Stretch(rank, place - len(run), tuple(run))
        run = []


def _walk(body: Body, stretches: list[Stretch], begun: Counter[str]) -> tuple[list[tuple[Stretch, bool]], Counter[str]]:
    """Whether everything has been joined when each stretch of a body begins; what has not been at the end."""
    begun = begun.copy()
    found: list[tuple[Stretch, bool]] = []
    at = {stretch.first: stretch for stretch in stretches}
    for place, step in enumerate(body):
        if place in at:
            found.append((at[place], not begun))
        if isinstance(step, Start):
            begun[step.tag] += 1
        elif isinstance(step, Join) and begun[step.tag] == 1:
            del begun[step.tag]  # started twice under one tag: the first of them is never joined for certain
    return found, +begun


class _Private:
    """Tells which chains and calls nothing else can disturb, as long as their members are in a stretch."""

    def __init__(self, plans: Plans) -> None:
        self._users: dict[int, set[frozenset[int]]] = {}
        self._started: set[Call] = set()
        self._known: dict[CallPlan, bool] = {}
        program = plans.program
        contended = plans.contended
        for rank, bodies in enumerate(plans.bodies):
            for body, _ in bodies:
                for step in body:
                    if isinstance(step, ChainStep):
                        self._use(step.constraints & contended, frozenset({rank}))
                    elif isinstance(step, Shared | Start):
                        self._use(step.call.constraints & contended, frozenset(step.call.members))
                        if isinstance(step, Start):
                            self._started.add(step.call)
        for message in _messages(program):
            needed = frozenset(message.members) if program.blocking_p2p else frozenset[int]()
            self._use(message.constraints & contended, needed)

    def _use(self, constraints: Iterable[int], needed: frozenset[int]) -> None:
        for constraint in constraints:
            self._users.setdefault(constraint, set()).add(needed)

    def has(self, rank: int, step: ChainPlan | CallPlan) -> bool:
        """Whether a step of a rank class is private."""
        if isinstance(step, ChainPlan):
            return not step.contended or self._alone(step.contended, frozenset({rank}))
        if step not in self._known:
            own = frozenset(step.call.members)
            self._known[step] = step.call not in self._started and self._alone(step.contended, own)
        return self._known[step]

    def _alone(self, constraints: tuple[int, ...], own: frozenset[int]) -> bool:
        return all(not own.isdisjoint(others) for each in constraints for others in self._users[each])


def _messages(program: StepProgram) -> set[Call]:
    return {task.send.call for row in program.tasks for task in row if task.send is not None}
