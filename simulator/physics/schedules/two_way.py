"""Schedules in which microbatches run through the ranks in both directions: ZB-V, DualPipe and DualPipeV.

In a V a rank holds two stages, r and 2p - 1 - r: the forward comes back to the rank from which it started, so that the
last stage's backward begins where the first forwards end. DualPipe instead keeps a second copy of the model, upside
down: stage s lives on rank s for the first half of the microbatches and on rank p - 1 - s for the second half.

Sources: ZB-V is arXiv 2401.10241, section 6, in the order that PyTorch's ScheduleZBVZeroBubble gives it. DualPipe is
DeepSeek-V3, arXiv 2412.19437, section 3.2.1, and DualPipeV its half, both in the order of deepseek-ai/DualPipe.

Limits: the F and B that DualPipe runs side by side are one after the other here.

Pinned by tests/physics/test_schedules.py and tests/physics/test_bubbles.py.
"""

from __future__ import annotations

from collections import deque

from simulator.physics.schedules.actions import Action, Table


def zbv(pp: int, num_microbatches: int) -> Table:
    """Two stages a rank in a V, no bubble with equal times, 1F1B's activations (arXiv 2401.10241, section 6)."""
    rows = (_zbv_row(pp, rank, max(num_microbatches, 2 * pp - 1)) for rank in range(pp))
    return tuple(tuple(action for action in row if action.microbatch < num_microbatches) for row in rows)


def _zbv_row(pp: int, rank: int, count: int) -> list[Action]:
    walk = _Walk((rank, 2 * pp - 1 - rank), ("I", "I"))
    walk.forward(*[0] * (2 * (pp - rank) - 1), *[1, 0] * rank)
    for _ in range(pp - rank):
        walk.forward(1)
        walk.backward(1)
        walk.weight(1)
    while walk.forwards[1] < walk.forwards[0] or walk.forwards[0] < count:
        for chunk in (0, 1):
            if walk.forwards[chunk] < count:
                walk.forward(chunk)
            walk.backward(chunk)
            walk.weight(chunk)
    for _ in range(rank):
        walk.backward(0)
        walk.backward(1)
    for _ in range(pp - rank):
        walk.backward(0)
        walk.weight(0)
    walk.weight(*[1] * len(walk.owed[1]), *[0] * len(walk.owed[0]))
    return walk.row


def dualpipe(pp: int, num_microbatches: int) -> Table:
    """Two copies of the model, one upside down, half of the microbatches in each direction (arXiv 2412.19437)."""
    half = num_microbatches // 2
    rows = []
    for rank in range(pp):
        upper = rank >= pp // 2
        # the direction in which a rank is nearer to the input comes first
        directions = ((pp - 1 - rank, half), (rank, 0)) if upper else ((rank, 0), (pp - 1 - rank, half))
        stages = directions[0][0], directions[1][0]
        row = _dual_row(pp // 2, min(rank, pp - 1 - rank), half, stages, first=(directions[0][1], directions[1][1]))
        rows.append(tuple(row))
    return tuple(rows)


def dualpipev(pp: int, num_microbatches: int) -> Table:
    """DualPipe cut in half: its two directions are the two arms of a V (deepseek-ai/DualPipe, DualPipeV)."""
    rows = (_dual_row(pp, rank, num_microbatches, (rank, 2 * pp - 1 - rank), first=(0, 0)) for rank in range(pp))
    return tuple(map(tuple, rows))


def _dual_row(depth: int, rank: int, count: int, stages: tuple[int, int], *, first: tuple[int, int]) -> list[Action]:
    """Order of a rank, as deepseek-ai/DualPipe runs it, in eight steps.

    Parameters
    ----------
    depth, rank
        Half as many ranks as there are stages, and the place among them, counted from the input of arm 0.
    count
        Microbatches of each arm.
    stages, first
        Stage of each arm, and number of its first microbatch.
    """
    behind = depth - rank - 1
    walk = _Walk(stages, ("B", "B"), first)
    walk.forward(*[0] * (2 * behind), *[0, 1] * (rank + 1))
    for _ in range(behind):
        walk.split(1)
        walk.weights(1)
        walk.forward(1)
    for _ in range(count - 2 * depth + rank + 1):
        for forward, backward in ((0, 1), (1, 0)):
            walk.forward(forward)
            walk.backward(backward)
    for _ in range(behind):
        walk.backward(1)
        walk.forward(1)
        walk.backward(0)
    # the second half of these is split
    arms = [1, 0] * (rank + 1)
    for arm in arms[: rank + 1]:
        walk.backward(arm)
    for arm in arms[rank + 1 :]:
        walk.split(arm)
    for _ in range(behind):
        walk.weights(1)
        walk.split(0)
    walk.weights(rank + 1)
    return walk.row


class _Walk:
    """A rank's row as it grows: counters of the microbatches of its two chunks, and the weight gradients owed."""

    def __init__(self, stages: tuple[int, int], whole: tuple[str, str], first: tuple[int, int] = (0, 0)) -> None:
        self.stages, self.whole, self.first = stages, whole, first
        self.row: list[Action] = []
        self.forwards, self.backwards = [0, 0], [0, 0]
        self.owed: tuple[deque[Action], deque[Action]] = (deque(), deque())
        self._queue: deque[Action] = deque()

    def forward(self, *chunks: int) -> None:
        """One F of each chunk named."""
        for chunk in chunks:
            self._add(chunk, "F", self.forwards)

    def backward(self, chunk: int) -> None:
        """A backward: whole, or its I where the schedule splits all."""
        kind = self.whole[chunk]
        self._add(chunk, kind, self.backwards)
        if kind == "I":
            self.owed[chunk].append(self.row[-1]._replace(kind="W"))

    def weight(self, *chunks: int) -> None:
        """The oldest W owed by each chunk named."""
        self.row += [self.owed[chunk].popleft() for chunk in chunks]

    def split(self, chunk: int) -> None:
        """The I of a chunk, its W to come in turn."""
        self._add(chunk, "I", self.backwards)
        self._queue.append(self.row[-1]._replace(kind="W"))

    def weights(self, number: int) -> None:
        """The oldest Ws of `split`, of either chunk."""
        self.row += [self._queue.popleft() for _ in range(number)]

    def _add(self, chunk: int, kind: str, counter: list[int]) -> None:
        self.row.append(Action(self.stages[chunk], kind, self.first[chunk] + counter[chunk]))
        counter[chunk] += 1
