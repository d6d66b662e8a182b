"""Running a schedule's table with free communication, and proving it legal.

An action starts when its rank is free and its `predecessors` are done (and their messages there): that rule alone turns
a table into a timeline. A table that gets stuck, or that lacks or repeats an action, raises with the neighbourhood of
the place marked.

Pinned by tests/physics/test_schedules.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from operator import sub

from simulator.errors import ScheduleError
from simulator.physics.schedules.actions import IN_FLIGHT_CHANGE, Action, Table
from simulator.scenario.units import Seconds


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a table does when communication is free.

    Attributes
    ----------
    table
        What was run.
    starts, ends
        Seconds from the start of the step, in table order. [pp][actions]
    makespan
        Seconds to the end of the last action.
    busy
        Seconds of work. [pp]
    peak_in_flight
        Most forwards, counted in stages, whose backward (B, or I and W) is not finished. [pp]
    """

    table: Table
    starts: tuple[tuple[Seconds, ...], ...]
    ends: tuple[tuple[Seconds, ...], ...]
    makespan: Seconds
    busy: tuple[Seconds, ...]
    peak_in_flight: tuple[int, ...]

    @property
    def longest_rank(self) -> Seconds:
        """Seconds of the longest rank from its first action to its last."""
        rows = zip(self.starts, self.ends, strict=True)
        return max((ends[-1] - starts[0] for starts, ends in rows if ends), default=0.0)

    @property
    def bubble_fraction(self) -> float:
        """Waiting over total time, of a mean rank, where all ranks begin and end together."""
        return (self.makespan - sum(self.busy) / len(self.busy)) / self.makespan

    @property
    def own_bubble_fraction(self) -> float:
        """The same where each rank's time runs from its first action to its last: that of the longest rank.

        Source: arXiv 2401.10241, section 4.1: (cost - m (F + I + W)) / cost, cost being the longest rank's time.
        """
        return (self.longest_rank - sum(self.busy) / len(self.busy)) / self.longest_rank

    def timeline(self, rank: int) -> Iterator[tuple[Action, Seconds, Seconds]]:
        """Actions of a rank with their start and end, in order."""
        return zip(self.table[rank], self.starts[rank], self.ends[rank], strict=True)


def predecessors(action: Action, num_stages: int) -> tuple[Action, ...]:
    """Actions that must be done before this one can start, apart from those before it on its own rank.

    A forward needs the forward of the stage before; a backward (B or I) needs the backward of the stage behind and the
    forward of its own; W needs the I of its own stage. Both B and I hand the gradient on, so where a table mixes whole
    and split backwards, either stands in for the other.

    Examples
    --------
    >>> from simulator.physics.schedules.tables import parse_action
    >>> [str(need) for need in predecessors(parse_action("2B0"), num_stages=4)]
    ['3B0', '2F0']
    """
    stage, kind, microbatch = action
    if kind == "F":
        return (Action(stage - 1, "F", microbatch),) if stage else ()
    if kind == "W":
        return (Action(stage, "I", microbatch),)
    own = Action(stage, "F", microbatch)
    return (own,) if stage == num_stages - 1 else (Action(stage + 1, kind, microbatch), own)


