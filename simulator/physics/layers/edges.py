"""Collectives over tp round a block: how its input is gathered and its output summed.

Megatron-LM (arXiv 1909.08053, section 3) splits the first linear of a block by columns and the last by rows: one
all-reduce after the block in forward and one before it in backward. With sequence parallelism (arXiv 2205.05198,
section 4.2.2) the all-reduce becomes an all-gather before the block and a reduce-scatter after it, and backward gathers
the block's input once more, because only the split part was kept. Where the stack casts to fp8 before it gathers
(`Stack.fp8_gathers`), gathers inside blocks move a byte an element; sums stay in 16 bits.

Pinned by tests/physics/layers/test_edges.py.
"""

from __future__ import annotations

from simulator.physics.layers.rank import Rank
from simulator.physics.operations import Collective, Operation

_SENSITIVE = ("embedding", "output")
"""Edges of what fp8 recipes leave in 16 bits."""


def _size(rank: Rank, width: int | None) -> float:
    return float(rank.tokens * (rank.model.hidden_size if width is None else width) * rank.element)


def _gather(rank: Rank, edge: str, name: str, width: int | None = None) -> Collective:
    element = rank.element if edge in _SENSITIVE else rank.gathered_element
    return Collective(f"{edge}.{name}", "tp", "all_gather", _size(rank, width) * element / rank.element)


def gather_input(rank: Rank, name: str, width: int | None = None) -> list[Operation]:
    """Forward into a column-parallel linear: under sequence parallelism, gather the tokens over tp.

    Parameters
    ----------
    width
        Elements of a token's input; the hidden size if left out.
    """
    if not rank.sequence_parallel:
        return []
    return [_gather(rank, name, "gather", width)]


def reduce_output(rank: Rank, name: str) -> list[Operation]:
    """Forward out of a row-parallel linear: sum the partial results over tp."""
    if rank.parallelism.tp == 1:
        return []
    op = "reduce_scatter" if rank.sequence_parallel else "all_reduce"
    return [Collective(f"{name}.reduce", "tp", op, _size(rank, None))]


def gather_gradient(rank: Rank, name: str) -> list[Operation]:
    """Adjoint of `reduce_output`: identity without sequence parallelism, else gather the output's gradient."""
    if not rank.sequence_parallel:
        return []
    return [_gather(rank, name, "grad_gather")]


def reduce_gradient(rank: Rank, name: str, width: int | None = None) -> list[Operation]:
    """Adjoint of `gather_input`; with sequence parallelism the input was not kept whole, so it is gathered again."""
    if rank.parallelism.tp == 1:
        return []
    size = _size(rank, width)
    if not rank.sequence_parallel:
        return [Collective(f"{name}.grad_reduce", "tp", "all_reduce", size)]
    return [
        _gather(rank, name, "input_gather", width),
        Collective(f"{name}.grad_reduce", "tp", "reduce_scatter", size),
    ]
