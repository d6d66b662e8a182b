"""Pipeline schedules as tables: who does what, in which order, and what that costs when communication is free.

A model is cut into *stages*, numbered from the input to the output, which live on pipeline ranks: one on each, or
several *chunks* (Megatron's "virtual stages"); where, is up to the schedule (`home`). A step sends
`num_microbatches` microbatches forward through all stages and backward again. A *schedule* is nothing but an order:
for every rank the list of its actions, each a letter, a stage and a microbatch. Letters are PyTorch's:

    F  forward        B  full backward        I  backward for the input only        W  backward for the weights

(the zero-bubble authors write F, BW, B, W: their B is our I). Times are no part of a schedule. An action starts
when its rank is free and its `predecessors` are done; that rule alone turns a table into a timeline, here with
free communication (`dry_run`), in the engine with everything else.

The schedules that split no backward are GPipe (arXiv 1811.06965; here backwards run in the order of the forwards, as
PyTorch runs and the SC'21 paper draws it), 1F1B (PipeDream-Flush, arXiv 2006.09503; Megatron-LM's default) and
interleaved 1F1B (arXiv 2104.04473, section 2.2.2, in the exact order of Megatron-Core). With equal stages the first two
both take (m + p - 1) (tF + tB); interleaving divides that p - 1 by the number of chunks, at the price of more
activations in flight. Those that split it are in `zero_bubble` and `two_way`; what all of them cost with equal stages
is in `closed_forms`.

Limits: one order for the whole step, fixed beforehand; no reaction to late messages. Interleaved groups are pp
microbatches, Megatron's default; its `microbatch_group_size_per_vp_stage` is not modelled. Activations in flight
are counted in stages, not in bytes.

Pinned by tests/physics/test_schedules.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Protocol

from simulator.errors import ScheduleError
from simulator.physics.schedules.actions import Action as Action
from simulator.physics.schedules.actions import Table as Table
from simulator.physics.schedules.actions import parse_action as parse_action
from simulator.physics.schedules.two_way import dualpipe, dualpipev, zbv
from simulator.physics.schedules.zero_bubble import EQUAL, KEPT, Times, automatic, zb_h1, zb_h2
from simulator.scenario.explain import nearest
from simulator.scenario.pipeline import CHUNKS, microbatch_rule

# The schedules --------------------------------------------------------------------------------------------


def gpipe(pp: int, num_microbatches: int, vpp: int = 1) -> Table:
    """All forwards, then all backwards (arXiv 1811.06965, figure 2)."""
    return _build("gpipe", pp, num_microbatches, vpp)


def one_f_one_b(pp: int, num_microbatches: int, vpp: int = 1) -> Table:
    """As many forwards as there are ranks behind, then one forward and one backward in turn (arXiv 2006.09503)."""
    return _build("1f1b", pp, num_microbatches, vpp)


def interleaved(pp: int, num_microbatches: int, vpp: int) -> Table:
    """1F1B over `vpp` chunks a rank, as Megatron-Core orders it (arXiv 2104.04473, section 2.2.2).

    A rank runs its first chunk on pp microbatches, then its second on the same pp, and so on to its last chunk; then
    the next pp microbatches. Backwards run in the same order with the chunks reversed. Rank r first runs
    2 (pp - r - 1) + (vpp - 1) pp forwards, then alternates. With vpp = 1 Megatron falls back to 1F1B, and so do we.
    """
    return _build("interleaved", pp, num_microbatches, vpp)


class Builder(Protocol):
    """Builds a table from pipeline ranks, microbatches and chunks per rank."""

    def __call__(self, pp: int, num_microbatches: int, vpp: int) -> Table:
        """Build it."""


SCHEDULES: dict[str, Builder] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb-h1": lambda pp, num_microbatches, vpp: zb_h1(pp, num_microbatches),
    "zb-h2": lambda pp, num_microbatches, vpp: zb_h2(pp, num_microbatches),
    "zb-1p": lambda pp, num_microbatches, vpp: automatic(pp, num_microbatches, EQUAL, pp),
    "zb-2p": lambda pp, num_microbatches, vpp: automatic(pp, num_microbatches, EQUAL, 2 * pp),
    "zbv": lambda pp, num_microbatches, vpp: zbv(pp, num_microbatches),
    "dualpipe": lambda pp, num_microbatches, vpp: dualpipe(pp, num_microbatches),
    "dualpipev": lambda pp, num_microbatches, vpp: dualpipev(pp, num_microbatches),
}

AUTOMATIC = {"zb-1p": 1, "zb-2p": 2}
"""Schedules that are found from times: their activation memory, in multiples of pp microbatches."""


def build_table(
    kind: str, *, pp: int, num_microbatches: int, vpp: int = 1, times: Times = EQUAL, kept: float = KEPT
) -> Table:
    """Build the table of a schedule by name.

    Parameters
    ----------
    kind
        A key of `SCHEDULES`.
    pp, num_microbatches, vpp
        Pipeline ranks, microbatches in a step, chunks (stages) per rank.
    times, kept
        Of the actions, and the share of their memory that stays from I to W, for the schedules that are found from
        them (`AUTOMATIC`).

    Raises
    ------
    ScheduleError
        For an unknown name, sizes that are not positive, chunks that the schedule cannot have, and microbatches that
        it cannot group.
    """
    check_sizes(kind, pp, num_microbatches, vpp)
    if kind in AUTOMATIC:
        return automatic(pp, num_microbatches, times, AUTOMATIC[kind] * pp, kept)
    return SCHEDULES[kind](pp, num_microbatches, vpp)


def _build(kind: str, pp: int, num_microbatches: int, vpp: int) -> Table:
    """Warm up with forwards, run one forward and one backward in turn, then the backwards that are left."""
    check_sizes(kind, pp, num_microbatches, vpp)
    order = [
        (chunk * pp, microbatch)
        for first in range(0, num_microbatches, pp)
        for chunk in range(vpp)
        for microbatch in range(first, min(first + pp, num_microbatches))
    ]
    last = (vpp - 1) * pp
    rows = []
    for rank in range(pp):
        forwards = [Action(chunk + rank, "F", microbatch) for chunk, microbatch in order]
        backwards = [Action(last - chunk + rank, "B", microbatch) for chunk, microbatch in order]
        warmup = min(_warmup(kind, pp, num_microbatches, vpp, rank), len(order))
        steady = chain.from_iterable(zip(forwards[warmup:], backwards, strict=False))
        rows.append((*forwards[:warmup], *steady, *backwards[len(order) - warmup :]))
    return tuple(rows)


def _warmup(kind: str, pp: int, num_microbatches: int, vpp: int, rank: int) -> int:
    """Forwards that a rank runs before it alternates, if there are so many."""
    if kind == "gpipe":
        return num_microbatches
    if kind == "1f1b" or vpp == 1:
        return pp - rank - 1
    return (pp - rank - 1) * 2 + (vpp - 1) * pp


def check_sizes(kind: str, pp: int, num_microbatches: int, vpp: int) -> None:
    """Refuse what a schedule cannot be built for.

    Raises
    ------
    ScheduleError
        As `build_table`.
    """
    if kind not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ScheduleError(f"there is no schedule {kind!r}; the schedules are {known}{nearest(kind, SCHEDULES)}")
    for name, value in (("pp", pp), ("num_microbatches", num_microbatches), ("vpp", vpp)):
        if value < 1:
            raise ScheduleError(f"schedule {kind}: {name} is {value}; it must be 1 or more")
    _check_chunks(kind, pp, vpp)
    step, least = microbatch_rule(kind, pp)
    if num_microbatches % step == 0 and num_microbatches >= least:
        return
    if kind == "interleaved":
        fits = [str(count) for count in (num_microbatches // pp * pp, (num_microbatches // pp + 1) * pp) if count]
        raise ScheduleError(
            f"schedule interleaved: {num_microbatches} microbatches do not split into groups of pp = {pp}; "
            f"use {' or '.join(fits)} microbatches, or the schedule 1f1b"
        )
    fits = [str(count) for count in (num_microbatches // step * step, -(-num_microbatches // step) * step)]
    use = " or ".join(fits) if num_microbatches >= least else str(least)
    even = "an even number of microbatches, " if step == 2 else ""
    raise ScheduleError(
        f"schedule {kind} needs {even}2 × pp = {least} of them or more, not {num_microbatches}; use {use} microbatches"
        if even
        else f"schedule {kind} needs 2 × pp = {least} microbatches or more, not {num_microbatches}"
    )


def _check_chunks(kind: str, pp: int, vpp: int) -> None:
    if kind in CHUNKS:
        if vpp not in (1, CHUNKS[kind]):
            raise ScheduleError(
                f"schedule {kind}: vpp is {vpp}, but a rank always has {CHUNKS[kind]} chunks; leave it out"
            )
    elif kind != "interleaved" and vpp > 1:
        fix = "use vpp 1 or the schedule interleaved"
        raise ScheduleError(f"schedule {kind}: vpp is {vpp}, but here a rank has one chunk; {fix}")
    if kind == "interleaved" and vpp > 1 and pp == 1:
        raise ScheduleError(f"schedule interleaved: vpp is {vpp}, but with pp 1 nothing interleaves; use vpp 1")
    if kind == "dualpipe" and pp % 2:
        fits = [str(each) for each in (pp - 1, pp + 1) if each]
        raise ScheduleError(
            f"schedule dualpipe: pp is {pp}; it must be even, for two directions: use {' or '.join(fits)}"
        )


def home(kind: str, pp: int, num_microbatches: int) -> Callable[[int, int], int]:
    """On which rank a schedule puts the work of a stage on a microbatch.

    Rank = stage mod pp; in a V stage s and stage 2 pp - 1 - s share rank s; in DualPipe stage s is on rank s for the
    first half of the microbatches and on rank pp - 1 - s for the second.
    """
    if kind in ("zbv", "dualpipev"):
        return lambda stage, microbatch: min(stage, 2 * pp - 1 - stage)
    if kind == "dualpipe":
        return lambda stage, microbatch: stage if 2 * microbatch < num_microbatches else pp - 1 - stage
    return lambda stage, microbatch: stage % pp
