"""What a rank does inside one action: kernels and collectives, in order.

The alphabet that `layers` writes, `program` arranges and the engine executes. Sizes are bytes of the whole
buffer, as in nccl-tests, also for an all-gather.

Pinned by tests/physics/layers/.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Kernel(NamedTuple):
    """One GPU kernel: expected seconds, the matmul FLOPs it executes (attention unmasked), and seconds at light speed.

    Light speed is the roofline of peak FLOP/s and peak memory bandwidth, with attention's mask: no kernel is faster.
    `products` are the experts' products in it, which a stack may launch one by one.
    """

    name: str
    seconds: float
    flops: float = 0.0
    light: float = 0.0
    products: int = 1


class Collective(NamedTuple):
    """A collective that the compute stream waits for."""

    name: str
    axis: str
    op: str
    size: float


class Launch(NamedTuple):
    """A collective put on the stream of its axis, beside compute; `tag` names it for a later `Await`."""

    tag: str
    axis: str
    op: str
    size: float


class Await(NamedTuple):
    """The compute stream stops until the launched collective `tag` is done."""

    tag: str


Operation: TypeAlias = Kernel | Collective | Launch | Await
