"""The dense MLP, plain or gated.

Pinned by tests/physics/layers/test_mlp.py.
"""

from __future__ import annotations

from simulator.physics.layers.edges import gather_gradient, gather_input, reduce_gradient, reduce_output
from simulator.physics.layers.rank import Linear, Rank, forwards
from simulator.physics.operations import Kernel, Operation


def linears(rank: Rank, width: int, tokens: int, name: str = "mlp") -> tuple[Linear, Linear]:
    """Up and down projection of an MLP of local inner width `width`."""
    inputs = 2 if rank.model.gated_mlp else 1
    hidden = rank.model.hidden_size
    return Linear(f"{name}.up", tokens, inputs * width, hidden), Linear(f"{name}.down", tokens, hidden, width)


def activation(rank: Rank, tokens: int, width: int, *, backward: bool) -> Kernel:
    """The nonlinearity: forward reads its (gated) input and writes `width`.

    Backward reads the input and the output's gradient, and writes the input's gradient.
    """
    inputs = 2 if rank.model.gated_mlp else 1
    operands = (2 * inputs + 1) if backward else (inputs + 1)
    return rank.move("activation.grad" if backward else "activation", float(operands * tokens * width))


def run(rank: Rank, up: Linear, down: Linear, middle: Kernel, *, backward: bool) -> list[Operation]:
    """Two linears with the nonlinearity between them, in either direction."""
    if backward:
        return [*down.backward(rank), middle, *up.backward(rank)]
    return [*forwards(rank, [up]), middle, *forwards(rank, [down])]


def inner(rank: Rank, *, backward: bool) -> list[Operation]:
    """From the gathered input to the partial output."""
    width = rank.model.ffn_hidden_size // rank.parallelism.tp
    up, down = linears(rank, width, rank.tokens)
    return run(rank, up, down, activation(rank, rank.tokens, width, backward=backward), backward=backward)


def mlp_forward(rank: Rank) -> list[Operation]:
    """A dense MLP between its norm and its residual."""
    return [*gather_input(rank, "mlp"), *inner(rank, backward=False), *reduce_output(rank, "mlp")]


def mlp_backward(rank: Rank) -> list[Operation]:
    """Adjoint of `mlp_forward`."""
    return [*gather_gradient(rank, "mlp"), *inner(rank, backward=True), *reduce_gradient(rank, "mlp")]
