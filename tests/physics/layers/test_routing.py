"""Where token copies go: even or uneven, dropped above a capacity or padded up to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.layers.experts import LocalExperts, moe_forward
from simulator.physics.layers.rank import Rank
from simulator.physics.layers.routing import route
from simulator.physics.memory.activations import expert_activations
from simulator.physics.operations import Kernel
from tests.physics.shapes import collectives, gpt, make_rank

MOE: dict[str, Any] = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 256}


def moe_rank(**training: Any) -> Rank:
    """Build a rank of ep 4 with 256 tokens, 512 copies, 8 experts."""
    return make_rank(gpt(moe=MOE), dp=8, ep=4, **training)


def test_nothing_is_dropped_without_a_capacity() -> None:
    """512 copies are 512 copies; 0.3 more for the first of 4 ranks leaves the others 1 - 0.3 / 3 each."""
    assert route(512, 8, 4) == (512, None)
    sent, loads = route(512, 8, 4, imbalance=0.3)
    assert sent == 512
    assert loads == (1.3, 0.9, 0.9, 0.9)


def test_a_capacity_cuts_the_busiest() -> None:
    """An even share is 64 copies, 1.25 of it 80: the first rank wanted 1.5 · 64 = 96 and keeps 80.

    The others want 64 · (1 - 0.5 / 3) = 53.3. A rank sends 2 · (80 + 3 · 53.3) = 480 of 512 copies.
    """
    sent, loads = route(512, 8, 4, imbalance=0.5, capacity_factor=1.25)
    assert sent == pytest.approx(480)
    assert loads == pytest.approx((80 / 60, *(53.3333333333 / 60,) * 3))


def test_a_capacity_is_rounded_up() -> None:
    """1,536 copies over 160 experts are 9.6 each: 10 as in Megatron-Core, so that nothing of an even share is lost."""
    assert route(1536, 160, 8, capacity_factor=1.0) == (1536, None)
    assert route(1536, 160, 8, capacity_factor=1.0, padded=True) == (1600, None)


def test_an_even_share_above_the_capacity_is_dropped() -> None:
    """Half of 64 copies an expert: half of everything goes nowhere, and routing stays even."""
    assert route(512, 8, 4, imbalance=0.3, capacity_factor=0.5) == (256, None)


def test_padding_makes_all_equal() -> None:
    """80 slots of 8 experts, whoever is busy."""
    assert route(512, 8, 4, imbalance=0.5, capacity_factor=1.25, padded=True) == (640, None)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.25, 1.4, 2.0])
def test_copies_dealt_out_one_by_one(factor: float) -> None:
    """Oracle: 400 copies, 120 of them for each expert of rank 0 and 40 for each of rank 1, put into bins one by one."""
    wanted = [0, 1] * 120 + [2, 3] * 40 + [0, 1, 2, 3] * 20
    bins = [0, 0, 0, 0]
    for expert in wanted:
        bins[expert] += bins[expert] < 100 * factor
    sent, loads = route(400, 4, 2, imbalance=0.4, capacity_factor=factor)
    assert sent == sum(bins)
    assert [sent * load for load in loads or (1, 1)] == pytest.approx([bins[0] * 4, bins[2] * 4])


@given(
    copies=st.integers(64, 4096),
    experts=st.sampled_from([8, 16, 64]),
    ep=st.sampled_from([1, 2, 4, 8]),
    imbalance=st.floats(0, 0.9),
    factor=st.floats(0.25, 4),
)
def test_laws_of_a_capacity(copies: int, experts: int, ep: int, imbalance: float, factor: float) -> None:
    """Capped ≤ dropless and ≤ padded; nobody receives more than the capacity; loads have mean 1; large is no limit."""
    free = route(copies, experts, ep, imbalance=imbalance)
    capped = route(copies, experts, ep, imbalance=imbalance, capacity_factor=factor)
    padded = route(copies, experts, ep, imbalance=imbalance, capacity_factor=factor, padded=True)
    assert capped.sent <= min(free.sent, padded.sent) + 1e-6
    loads = capped.loads or (1.0,) * ep
    assert sum(loads) / ep == pytest.approx(1)
    assert max(loads) * capped.sent <= padded.sent * (1 + 1e-9) + 1e-5
    wide = route(copies, experts, ep, imbalance=imbalance, capacity_factor=8.0)
    assert wide.sent == pytest.approx(free.sent)
    assert (wide.loads or loads) == pytest.approx(free.loads or loads)


def _expert_flops(rank: Rank) -> float:
    found = (op for op in moe_forward(rank) if isinstance(op, Kernel) and op.name.startswith("expert."))
    return sum(op.flops for op in found)


def test_what_a_capacity_changes() -> None:
    """Products, all-to-all and kept activations: a quarter more when padded to 1.25, half with a capacity of 0.5."""
    usual = moe_rank()
    for share, rank in (
        (1.25, moe_rank(expert_capacity_factor=1.25, expert_padding=True)),
        (0.5, moe_rank(expert_capacity_factor=0.5)),
        (1.0, moe_rank(expert_capacity_factor=1.25)),
    ):
        assert _expert_flops(rank) == pytest.approx(share * _expert_flops(usual))
        assert expert_activations(rank) == pytest.approx(share * expert_activations(usual))
        sizes = [size for _, size in collectives(moe_forward(usual), "ep")]
        assert [size for _, size in collectives(moe_forward(rank), "ep")] == pytest.approx([share * s for s in sizes])


def test_dropping_caps_the_busiest_rank() -> None:
    """Rank 0 of ep 4 has 0.5 more: 1.5 · 512 = 768 rows without a limit, 2 · 4 · 80 = 640 with a capacity of 1.25."""
    assert LocalExperts.of(moe_rank(expert_imbalance=0.5)).rows == 768
    assert LocalExperts.of(moe_rank(expert_imbalance=0.5, expert_capacity_factor=1.25)).rows == 640
    assert LocalExperts.of(moe_rank(expert_imbalance=0.5, expert_capacity_factor=2.0)).rows == 768


def test_a_capacity_that_binds_nobody_changes_nothing() -> None:
    """The same operations, to the last bit."""
    assert moe_forward(moe_rank(expert_capacity_factor=8.0)) == moe_forward(moe_rank())
    uneven = moe_rank(expert_imbalance=0.5)
    assert moe_forward(moe_rank(expert_imbalance=0.5, expert_capacity_factor=1.5)) == moe_forward(uneven)
