"""Token copies on their way to experts: even or with one busy rank, without limit, capped, or padded to the cap.

An expert with a capacity takes at most so many copies of each sender; the router drops what is above (Switch
Transformer, arXiv 2101.03961, section 2.2; Megatron-Core, `--moe-expert-capacity-factor`). Padding fills every expert's
input up to the capacity, so that all ranks send, receive and compute as much as any (`--moe-pad-expert-input-to-
capacity`), whoever is busy.

Limits: the experts of one rank are equally busy; a mean step, not draws.

Pinned by tests/physics/layers/test_routing.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Routing(NamedTuple):
    """Copies that a rank sends out, and who gets how many of them.

    Attributes
    ----------
    sent
        Copies that a rank sends, padding included, dropped ones not.
    loads
        Copies that each rank of an ep group receives, over their mean; None where all receive as many.
    """

    sent: float
    loads: tuple[float, ...] | None


def route(
    copies: int,
    num_experts: int,
    ep: int,
    *,
    imbalance: float = 0.0,
    capacity_factor: float | None = None,
    padded: bool = False,
) -> Routing:
    """Route the copies (tokens times top_k) of a rank over ep ranks of equally many experts.

    Parameters
    ----------
    imbalance
        The first rank receives so much more than the mean, the others share the rest evenly.
    capacity_factor
        Of an expert's even share of the copies; the capacity is rounded up to a whole number of copies (Megatron-Core,
        `get_capacity`). Nothing is dropped without one.
    padded
        Whether every expert's input is filled up to its capacity.

    Examples
    --------
    >>> route(512, 8, 4, imbalance=0.5, capacity_factor=1.25)  # 64 copies an expert, at most 80; 96 wanted of the first
    Routing(sent=480.0, loads=(1.333..., 0.888..., 0.888..., 0.888...))
    """
    uneven = ep > 1 and imbalance > 0
    loads = (1 + imbalance, *(1 - imbalance / (ep - 1),) * (ep - 1)) if uneven else None
    if capacity_factor is None:
        return Routing(copies, loads)
    capacity = math.ceil(copies / num_experts * capacity_factor)
    if padded:
        return Routing(capacity * num_experts, None)
    most = capacity * num_experts / copies
    if loads is None:
        return Routing(min(copies, capacity * num_experts), None)
    kept = [min(load, most) for load in loads]
    mean = sum(kept) / ep
    even = max(kept) == min(kept)
    # rounded: shares add up to a hair off whole copies
    return Routing(round(copies * mean, 6), None if even else tuple(load / mean for load in kept))
