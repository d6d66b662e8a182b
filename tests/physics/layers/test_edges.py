"""Collectives round a tensor-parallel block, against the papers that count them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.physics.layers.edges import gather_gradient, gather_input, reduce_gradient, reduce_output
from simulator.physics.layers.layer import embedding, layer_backward, layer_forward, output_layer
from simulator.physics.layers.rank import Rank
from tests.physics.shapes import collectives, gpt, make_rank

ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}  # times that a ring moves (n - 1) / n of the buffer
BLOCK = 2.0 * 256 * 512  # b s h in bf16, all of it


def volume(found: list[tuple[str, float]]) -> float:
    """Add up what rings move, in units of (t - 1) / t."""
    return sum(ROUNDS[op] * size for op, size in found)


def test_megatron_needs_four_all_reduces_a_layer() -> None:
    """ArXiv 1909.08053, section 3: two in forward and two in backward, each of b s h elements."""
    rank = make_rank(gpt(), tp=4, sequence_parallel=False)
    assert collectives(layer_forward(rank, 0), "tp") == [("all_reduce", BLOCK)] * 2
    assert collectives(layer_backward(rank, 0), "tp") == [("all_reduce", BLOCK)] * 2


def test_sequence_parallelism_gathers_and_scatters() -> None:
    """ArXiv 2205.05198, section 4.2.2: two all-gathers and reduce-scatters each way; backward gathers twice more."""
    rank = make_rank(gpt(), tp=4)
    gather, scatter = ("all_gather", BLOCK), ("reduce_scatter", BLOCK)
    assert collectives(layer_forward(rank, 0), "tp") == [gather, scatter] * 2
    assert collectives(layer_backward(rank, 0), "tp") == [gather, gather, scatter] * 2


def test_sequence_parallelism_moves_no_more_than_tensor_parallelism() -> None:
    """ArXiv 2205.05198, section 4.2.2: a ring all-reduce is a reduce-scatter and an all-gather; the extra gather of
    backward is on top."""
    plain, split = make_rank(gpt(), tp=4, sequence_parallel=False), make_rank(gpt(), tp=4)
    assert volume(collectives(layer_forward(split, 0), "tp")) == volume(collectives(layer_forward(plain, 0), "tp"))
    extra = volume(collectives(layer_backward(split, 0), "tp")) - volume(collectives(layer_backward(plain, 0), "tp"))
    assert extra == 2 * BLOCK


def test_fp8_is_cast_before_it_is_gathered() -> None:
    """A byte an element in every gather inside a layer (Transformer Engine, torchao); sums and ends keep 16 bits."""
    old = make_rank(gpt(), accelerator="h100", tp=4, precision="fp8")
    new = replace(old, fp8_gathers=True)
    gather, scatter = ("all_gather", BLOCK / 2), ("reduce_scatter", BLOCK)
    assert collectives(layer_forward(new, 0), "tp") == [gather, scatter] * 2
    assert collectives(layer_backward(new, 0), "tp") == [gather, gather, scatter] * 2
    assert ends(new) == ends(old)
    bf16 = make_rank(gpt(), tp=4)
    assert layer_backward(replace(bf16, fp8_gathers=True), 0) == layer_backward(bf16, 0)


def test_nothing_is_exchanged_without_tensor_parallelism() -> None:
    """Tp 1: no collective in a layer, the embedding or the output layer."""
    rank = make_rank(gpt(), tp=1)
    everything = [*layer_forward(rank, 0), *layer_backward(rank, 0)]
    for backward in (False, True):
        everything += [*embedding(rank, backward=backward), *output_layer(rank, backward=backward)]
    assert collectives(everything, "tp", "cp", "ep", "etp") == []


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_backward_edges_are_adjoints_of_forward_edges(sequence_parallel: bool) -> None:
    """The adjoint of a gather is a reduce-scatter of the same bytes, of an all-reduce the identity, and the reverse."""
    rank = make_rank(gpt(), tp=4, sequence_parallel=sequence_parallel)
    adjoint = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather"}
    entering, leaving = collectives(gather_input(rank, "x", 100), "tp"), collectives(reduce_output(rank, "x"), "tp")
    into, out = collectives(gather_gradient(rank, "x"), "tp"), collectives(reduce_gradient(rank, "x", 100), "tp")
    size = 2.0 * 256 * 100
    if sequence_parallel:
        assert into == [(adjoint[op], bytes_) for op, bytes_ in leaving]
        assert out[-1:] == [(adjoint[op], bytes_) for op, bytes_ in entering] == [("reduce_scatter", size)]
    else:
        assert (entering, into) == ([], [])
        assert (leaving, out) == ([("all_reduce", BLOCK)], [("all_reduce", size)])


def ends(rank: Rank) -> dict[str, list[tuple[str, float]]]:
    """Collectives of the two ends of a model."""
    return {
        "embedding": collectives(embedding(rank, backward=False), "tp"),
        "embedding.grad": collectives(embedding(rank, backward=True), "tp"),
        "output": collectives(output_layer(rank, backward=False), "tp"),
        "output.grad": collectives(output_layer(rank, backward=True), "tp"),
    }


def test_ends_of_the_model() -> None:
    """The vocabulary-parallel ends: embedding summed, output's input whole, three fp32 numbers a token in the loss."""
    loss = ("all_reduce", 12.0 * 256)
    assert ends(make_rank(gpt(), tp=4, sequence_parallel=False)) == {
        "embedding": [("all_reduce", BLOCK)],
        "embedding.grad": [],
        "output": [loss],
        "output.grad": [("all_reduce", BLOCK)],
    }
    gather, scatter = ("all_gather", BLOCK), ("reduce_scatter", BLOCK)
    assert ends(make_rank(gpt(), tp=4)) == {
        "embedding": [scatter],
        "embedding.grad": [gather],
        "output": [gather, loss],
        "output.grad": [gather, scatter],
    }