def dry_run(
    table: Table, duration: Callable[[Action], Seconds], *, message: Seconds = 0.0, pairs: bool = False
) -> DryRun:
    """Run a table: every action starts as soon as its rank and its `predecessors` are done.

    One pass: a rank runs until it misses a predecessor, and is taken up again when that one is done.

    Parameters
    ----------
    table
        Per rank its actions.
    duration
        Seconds of an action.
    message
        Seconds from the end of an action until another rank can use what it hands on.
    pairs
        Whether an F followed by a whole B is one piece of work, as DualPipe's code runs it: it starts when both can,
        and hands both on when both are done.

    Raises
    ------
    ScheduleError
        When ranks wait for each other, or for what nobody runs; the message shows where.
    """
    columns = 1 + max((action.microbatch for row in table for action in row), default=0)
    gradients = columns * (1 + max((action.stage for row in table for action in row), default=0))
    done: list[tuple[Seconds, int] | None] = [None] * (2 * gradients)
    waiting: dict[int, list[int]] = {}
    starts: list[list[Seconds]] = [[] for _ in table]
    ends: list[list[Seconds]] = [[] for _ in table]
    pieces = [_pieces(row, pairs=pairs) for row in table]
    nexts = [0] * len(table)
    ready = list(reversed(range(len(table))))
    while ready:
        rank = ready.pop()
        for number in range(nexts[rank], len(pieces[rank])):
            piece = pieces[rank][number]
            wires = [_wires(action, columns, gradients) for action in piece]
            start = ends[rank][-1] if ends[rank] else 0.0
            for need in (need for output, needs in wires for need in needs if need != wires[0][0]):
                found = done[need]
                if found is None:
                    waiting.setdefault(need, []).append(rank)
                    break
                arrival = found[0] + message if message and found[1] != rank else found[0]
                if arrival > start:
                    start = arrival
            else:
                for action in piece:
                    starts[rank].append(start)
                    start += duration(action)
                    ends[rank].append(start)
                nexts[rank] = number + 1
                for action, (output, _) in zip(piece, wires, strict=True):
                    if action.kind != "W":
                        done[output] = start, rank
                        if output in waiting:
                            ready.extend(waiting.pop(output))
                continue
            break
    if waiting:
        raise ScheduleError(_stuck(table, [len(row) for row in ends]))
    return DryRun(
        table=table,
        starts=tuple(map(tuple, starts)),
        ends=tuple(map(tuple, ends)),
        makespan=max((row[-1] for row in ends if row), default=0.0),
        busy=tuple(sum(map(sub, *rows)) for rows in zip(ends, starts, strict=True)),
        peak_in_flight=tuple(int(max(_in_flight(row), default=0)) for row in table),
    )


def _pieces(row: Sequence[Action], *, pairs: bool) -> list[tuple[Action, ...]]:
    """Actions one by one, or an F and the B behind it together."""
    if not pairs:
        return [(action,) for action in row]
    second = {place + 1 for place, (one, two) in enumerate(pairwise(row)) if (one.kind, two.kind) == ("F", "B")}
    firsts = [place for place in range(len(row)) if place not in second]
    return [tuple(row[place : place + (2 if place + 1 in second else 1)]) for place in firsts]


def makespan(table: Table, seconds: Mapping[str, Seconds]) -> Seconds:
    """Makespan of the dry run of a table where an action's duration depends on its kind only.

    Several times quicker than `dry_run`, for tables of a hundred thousand actions.

    Raises
    ------
    ScheduleError
        As `dry_run`.
    """
    columns = 1 + max((action[2] for row in table for action in row), default=0)
    gradients = columns * (1 + max((action[0] for row in table for action in row), default=0))
    ends: list[Seconds] = [math.nan] * (2 * gradients)
    clocks, places = [0.0] * len(table), [0] * len(table)
    rows = [iter(row) for row in table]
    held: list[tuple[Action, ...]] = [() for _ in table]  # the action that waits
    waiting: dict[int, int] = {}
    ready = list(reversed(range(len(table))))
    while ready:
        rank = ready.pop()
        clock, place = clocks[rank], places[rank]
        for action in chain(held[rank], rows[rank]):
            stage, kind, microbatch = action
            forward = output = stage * columns + microbatch
            # a backward waits for its own forward too, which is on this rank and therefore over, or never comes
            need = forward - columns if kind == "F" else forward + gradients + columns
            if kind != "F":
                output += gradients
                if ends[forward] != ends[forward] or kind == "W":
                    need = output if kind == "W" else forward
            if 0 <= need < 2 * gradients:
                end = ends[need]
                if end != end:  # not a number: not done
                    waiting[need], held[rank] = rank, (action,)
                    break
                if end > clock:
                    clock = end
            clock += seconds[kind]
            place += 1
            if kind != "W":
                ends[output] = clock
                if output in waiting:
                    ready.append(waiting.pop(output))
        clocks[rank], places[rank] = clock, place
    if waiting:
        raise ScheduleError(_stuck(table, places))
    return max(clocks, default=0.0)


