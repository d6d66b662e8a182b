"""What every schedule costs with equal stages and free communication, in closed form.

With F, I, W the seconds of a stage's forward and half backwards, B = I + W, p ranks and m microbatches, a rank waits

    GPipe, 1F1B    (p - 1) (F + B)                 arXiv 2104.04473, section 2.2.1
    interleaved    (p - 1) (F + B), F and B of a chunk: 1 / v of a rank's   section 2.2.2
    ZB-H1          (p - 1) (F + I - W)             arXiv 2401.10241, table 1; W <= F
    ZB-H2          (p - 1) (F + I - 2 W)           the same; W <= F and W <= I
    ZB-V           0 with F = I = W                arXiv 2401.10241, section 6
    DualPipe       (p / 2 - 1) (F + B + B - 3 W)   deepseek-ai/DualPipe; F and B side by side take F + B; F, W <= I
    DualPipeV      (p - 1) (F + B + B - 3 W)       the same; its p is half the number of stages

from its first to its last action. That is how the zero-bubble authors count: rank r starts r F later than the first
and, where the optimizer waits for no one, may end as much later. With ranks that begin and end together (`synchronous`)
ZB-H2 and ZB-V cannot hide these (p - 1) F; in the others the first rank is the first to start and the last to end.

Limits: ZB-1p and ZB-2p are found, not written down: theirs are ZB-H1's and ZB-H2's with equal times. m is at least p
(1F1B, ZB-H1), 2 p - 1 (ZB-H2, ZB-V).

Pinned by tests/physics/test_bubbles.py.
"""

from __future__ import annotations

from simulator.errors import ScheduleError
from simulator.physics.schedules.tables import check_sizes
from simulator.physics.schedules.zero_bubble import EQUAL, Times
from simulator.scenario.pipeline import chunks_per_rank
from simulator.scenario.units import Seconds


def ideal_bubble(
    kind: str, pp: int, num_microbatches: int, vpp: int = 1, *, times: Times = EQUAL, synchronous: bool = True
) -> Seconds | None:
    """Seconds that a rank waits; None where nobody has written it down for these times.

    Parameters
    ----------
    times
        Of one stage (a chunk, where a rank has several); messages are free.
    synchronous
        Whether ranks begin and end the step together, or each counts from its own first action to its last.

    Raises
    ------
    ScheduleError
        As `build_table`.
    """
    check_sizes(kind, pp, num_microbatches, vpp)
    forward, half, weight = times.forward, times.input, times.weight
    whole, ranks = half + weight, pp - 1
    if kind in ("gpipe", "1f1b", "interleaved"):
        return ranks * (forward + whole)
    if kind in ("dualpipe", "dualpipev"):
        depth = pp // 2 - 1 if kind == "dualpipe" else ranks
        return depth * (forward + 2 * whole - 3 * weight) if max(forward, weight) <= half else None
    equal = forward == half == weight
    if kind == "zb-h1" or (kind == "zb-1p" and equal):
        return ranks * (forward + half - weight) if weight <= forward and num_microbatches >= pp else None
    if num_microbatches < 2 * pp - 1 or not (equal or kind == "zb-h2"):
        return None
    if weight > min(forward, half):
        return None
    shorter = ranks * (forward + half - 2 * weight)
    return max(shorter, ranks * forward) if synchronous else shorter


def busy_seconds(kind: str, num_microbatches: int, vpp: int = 1, *, times: Times = EQUAL) -> Seconds:
    """Seconds that a rank works: each of its chunks on all microbatches, DualPipe's on half of them."""
    chunks = 1 if kind == "dualpipe" else chunks_per_rank(kind, vpp)
    return chunks * num_microbatches * (times.forward + times.input + times.weight)


def ideal_bubble_overhead(
    kind: str, pp: int, num_microbatches: int, vpp: int = 1, *, times: Times = EQUAL, synchronous: bool = True
) -> float | None:
    """Idle over busy time with equal stages and free communication; None as `ideal_bubble`.

    (p - 1) / m for GPipe and 1F1B, (p - 1) / (v m) for interleaved: arXiv 2104.04473, sections 2.2.1 and 2.2.2.

    Raises
    ------
    ScheduleError
        As `build_table`.
    """
    bubble = ideal_bubble(kind, pp, num_microbatches, vpp, times=times, synchronous=synchronous)
    return None if bubble is None else bubble / busy_seconds(kind, num_microbatches, vpp, times=times)


def ideal_bubble_fraction(
    kind: str, pp: int, num_microbatches: int, vpp: int = 1, *, times: Times = EQUAL, synchronous: bool = True
) -> float | None:
    """Idle over total time with equal stages and free communication; None as `ideal_bubble`.

    (p - 1) / (v m + p - 1) for GPipe, 1F1B (v = 1) and interleaved.

    Raises
    ------
    ScheduleError
        As `build_table`.
    """
    bubble = ideal_bubble(kind, pp, num_microbatches, vpp, times=times, synchronous=synchronous)
    return None if bubble is None else bubble / (busy_seconds(kind, num_microbatches, vpp, times=times) + bubble)


def in_flight_bound(kind: str, *, pp: int, num_microbatches: int, vpp: int, rank: int) -> int:
    """Most forwards, counted in stages, whose backward (B, or I and W) a rank still owes.

    GPipe: all. 1F1B: p - rank. Interleaved: one more than the warmup (Megatron-Core's ``max_outstanding_backprops``).
    ZB-H1 and ZB-1p: p, as 1F1B's first rank. ZB-H2: 2 p - 1; ZB-2p: 2 p (arXiv 2401.10241, table 1 and section 3.1);
    ZB-1p and ZB-2p count what is left between I and W as its share of memory only (`peak_activations`).
    ZB-V: 2 p stages of half the size, 1F1B's again. DualPipe: p + 1, DualPipeV: 2 p + 1 of its half-size stages
    (deepseek-ai/DualPipe). Never more than there are.

    Raises
    ------
    ScheduleError
        As `build_table`.
    """
    check_sizes(kind, pp, num_microbatches, vpp)
    most = {
        "gpipe": num_microbatches, "1f1b": pp - rank, "zb-h1": pp, "zb-h2": 2 * pp - 1, "zb-1p": pp, "zb-2p": 2 * pp,
        "zbv": 2 * pp, "dualpipe": pp + 1, "dualpipev": 2 * pp + 1,
        "interleaved": pp - rank if vpp == 1 else (pp - rank - 1) * 2 + (vpp - 1) * pp + 1,
    }  # fmt: skip
    if kind not in most:
        raise ScheduleError(f"no bound is known of schedule {kind!r}")
    every = num_microbatches * (1 if kind == "dualpipe" else chunks_per_rank(kind, vpp))
    return min(every, most[kind])
