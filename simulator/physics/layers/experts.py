"""A mixture of experts: router, dispatch, grouped GEMMs, combine, shared experts.

Follows Megatron-Core's all-to-all dispatcher: permute, all-to-all over `ep`, all-gather over `etp`, sort by expert,
grouped GEMM, and back. A token that visits k experts is sent k times, also to experts on the same rank.

Limits: without sequence parallelism the ranks of a tensor-parallel group hold the same tokens, so experts must be split
as the rest is (etp = tp), as Megatron-Core asks for sequence parallelism.

Pinned by tests/physics/layers/test_experts.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.errors import LayoutError
from simulator.physics.layers.edges import gather_gradient, gather_input, reduce_gradient, reduce_output
from simulator.physics.layers.mlp import activation, linears, run
from simulator.physics.layers.rank import Linear, Rank
from simulator.physics.operations import Collective, Operation
from simulator.scenario.transformer import Experts


@dataclass(frozen=True)
class LocalExperts:
    """The routed experts of one rank.

    Attributes
    ----------
    local
        Experts on this rank.
    copies
        Token copies that this rank sends out: without the dropped ones, with the padding.
    rows
        Copies that its local experts process, gathered over etp; as many as it sends where routing is even.
    width
        An expert's local FFN width.
    etp
        Tensor parallel degree inside an expert.
    distinct
        Whether the ranks of an etp group hold different tokens, so that rows are gathered; else the outputs of equal
        rows are summed.
    """

    local: int
    copies: int
    rows: int
    width: int
    etp: int
    distinct: bool

    @classmethod
    def of(cls, rank: Rank) -> LocalExperts:
        """Derive from the split.

        Raises
        ------
        LayoutError
            When every tp rank would send the same tokens.
        """
        moe, split = experts_of(rank), rank.parallelism
        etp = split.tp if split.etp is None else split.etp
        distinct = rank.sequence_parallel or split.tp == 1
        if not distinct and etp != split.tp:
            raise LayoutError(
                f"etp {etp} with tp {split.tp} needs sequence_parallel true: without it all tp ranks would send the"
                f" same tokens; leave sequence_parallel out, or use etp {split.tp}"
            )
        copies = round(rank.routing.sent)
        # rounded first: a sum of shares is a hair off a whole number
        rows = math.ceil(round((copies * etp if distinct else copies) * rank.expert_load, 6))
        return cls(moe.num_experts // split.ep, copies, rows, moe.ffn_hidden_size // etp, etp, distinct)

    @property
    def rows_per_expert(self) -> int:
        """Rows of each problem of the grouped GEMM under even routing, rounded up."""
        return -(-self.rows // self.local)

    def linears(self, rank: Rank) -> tuple[Linear, Linear]:
        """Grouped GEMMs of all local experts."""
        inputs, hidden = 2 if rank.model.gated_mlp else 1, rank.model.hidden_size
        rows, local = self.rows_per_expert, self.local
        return (
            Linear("expert.up", rows, inputs * self.width, hidden, groups=local, rows=self.rows),
            Linear("expert.down", rows, hidden, self.width, groups=local, rows=self.rows),
        )


def experts_of(rank: Rank) -> Experts:
    """The model's mixture; only asked of layers that are one."""
    assert rank.model.moe is not None
    return rank.model.moe


def shared_width(rank: Rank) -> int:
    """Local inner width of all shared experts together, rounded up."""
    moe = experts_of(rank)
    return -(-moe.num_shared_experts * moe.shared_expert_ffn_hidden_size // rank.parallelism.tp)


def _exchange(rank: Rank, experts: LocalExperts, name: str, *, inward: bool) -> list[Operation]:
    """Token copies to the experts (`inward`) or back: all-to-all over ep, all-gather or reduce-scatter over etp."""
    hidden, element = rank.model.hidden_size, rank.element
    ops: list[Operation] = []
    if rank.parallelism.ep > 1:
        op = "dispatch" if inward else "combine"
        ops.append(Collective(f"{name}.all_to_all", "ep", op, float(experts.copies * hidden * element)))
    if experts.etp > 1:
        size = float(experts.rows * hidden * element)
        if experts.distinct:
            ops.append(Collective(f"{name}.etp", "etp", "all_gather" if inward else "reduce_scatter", size))
        elif not inward:
            ops.append(Collective(f"{name}.etp", "etp", "all_reduce", size))
    return ops if inward else ops[::-1]


def _sort(rank: Rank, experts: LocalExperts, name: str) -> list[Operation]:
    """What arrives lies by sender; experts want it by expert, and the senders want it back (`sort_chunks_by_idxs`)."""
    if experts.local == 1 or rank.parallelism.ep * experts.etp == 1:
        return []
    return [rank.move(name, 2.0 * experts.rows * rank.model.hidden_size, kind="permute")]


def _router(rank: Rank) -> Linear:
    """Scores of all experts, and of the shared experts' gate, which reads the same input."""
    moe = experts_of(rank)
    outputs = moe.num_experts + moe.shared_expert_gate
    return Linear("router", rank.spread_tokens, outputs, rank.model.hidden_size, dtype=rank.sensitive_dtype)


def _shared_expert(rank: Rank, *, backward: bool) -> list[Operation]:
    width = shared_width(rank)
    if not width:
        return []
    up, down = linears(rank, width, rank.tokens, name="shared_expert")
    inner = run(rank, up, down, activation(rank, rank.tokens, width, backward=backward), backward=backward)
    if backward:
        return [*gather_gradient(rank, "shared_expert"), *inner, *reduce_gradient(rank, "shared_expert")]
    return [*gather_input(rank, "shared_expert"), *inner, *reduce_output(rank, "shared_expert")]


def shared_expert_forward(rank: Rank) -> list[Operation]:
    """The shared experts alone."""
    return _shared_expert(rank, backward=False)


def moe_forward(rank: Rank) -> list[Operation]:
    """A mixture between its norm and its residual."""
    experts, hidden = LocalExperts.of(rank), rank.model.hidden_size
    up, down = experts.linears(rank)
    middle = activation(rank, experts.rows, experts.width, backward=False)
    return [
        _router(rank).forward(rank),
        rank.move("permute", 2.0 * experts.copies * hidden, kind="permute"),
        *_exchange(rank, experts, "dispatch", inward=True),
        *_sort(rank, experts, "sort"),
        *run(rank, up, down, middle, backward=False),
        *_sort(rank, experts, "unsort"),
        *_exchange(rank, experts, "combine", inward=False),
        rank.move("unpermute", 2.0 * experts.copies * hidden, kind="permute"),
        *_shared_expert(rank, backward=False),
    ]


def moe_backward(rank: Rank) -> list[Operation]:
    """Adjoint of `moe_forward`."""
    experts, hidden = LocalExperts.of(rank), rank.model.hidden_size
    up, down = experts.linears(rank)
    middle = activation(rank, experts.rows, experts.width, backward=True)
    return [
        *_shared_expert(rank, backward=True),
        rank.move("unpermute.grad", 2.0 * experts.copies * hidden, kind="permute"),
        *_exchange(rank, experts, "combine.grad", inward=True),
        *_sort(rank, experts, "unsort.grad"),
        *run(rank, up, down, middle, backward=True),
        *_sort(rank, experts, "sort.grad"),
        *_exchange(rank, experts, "dispatch.grad", inward=False),
        rank.move("permute.grad", 2.0 * experts.copies * hidden, kind="permute"),
        *_router(rank).backward(rank),
    ]