def _wires(action: Action, columns: int, gradients: int) -> tuple[int, tuple[int, ...]]:
    """Number of what an action hands on, and of what it needs.

    Outputs of forwards are numbered by stage and microbatch; `gradients` further on follow those of backwards. This
    says the same as `predecessors`, and is several times faster.
    """
    stage, kind, microbatch = action
    forward = stage * columns + microbatch
    if kind == "F":
        return forward, (forward - columns,) if stage else ()
    own = gradients + forward
    if kind == "W":
        return own, (own,)
    behind = own + columns
    return own, (forward, behind) if behind < 2 * gradients else (forward,)


def peak_activations(row: Sequence[Action], kept: float) -> float:
    """Most activation memory of a rank, in forwards; one whose I is done counts as `kept` until its W."""
    return max(_in_flight(row, kept), default=0.0)


def _in_flight(row: Sequence[Action], kept: float = 1.0) -> list[float]:
    """Forwards not yet undone after each action; a split backward is finished by its W."""
    change = {**IN_FLIGHT_CHANGE, "I": kept - 1.0, "W": -kept}
    return list(accumulate(change[action.kind] for action in row))


_ROUNDING = 1e-9


# Legality --------------------------------------------------------------------------------------------------


def check_table(
    table: Table,
    *,
    pp: int,
    vpp: int,
    num_microbatches: int,
    bounds: Sequence[float] | None = None,
    kept: float = 1.0,
    home: Callable[[int, int], int] | None = None,
) -> None:
    """Prove that a table is a legal schedule.

    Every stage runs every microbatch forward once and backward once (B, or I and W), on the rank where it lives; the
    dry run comes to its end; no rank ever has more forwards in flight than its bound.

    Parameters
    ----------
    table
        Per rank its actions.
    pp, vpp, num_microbatches
        Pipeline ranks, stages for each of them, microbatches in a step.
    bounds
        Most forwards in flight for each rank, for example from `in_flight_bound`; None leaves them free. [pp]
    kept
        What a forward still counts between its I and its W.
    home
        Rank of a stage and a microbatch, as `tables.home` says; stage % pp if left out.

    Raises
    ------
    ScheduleError
        With the grid, the place marked.
    """
    if len(table) != pp:
        raise ScheduleError(f"the table has {len(table)} ranks, but pp is {pp}")
    lives = home or (lambda stage, microbatch: stage % pp)
    owned: list[list[tuple[int, int]]] = [[] for _ in range(pp)]
    for stage in range(pp * vpp):
        for microbatch in range(num_microbatches):
            owned[lives(stage, microbatch)].append((stage, microbatch))
    for rank in range(pp):
        _check_row(table, rank, owned[rank], lives, (pp * vpp, num_microbatches))
    dry_run(table, lambda action: 1.0)
    for rank, bound in enumerate(bounds or ()):
        counts = _in_flight(table[rank], kept)
        place = next((place for place, count in enumerate(counts) if count > bound + _ROUNDING), None)
        if place is not None:
            raise _illegal(table, rank, place, f"forwards in flight: {counts[place]:g}, allowed are {bound:g}")


# What a stage may have run of a microbatch, as a sum of these: F before everything is for the dry run to check.
_BIT = {"F": 1, "B": 2, "I": 4, "W": 8}
_COMPLETE = (_BIT["F"] + _BIT["B"], _BIT["F"] + _BIT["I"] + _BIT["W"])


def _check_row(
    table: Table,
    rank: int,
    owned: list[tuple[int, int]],
    home: Callable[[int, int], int],
    sizes: tuple[int, int],
) -> None:
    """A row runs just what is on its rank, each F and B once; `owned` are its stages and microbatches."""
    stages, microbatches = sizes
    run = dict.fromkeys(owned, 0)
    for place, (stage, kind, microbatch) in enumerate(table[rank]):
        if kind not in _BIT:
            raise _illegal(table, rank, place, f"kind {kind!r} is none of {' '.join(_BIT)}")
        if not (0 <= stage < stages and 0 <= microbatch < microbatches):
            limits = f"stages 0 to {stages - 1} and microbatches 0 to {microbatches - 1}"
            raise _illegal(table, rank, place, f"there are {limits}")
        before = run.get((stage, microbatch))
        if before is None:
            raise _illegal(table, rank, place, f"stage {stage} lives on rank {home(stage, microbatch)}")
        if before & _BIT[kind]:
            raise _illegal(table, rank, place, "a second time")
        run[stage, microbatch] = after = before | _BIT[kind]
        if after & _BIT["B"] and after & (_BIT["I"] | _BIT["W"]):
            raise _illegal(table, rank, place, "a backward is either B, or I and W")
    for (stage, microbatch), found in run.items():
        if found not in _COMPLETE:
            kind = "F" if not found & _BIT["F"] else "W" if found & _BIT["I"] else "I" if found & _BIT["W"] else "B"
            raise _illegal(table, rank, len(table[rank]), f"{Action(stage, kind, microbatch)} is missing")


