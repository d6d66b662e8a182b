"""What each pipeline rank does: the bodies of its actions and the messages between them, as operations.

Pinned by tests/physics/program/test_build.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from simulator.physics.operations import Await, Collective, Kernel, Launch
from simulator.physics.program.bodies import Bodies, Counted
from simulator.physics.program.layout import Need
from simulator.physics.schedules.actions import Action, Homes, Table, last_of_stage
from simulator.physics.stages import Stage


class Assembly:
    """The bodies of every rank's actions and the messages between them."""

    def __init__(self, bodies: Bodies, table: Table, stages: tuple[Stage, ...], pp: int) -> None:
        self.bodies, self.table, self.stages, self.pp = bodies, table, stages, pp
        self.homes = Homes(table)
        # the first forward and the last weight gradients of each stage, on each rank where it lives
        self.special: set[Action] = set()
        for actions in table:
            forwards = {action.stage: action for action in reversed(actions) if action.kind == "F"}
            self.special.update(forwards.values(), last_of_stage(actions).values())
        self._sent_bytes = bodies.sent_bytes
        self._cache: dict[tuple[str, int, bool], list[Counted]] = {}

    def own_stages(self, rank: int) -> tuple[Stage, ...]:
        """Stages on a pipeline rank."""
        return tuple(self.stages[stage] for stage in self.homes.stages_of_rank[rank])

    def prologue(self, rank: int) -> list[Counted]:
        """Before the first action."""
        return self.bodies.prologue(self.own_stages(rank))

    def epilogue(self, rank: int) -> list[Counted]:
        """After the last action."""
        return self.bodies.epilogue(self.own_stages(rank))

    def body_key(self, action: Action) -> tuple[str, int, bool]:
        """Actions with equal keys have equal bodies."""
        return action.kind, action.stage, action in self.special

    def body(self, key: tuple[str, int, bool]) -> list[Counted]:
        """Operations of an action."""
        if key not in self._cache:
            kind, stage, special = key
            if kind == "F":
                self._cache[key] = self.bodies.forward(self.stages[stage], first=special)
            else:
                self._cache[key] = self.bodies.backward(self.stages[stage], last=special, kind=kind)
        return self._cache[key]

    def _bodies(self) -> Iterable[tuple[int, list[Counted]]]:
        """Every different body with its pipeline rank."""
        for rank, actions in enumerate(self.table):
            yield rank, self.prologue(rank)
            yield from ((rank, self.body(key)) for key in dict.fromkeys(self.body_key(action) for action in actions))
            yield rank, self.epilogue(rank)

    def beside(self) -> set[str]:
        """Axes whose collectives run while the compute stream, or another axis' collective, does something else."""
        return set[str]().union(*(_beside(body) for _, body in self._bodies()))

    def flops(self, rank: int) -> float:
        """Matmul FLOPs that one GPU of a pipeline rank executes."""
        per_body = {}
        total = 0.0
        for action in self.table[rank]:
            key = self.body_key(action)
            if key not in per_body:
                per_body[key] = sum(op.flops for op, _ in self.body(key) if isinstance(op, Kernel))
            total += per_body[key]
        return total

    # --- messages ----------------------------------------------------------------------------------------------------

    def message_need(self, action: Action) -> Need | None:
        """The message that this action waits for, if it comes from another rank."""
        source = action.stage + (-1 if action.kind == "F" else 1)
        if action.kind == "W" or not 0 <= source < len(self.stages):
            return None
        sender, receiver = (self.homes.rank(stage, action.microbatch) for stage in (source, action.stage))
        return None if sender == receiver else Need("pp", "send_recv", self._sent_bytes, sender, receiver)

    def sent(self, action: Action) -> Action | None:
        """The action that waits for this one's output; of a gradient it may be a B or an I."""
        target = action.stage + (1 if action.kind == "F" else -1)
        waits = action.kind != "W" and 0 <= target < len(self.stages)
        return Action(target, action.kind, action.microbatch) if waits else None

    def needs(self) -> Iterable[Need]:
        """Every collective of the program."""
        for rank, body in self._bodies():
            needs = (need_of(operation, rank, self.pp) for operation, _ in body)
            yield from (need for need in needs if need is not None)
        for actions in self.table:
            found = {(action.kind, action.stage): action for action in actions}
            messages = map(self.message_need, found.values())
            yield from (need for need in messages if need is not None)


def need_of(operation: object, rank: int, pp: int) -> Need | None:
    """The need of a collective operation of a pipeline rank; the gradient norm is a call of its own."""
    if not isinstance(operation, Collective | Launch) or operation.axis == "world":
        return None
    if operation.axis == "embedding":
        return Need("embedding", operation.op, operation.size, 0, pp - 1)
    if operation.axis == "copies":
        return Need("copies", operation.op, operation.size, min(rank, pp - 1 - rank), max(rank, pp - 1 - rank))
    return Need(operation.axis, operation.op, operation.size, rank)


def _beside(body: list[Counted]) -> set[str]:
    """Axes of collectives that were launched and not awaited before something else runs."""
    found: set[str] = set()
    running: dict[str, str] = {}
    for operation, _ in body:
        if isinstance(operation, Launch):
            running[operation.tag] = operation.axis
            axes = set(running.values())
            found |= axes if len(axes) > 1 else set()
        elif isinstance(operation, Await):
            running.pop(operation.tag, None)
        else:
            found |= set(running.values())
    return found | set(running.values())
