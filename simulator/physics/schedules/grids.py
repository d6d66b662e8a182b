"""A schedule drawn as text.

Pinned by tests/physics/test_schedules.py.
"""

from __future__ import annotations

from simulator.physics.schedules.actions import Action, Table
from simulator.physics.schedules.execution import DryRun, dry_run, row_name

# Assumption for tables without times: a backward takes twice its forward, a half backward as long as the forward.
_NOMINAL_SECONDS = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


def format_grid(plan: Table | DryRun, *, width: int = 120) -> str:
    """Draw a schedule as text: a line per rank, time from left to right, to scale.

    ``F3----`` is the forward of microbatch 3 and dots are idle time; where ranks hold several stages it is ``2F3``,
    the stage first. A table without times is drawn with backwards twice as long as forwards.

    Parameters
    ----------
    plan
        A table or its dry run.
    width
        Columns of a line, at which it is cut with an ellipsis.

    Raises
    ------
    ScheduleError
        For a table that gets stuck.

    Examples
    --------
    >>> from simulator.physics.schedules.tables import build_table
    >>> print(format_grid(build_table("1f1b", pp=2, num_microbatches=2)))
    rank 0 |F0 F1 ..... B0--- .. B1---
    rank 1 |.. F0 B0--- F1 B1--- .....
    """
    run = _timed(plan)
    lines = [row_name(rank, len(run.table)) + row for rank, row in enumerate(_rows(run, width)[0])]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def wrap_grid(plan: Table | DryRun, *, width: int = 120) -> str:
    """Draw all of a schedule as text: as `format_grid`, in as many pieces as the width asks for, one below the other.

    Pieces are about equally long, cut no label in two, and say when they begin.

    Parameters
    ----------
    plan, width
        As in `format_grid`.

    Raises
    ------
    ScheduleError
        For a table that gets stuck.
    """
    run = _timed(plan)
    rows, scale, slot = _rows(run, None)
    names = [row_name(rank, len(rows)) for rank in range(len(rows))]
    room = max(width - len(names[0]), slot)
    length = max(map(len, rows), default=0)
    if length > room:  # pieces of one length
        slots = -(-length // slot)
        room = -(-slots // -(-slots // (room // slot))) * slot
    if length <= room:
        return "\n".join(name + row for name, row in zip(names, rows, strict=True))
    pieces = []
    first = 0
    while first < length:
        cut = _uncut(rows, first + room, first + room // 2)
        ends = [_label_end(row, cut) for row in rows]
        if max(ends) > first + room:  # every column cuts a label: leave room to finish them
            cut = first + room - slot
            ends = [_label_end(row, cut) for row in rows]
        lines = [f"from {first / scale:.4g}"]
        lines += [(name + row[first:end]).rstrip() for name, row, end in zip(names, rows, ends, strict=True)]
        pieces.append("\n".join(lines))
        rows = [row[:cut] + " " * (end - cut) + row[end:] for row, end in zip(rows, ends, strict=True)]
        first = cut
    return "\n\n".join(pieces)


def _label_end(row: str, cut: int) -> int:
    """Column where a label that begins before the cut ends; the cut itself where there is none."""
    end = cut
    while 0 < end < len(row) and row[end - 1] not in " .-" and row[end] not in " .-":
        end += 1
    return end


def _uncut(rows: list[str], last: int, first: int) -> int:
    """Last column at which no label is cut in two; the last of all where every column cuts one."""
    whole = (cut for cut in range(last, first, -1) if all(row[cut - 1 : cut] in ("", *" .-") for row in rows))
    return next(whole, last)


def _timed(plan: Table | DryRun) -> DryRun:
    return plan if isinstance(plan, DryRun) else dry_run(plan, lambda action: _NOMINAL_SECONDS[action.kind])


def _rows(run: DryRun, width: int | None) -> tuple[list[str], float, int]:
    """Row of every rank, columns of a second, and columns of the shortest action, rounded."""
    several = any(len({action.stage for action in row}) > 1 for row in run.table)
    longest = max((len(_label(action, several)) for row in run.table for action in row), default=1)
    lengths = {e - s for row in zip(run.starts, run.ends, strict=True) for s, e in zip(*row, strict=True) if e > s}
    shortest = min(lengths, default=1.0)
    # Where lengths are no multiples of the shortest, rounding to columns may eat the blank between two labels.
    whole = all(abs(length / shortest - round(length / shortest)) < 1e-6 for length in lengths)
    slot = longest + (1 if whole else 2)
    scale = slot / shortest
    columns = round(run.makespan * scale) + 1 if width is None else width
    return [_draw(run, rank, scale, several, columns) for rank in range(len(run.table))], scale, slot


def _label(action: Action, several: bool) -> str:
    return str(action) if several else f"{action.kind}{action.microbatch}"


def _draw(run: DryRun, rank: int, scale: float, several: bool, columns: int) -> str:
    """Draw the slots of a rank to scale, until the line is certainly full."""
    parts: list[str] = []
    drawn = 0
    for action, start, end in run.timeline(rank):
        parts.append(_stretch("", ".", round(start * scale) - drawn))
        parts.append(_stretch(_label(action, several), "-", round(end * scale) - round(start * scale)))
        drawn = round(end * scale)
        if drawn > columns:
            break
    parts.append(_stretch("", ".", min(round(run.makespan * scale), columns + 1) - drawn))
    return "".join(parts).rstrip()


def _stretch(label: str, mark: str, columns: int) -> str:
    """Stretch a label over some columns, the last of them blank where there is room."""
    return f"{label.ljust(columns - 1, mark)} "[:columns] if columns > 0 else ""
