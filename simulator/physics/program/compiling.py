"""Operations → steps: the program of one rank class, with every collective resolved to its call.

Kernels and collectives that only this class takes part in form chains; what the compute stream shares with other
classes, or puts beside itself, stands alone.

Pinned by tests/physics/program/test_build.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.physics.operations import Await, Collective, Kernel, Launch
from simulator.physics.program.assembly import Assembly, need_of
from simulator.physics.program.bodies import Counted
from simulator.physics.program.calls import Calls
from simulator.physics.program.layout import Need
from simulator.physics.program.pace import IDEAL, Pace
from simulator.physics.program.steps import Body, Call, Chain, Join, Message, Segment, Shared, Start, Step, Task
from simulator.physics.schedules.tables import Action
from simulator.scenario.units import Seconds


@dataclass(frozen=True)
class RankClass:
    """Ranks that do the same at the same time.

    Attributes
    ----------
    number, rank, count
        Its number, its first member, and how many it has.
    pipeline_rank
        Where it is in the pipeline.
    speed
        Of its GPUs, over a healthy one.
    """

    number: int
    rank: int
    count: int
    pipeline_rank: int
    speed: float


class Compiler:
    """Compiles the program of a rank class."""

    def __init__(
        self, own: RankClass, assembly: Assembly, calls: Calls, gradient_norm: Call, pace: Pace = IDEAL
    ) -> None:
        self.own, self.assembly, self.calls, self.gradient_norm = own, assembly, calls, gradient_norm
        self.pace = pace
        self._messages: dict[Need, Call] = {}
        self._seen: list[Counted] = []
        self._pieces: dict[int, Segment | Step] = {}
        self._chains: dict[tuple[int, ...], list[Step]] = {}

    def prologue(self) -> Body:
        """Before the first action."""
        return self._body(self.assembly.prologue(self.own.pipeline_rank))

    def epilogue(self) -> Body:
        """After the last action."""
        return self._body(self.assembly.epilogue(self.own.pipeline_rank))

    def tasks(self) -> Iterator[Task]:
        """Every action in schedule order; equal actions share one body."""
        assembly = self.assembly
        compiled: dict[tuple[str, int, bool], Body] = {}
        # whom a stage's messages come from and go to depends on the microbatch only where stages have two homes
        ends: dict[tuple[str, int], tuple[Message | None, Message | None]] = {}
        for action in assembly.table[self.own.pipeline_rank]:
            key = assembly.body_key(action)
            if key not in compiled:
                compiled[key] = self._body(assembly.body(key), launched=True)
            place = action.kind, action.stage
            if assembly.homes.copied or place not in ends:
                target = assembly.sent(action)
                ends[place] = self._message(action), None if target is None else self._message(target)
            received, sent = ends[place]
            microbatch = action.microbatch
            yield Task(
                str(action),
                None if received is None else Message(received.call, received.kind, received.stage, microbatch),
                compiled[key],
                None if sent is None else Message(sent.call, sent.kind, sent.stage, microbatch),
            )

    def _message(self, action: Action) -> Message | None:
        """The transfer that an action waits for."""
        need = self.assembly.message_need(action)
        if need is None:
            return None
        if need not in self._messages:
            self._messages[need] = self.calls.call(need, self.own.rank)
        kind = "B" if action.kind == "I" else action.kind  # the same gradient, whether the sender splits its backward
        return Message(self._messages[need], kind, action.stage, action.microbatch)

    def _body(self, operations: list[Counted], *, launched: bool = False) -> Body:
        """Steps of a list of operations; those of an action are `launched` one by one by the host."""
        # layers repeat: their operations are the same objects, and so are what they become
        steps: list[Step] = []
        run: list[Counted] = []
        for operation in operations:
            key = id(operation)
            if key not in self._pieces:
                self._seen.append(operation)  # whoever is known by its identity has to stay alive
                self._pieces[key] = self._segment(*operation) or self._step(operation.operation)
            piece = self._pieces[key]
            if isinstance(piece, Segment):
                run.append(operation)
                continue
            steps += self._chain(run)
            run = []
            steps.append(piece)
        return (*steps, *self._chain(run), *self._beyond(operations, launched=launched))

    def _beyond(self, operations: list[Counted], *, launched: bool) -> list[Step]:
        """What a body takes beyond its kernels: the slowest rank, and the host where it is slower than the GPU."""
        if not self.pace.straggling and not (launched and self.pace.launch) and not self.pace.check:
            return []
        pieces = [self._pieces[id(operation)] for operation in operations]
        segments = [piece for piece in pieces if isinstance(piece, Segment)]
        waiting = sum(segment.seconds for segment in segments if segment.kernel) * self.pace.straggling
        # calls count as they would run alone: what shares links with them is not the host's, and depends on the folding
        calls = [piece.call for piece in pieces if isinstance(piece, Segment | Shared) and piece.call is not None]
        busy = sum(segment.seconds for segment in segments if segment.call is None) + waiting
        busy += sum(self.calls.alone(call) for call in calls)
        launches = sum(not isinstance(piece, Join) for piece in pieces) if launched else 0
        host = launches * self.pace.launch + self._checked(operations)
        if launched and self.pace.product:
            kernels = (each.operation for each in operations if isinstance(each.operation, Kernel))
            host += sum(kernel.products - 1 for kernel in kernels) * self.pace.product
        gap = host - (0.0 if self.pace.blocking else busy)
        found = [Segment(waiting, "imbalance", False), Segment(gap, "host", False)]
        return _chain([segment for segment in found if segment.seconds > 0])

    def _checked(self, operations: list[Counted]) -> Seconds:
        """Host time in which the members of every collective compare what they are about to run, one after another."""
        if not self.pace.check:
            return 0.0
        axes = self.calls.layout.axes
        groups = [op.axis for op, _ in operations if isinstance(op, Collective | Launch) and op.axis != "world"]
        return self.pace.check * sum(int(axes[axis].ranks.shape[1]) for axis in groups)

    def _chain(self, run: list[Counted]) -> list[Step]:
        key = tuple(map(id, run))
        if key not in self._chains:
            pieces = (self._pieces[each] for each in key)
            self._chains[key] = _chain([piece for piece in pieces if isinstance(piece, Segment)])
        return self._chains[key]

    def _segment(self, operation: object, state: str) -> Segment | None:
        if isinstance(operation, Kernel):
            if state == "host":
                return Segment(operation.seconds, state, False)
            return Segment(self.pace.kernel(operation) / self.own.speed, state, True)
        if isinstance(operation, Collective) and operation.axis != "world":
            call = self._call(operation)
            if len(call.members) == 1:
                return Segment(call.seconds, f"exposed_{call.axis}", False, call)
        return None

    def _step(self, operation: object) -> Step:
        if isinstance(operation, Await):
            return Join(operation.tag)
        if isinstance(operation, Launch):
            return Start(operation.tag, self._call(operation))
        assert isinstance(operation, Collective)
        return Shared(self.gradient_norm if operation.axis == "world" else self._call(operation))

    def _call(self, operation: Collective | Launch) -> Call:
        need = need_of(operation, self.own.pipeline_rank, self.assembly.pp)
        assert need is not None
        return self.calls.call(need, self.own.rank)


def _chain(run: list[Segment]) -> list[Step]:
    """Fuse a run of segments; neighbouring kernels of the same state become one."""
    if not run:
        return []
    fused: list[Segment] = []
    for segment in run:
        if fused and segment.kernel and fused[-1].kernel and fused[-1].state == segment.state:
            fused[-1] = fused[-1]._replace(seconds=fused[-1].seconds + segment.seconds)
        else:
            fused.append(segment)
    parts: dict[str, float] = {}
    for segment in fused:
        parts[segment.state] = parts.get(segment.state, 0.0) + segment.seconds
    used = frozenset(c for segment in fused if segment.call is not None for c in segment.call.constraints)
    return [Chain(tuple(fused), sum(segment.seconds for segment in fused), tuple(parts.items()), used)]