def _illegal(table: Table, rank: int, place: int, wrong: str) -> ScheduleError:
    row = table[rank]
    where = f" at {row[place]}" if place < len(row) else ""
    return ScheduleError(
        f"illegal schedule: rank {rank}{where}: {wrong}\n{_marked_grid(table, {rank: (place, wrong)})}"
    )


# Messages --------------------------------------------------------------------------------------------------

_SHOWN_BEFORE, _SHOWN_AFTER, _SHOWN_RANKS = 6, 3, 16


def _stuck(table: Table, places: Sequence[int]) -> str:
    """Say what every rank that did not reach its end waits for."""
    num_stages = 1 + max(action.stage for row in table for action in row)
    homes = {_gives(action): rank for rank, row in enumerate(table) for action in row if action.kind != "W"}
    done = {_gives(action) for row, place in zip(table, places, strict=True) for action in row[:place]}
    marks, waits_on = {}, {}
    for rank, place in enumerate(places):
        if place < len(table[rank]):
            needs = predecessors(table[rank][place], num_stages)
            need = next(need for need in needs if _gives(need) not in done)
            waits_on[rank] = home = homes.get(_gives(need))
            marks[rank] = (place, f"waits for {need}, {'which nobody runs' if home is None else f'on rank {home}'}")
    shown = marks if len(table) <= _SHOWN_RANKS else {rank: marks[rank] for rank in _root(waits_on)}
    return f"stuck schedule: {len(marks)} of {len(table)} ranks wait\n{_marked_grid(table, shown)}"


def _root(waits_on: Mapping[int, int | None]) -> list[int]:
    """Follow who waits for whom to the ring of ranks that wait for each other, or to the one that waits in vain."""
    path: list[int] = []
    rank: int | None = next(iter(waits_on))
    while rank is not None and rank not in path:
        path.append(rank)
        rank = waits_on[rank]
    return path[-1:] if rank is None else path[path.index(rank) :]


def _gives(action: Action) -> Action:
    """Name what an action hands on: a gradient is the same whether a B or an I made it."""
    return action._replace(kind="B") if action.kind == "I" else action


def _marked_grid(table: Table, marks: Mapping[int, tuple[int, str]]) -> str:
    """Show the neighbourhood of marked places (rank: place in its row, note), in table order."""
    shown = sorted(marks)[:_SHOWN_RANKS] if len(table) > _SHOWN_RANKS else range(len(table))
    lines = [row_name(rank, len(table)) + _marked_row(table[rank], *marks.get(rank, (None, ""))) for rank in shown]
    left_out = len(table) - len(lines)
    return "\n".join([*lines, f"({left_out} more ranks)"] if left_out else lines)


def _marked_row(row: Sequence[Action], place: int | None, note: str) -> str:
    middle = place or 0
    first, after = max(middle - _SHOWN_BEFORE, 0), middle + _SHOWN_AFTER + 1
    cells = [str(action) for action in row[first:after]]
    if place is not None:
        cells[place - first : place - first + 1] = [f">{row[place] if place < len(row) else '?'}<"]
    ends = ["…"] if after < len(row) else []
    return " ".join([*(["…"] if first else []), *cells, *ends, *([f"  {note}"] if note else [])])


def row_name(rank: int, pp: int) -> str:
    """Beginning of a rank's line."""
    return f"rank {rank:>{len(str(pp - 1))}} |"
