"""The alphabet of schedules: actions, tables of them, and on which rank each stage lives.

Pinned by tests/physics/test_schedules.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from simulator.errors import ScheduleError


class Action(NamedTuple):
    """One stage's work on one microbatch; printed as PyTorch does: ``2F0`` is stage 2, forward, microbatch 0.

    Attributes
    ----------
    stage
        Global index of the model slice, 0 at the input.
    kind
        ``F``, ``B``, ``I`` or ``W``.
    microbatch
        Index within the step.
    """

    stage: int
    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Table: TypeAlias = tuple[tuple[Action, ...], ...]
"""Per pipeline rank its actions in the order in which they run."""

IN_FLIGHT_CHANGE = {"F": 1, "B": -1, "I": 0, "W": -1}
"""What an action adds to the forwards whose backward is owed: a split backward is finished by its W."""

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")


def parse_action(text: str) -> Action:
    """Read what ``str(action)`` prints.

    Raises
    ------
    ScheduleError
        For anything else.

    Examples
    --------
    >>> parse_action("2F0")
    Action(stage=2, kind='F', microbatch=0)
    """
    match = _ACTION.fullmatch(text.strip())
    if match is None:
        raise ScheduleError(f"{text!r} is no action; '2F0' is stage 2, forward (F, B, I or W), microbatch 0")
    return Action(int(match[1]), match[2], int(match[3]))


class Homes:
    """On which pipeline rank a stage's action runs, as the table says.

    In a bidirectional schedule a stage lives on two ranks, and the microbatch decides.

    Attributes
    ----------
    stages_of_rank
        Stages on each rank, from the input on. [pp]
    """

    def __init__(self, table: Table) -> None:
        found = [sorted({action.stage for action in row}) for row in table]
        self.stages_of_rank = tuple(map(tuple, found))
        self._ranks: dict[int, list[int]] = {}
        for rank, stages in enumerate(found):
            for stage in stages:
                self._ranks.setdefault(stage, []).append(rank)
        shared = {stage for stage, ranks in self._ranks.items() if len(ranks) > 1}
        self._shared = {
            (action.stage, action.microbatch): rank
            for rank, row in enumerate(table)
            for action in (row if shared else ())
            if action.stage in shared
        }

    @property
    def num_stages(self) -> int:
        """Model slices, each counted once."""
        return len(self._ranks)

    @property
    def copied(self) -> bool:
        """Whether stages live on two ranks, each with parameters of its own."""
        return bool(self._shared)

    def rank(self, stage: int, microbatch: int) -> int:
        """Pipeline rank where a stage works on a microbatch."""
        ranks = self._ranks[stage]
        return ranks[0] if len(ranks) == 1 else self._shared[stage, microbatch]


def last_of_stage(row: Iterable[Action]) -> dict[int, Action]:
    """By stage, the action of a rank that completes its weight gradients: the last B or W."""
    return {action.stage: action for action in row if action.kind in "BW"}
