"""Degrees, rank order and groups, and every split that is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.errors import LayoutError
from simulator.scenario.parallelism import Parallelism
from simulator.scenario.split import check_split

_degree = st.integers(1, 4)
_dense_orders = st.permutations(["tp", "cp", "dp", "pp"]).map("-".join)


@st.composite
def _splits(draw: st.DrawFn) -> Parallelism:
    """Any dense degrees and order, with ep and etp that fit; pp comes last where experts need it to."""
    tp, cp, pp, dp = (draw(_degree) for _ in range(4))
    stage = tp * cp * dp
    etp = draw(st.sampled_from([value for value in range(1, stage + 1) if stage % value == 0]))
    ep = draw(st.sampled_from([value for value in range(1, stage // etp + 1) if stage // etp % value == 0]))
    inner = draw(st.permutations(["tp", "cp", "ep", "dp"]))
    return Parallelism(tp=tp, cp=cp, pp=pp, dp=dp, ep=ep, etp=etp, order="-".join([*inner, "pp"]))


# --- worked examples ----------------------------------------------------------------------------------------------


def test_megatrons_example_of_16_gpus() -> None:
    """Tensor 2 and pipeline 4 of 16 GPUs: the groups in the docstring of Megatron-LM's core/parallel_state.py."""
    split = Parallelism(tp=2, pp=4).derive(16)
    assert split.dp == 2
    assert split.groups("tp").tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15]]
    assert split.groups("dp").tolist() == [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15]]
    assert split.groups("pp").tolist() == [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]


def test_megatrons_example_of_context_parallelism() -> None:
    """Tensor 4 and context 2 of 8 GPUs: the context groups in the same docstring."""
    split = Parallelism(tp=4, cp=2).derive(8)
    assert split.groups("cp").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert split.groups("dp-cp").tolist() == split.groups("cp").tolist()


def test_megatrons_example_of_the_order_string() -> None:
    """Sizes 2-2-2 in the order tp-pp-dp: the dp groups in the docstring of Megatron-LM's RankGenerator."""
    split = Parallelism(tp=2, pp=2, dp=2, order="tp-pp-dp-cp")
    assert split.groups("dp").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    split = Parallelism(tp=2, dp=3, pp=4, order="tp-dp-pp-cp")
    assert split.groups("dp").tolist()[0] == [0, 2, 4]
    assert split.groups("dp").tolist()[7] == [19, 21, 23]


def test_expert_groups_by_hand() -> None:
    """Order etp-ep-edp-pp. 16 GPUs, tp 2, cp 2, dp 2, pp 2; etp 1, ep 4, so edp = 2·2·2 / (1·4) = 2.

    Inside a stage of 8 ranks ep is fastest: ranks 0 to 3 hold different experts, and 0 and 4 the same ones.
    """
    split = Parallelism(tp=2, cp=2, dp=2, pp=2, ep=4, etp=1)
    assert (split.edp, split.replicas) == (2, 4)
    assert split.groups("ep").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert split.groups("edp").tolist()[:4] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert split.groups("etp").tolist() == [[rank] for rank in range(16)]
    # dp-cp is the gradient group of everything else: cp has stride 2, dp stride 4.
    assert split.groups("dp-cp").tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]


def test_expert_tensor_groups_follow_tp_by_default() -> None:
    """With etp left out the expert tensor groups are the tensor groups, and ep spans cp and dp."""
    split = Parallelism(tp=2, cp=2, dp=2, ep=4)
    assert (split.etp, split.edp) == (2, 1)
    assert split.groups("etp").tolist() == split.groups("tp").tolist()
    assert split.groups("ep").tolist() == split.groups("dp-cp").tolist()


def test_ep_may_exceed_dp_where_etp_is_small() -> None:
    """tp 2, dp 32, ep 64, etp 1 is legal in Megatron: etp · ep = 64 divides tp · cp · dp = 64."""
    assert Parallelism(tp=2, dp=32, ep=64, etp=1).edp == 1


def test_coordinates_by_hand() -> None:
    """tp 8, dp 208, pp 15: rank 8·208·2 + 8·5 + 3 is tp 3 of replica 5 on stage 2."""
    split = Parallelism(tp=8, pp=15, dp=208)
    assert split.world_size == 24_960
    assert split.coordinates(3_371) == {"tp": 3, "cp": 0, "dp": 5, "pp": 2}
    assert split.rank({"tp": 3, "cp": 0, "dp": 5, "pp": 2}) == 3_371


# --- laws ---------------------------------------------------------------------------------------------------------


@given(_splits(), st.data())
def test_ranks_and_coordinates_are_one_to_one(split: Parallelism, data: st.DataObject) -> None:
    """Both grids: rank → coordinates → rank is the identity, and every coordinate lies within its degree."""
    rank = data.draw(st.integers(0, split.world_size - 1))
    dense, expert = split.coordinates(rank), split.coordinates(rank, experts=True)
    assert split.rank(dense) == rank
    assert split.rank(expert) == rank
    assert all(0 <= dense[axis] < getattr(split, axis) for axis in dense)
    assert dense["pp"] == expert["pp"]


@given(
    _splits(), st.sampled_from(["tp", "cp", "pp", "dp", "dp-cp", "tp-dp", "etp", "ep", "edp", "etp-ep", "tp-cp-dp-pp"])
)
def test_groups_partition_the_ranks(split: Parallelism, axes: str) -> None:
    """Every rank is in exactly one group, groups have the product of the degrees, in ascending order."""
    groups = split.groups(axes)
    assert groups.shape[1] == math.prod(getattr(split, axis) for axis in axes.split("-"))
    assert sorted(groups.ravel().tolist()) == list(range(split.world_size))
    assert (np.diff(groups, axis=1) > 0).all()
    assert (np.diff(groups[:, 0]) > 0).all()


@given(_splits(), st.sampled_from(["tp", "cp", "pp", "dp", "etp", "ep", "edp"]))
def test_a_group_varies_in_its_axis_only(split: Parallelism, axis: str) -> None:
    """Members of a group share all other coordinates, and stand at 0, 1, 2 … on their own axis."""
    for group in split.groups(axis).tolist():
        places = [split.coordinates(rank, experts=axis in ("etp", "ep", "edp")) for rank in group]
        assert [place[axis] for place in places] == list(range(len(group)))
        assert len({tuple(value for name, value in place.items() if name != axis) for place in places}) == 1


@given(_degree, _degree, _degree, _degree, _dense_orders)
def test_the_first_axis_of_the_order_varies_fastest(tp: int, cp: int, pp: int, dp: int, order: str) -> None:
    """Oracle: a rank is the sum of coordinate × product of the degrees before it, for any order."""
    split = Parallelism(tp=tp, cp=cp, pp=pp, dp=dp, order=order)
    for rank in range(split.world_size):
        total, stride = 0, 1
        for axis in order.split("-"):
            total += split.coordinates(rank)[axis] * stride
            stride *= getattr(split, axis)
        assert total == rank


@given(_splits())
def test_ep_in_the_order_does_not_move_dense_groups(split: Parallelism) -> None:
    """`ep` has degree 1 in the dense grid: leaving it out of the order changes no dense group."""
    order = "-".join(axis for axis in split.order.split("-") if axis != "ep")
    plain = Parallelism(tp=split.tp, cp=split.cp, pp=split.pp, dp=split.dp, order=order)
    for axis in ("tp", "cp", "pp", "dp", "dp-cp"):
        assert (split.groups(axis) == plain.groups(axis)).all()


@given(_splits(), st.sampled_from(["tp", "cp", "pp", "dp"]))
def test_the_degree_left_out_is_derived(split: Parallelism, axis: str) -> None:
    """Leaving any one degree out and deriving it from the job's GPUs gives the split back."""
    fields = split.model_dump() | {axis: None}
    assert Parallelism(**fields).derive(split.world_size) == split


def test_groups_of_a_million_ranks() -> None:
    """Groups of 1,024,000 ranks are numpy rows, not Python loops."""
    split = Parallelism(tp=8, cp=2, pp=16, dp=4_000, ep=64)
    assert split.groups("dp-cp").shape == (128, 8_000)
    assert split.groups("ep").shape == (16_000, 64)
    assert split.groups("tp").dtype == np.int64


# --- the description ----------------------------------------------------------------------------------------------


def test_defaults() -> None:
    """One GPU, nothing split; etp and sequence parallelism follow tp."""
    split = Parallelism().derive(1)
    assert (split.tp, split.cp, split.pp, split.dp, split.ep, split.etp) == (1, 1, 1, 1, 1, 1)
    assert (split.order, split.placement, split.sequence_parallel) == ("tp-cp-ep-dp-pp", "contiguous", False)
    assert Parallelism(tp=8).sequence_parallel is True
    assert Parallelism(tp=8, sequence_parallel=False).derive(8).sequence_parallel is False
    # Where tp itself is derived, what follows it waits for that.
    fields: dict[str, Any] = {"tp": None, "dp": 2}
    late = Parallelism(**fields).derive(16)
    assert (late.tp, late.etp, late.sequence_parallel) == (8, 8, True)


def test_a_split_is_frozen_hashable_and_reads_back() -> None:
    """A description is a value: it prints to JSON and back, and can be a key."""
    split = Parallelism(tp=8, pp=2, placement=(3, 1, 2)).derive(64)
    assert Parallelism.model_validate(split.model_dump(mode="json")) == split
    assert len({split, split.derive(64)}) == 1
    with pytest.raises(ValidationError):
        split.tp = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tp": 0}, "greater than or equal to 1"),
        ({"tp": "8"}, "valid integer"),
        ({"tp": 8.0}, "valid integer"),
        ({"dp": True}, "valid integer"),
        ({"sequence_parallel": 1}, "valid boolean"),
        ({"tpp": 8}, "Extra inputs"),
        ({"tp": None}, "tp and dp are left out; only one degree can be derived"),
        ({"order": "tp-dp-pp"}, "'tp-dp-pp' is not a rank order"),
        ({"order": "tp-cp-ep-dp-pp-pp"}, "is not a rank order"),
        ({"order": "tp-cp-dp-pp", "ep": 2}, "ep 2 has no place in the rank order 'tp-cp-dp-pp'"),
        ({"placement": "random"}, "'contiguous' or 'leaf_aware'"),
        ({"placement": []}, "an empty list places no rank"),
        ({"placement": [0, 2, 2]}, "node 2 is listed 2 times"),
        ({"placement": [-1]}, "greater than or equal to 0"),
    ],
)
def test_descriptions_that_are_refused(fields: dict[str, Any], message: str) -> None:
    """Wrong types, unknown keys and contradictions are refused where they are written."""
    with pytest.raises(ValidationError) as caught:
        Parallelism(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("split", "gpus", "message"),
    [
        (
            Parallelism(tp=8, pp=15),
            25_000,
            (
                "tp 8 × cp 1 × pp 15 = 120 does not divide 25,000 GPUs;"
                " use dp 208: 24,960 = 208 × 120 GPUs, leaving 40 idle"
            ),
        ),
        (Parallelism(tp=8, pp=15), 64, "tp 8 × cp 1 × pp 15 = 120 GPUs are more than the 64 there are"),
        (Parallelism(tp=8, dp=9), 64, "tp 8 × cp 1 × pp 1 × dp 9 = 72 GPUs are more than the 64 there are"),
    ],
)
def test_gpus_that_do_not_fit(split: Parallelism, gpus: int, message: str) -> None:
    """Every factor is quoted, with the largest job that fits."""
    with pytest.raises(LayoutError) as caught:
        split.derive(gpus)
    assert str(caught.value) == message


def test_a_complete_split_may_leave_gpus_idle() -> None:
    """With all degrees given, the rest of the cluster is spares or idle."""
    split = Parallelism(tp=8, pp=15, dp=208)
    assert split.derive(25_000) == split


def test_questions_without_an_answer() -> None:
    """Degrees not derived yet, and ranks, positions and groups that do not exist, are layout errors."""
    with pytest.raises(LayoutError, match="dp is left out and not derived yet"):
        _ = Parallelism(tp=8).world_size
    split = Parallelism(tp=2, pp=4, dp=2)
    for rank in (-1, 16):
        with pytest.raises(LayoutError, match="ranks are 0 to 15"):
            split.coordinates(rank)
    with pytest.raises(LayoutError, match="tp 2 is outside 0 to 1"):
        split.rank({"tp": 2, "cp": 0, "dp": 0, "pp": 0})
    with pytest.raises(LayoutError, match="name each of tp, cp, dp, pp"):
        split.rank({"tp": 0})
    for axes in ("xp", "tp-ep", "dp-dp", ""):
        with pytest.raises(LayoutError, match="names no groups"):
            split.groups(axes)
    with pytest.raises(LayoutError, match="etp 2 × ep 3 = 6 does not divide tp 2 × cp 1 × dp 2 = 4; use ep 2"):
        _ = Parallelism(tp=2, pp=4, dp=2, ep=3).edp


def test_expert_stages_must_be_the_pipeline_stages() -> None:
    """With pp not last, other degrees for experts would put a rank on two stages (Megatron asserts the same)."""
    order = "tp-cp-pp-ep-dp"
    split = Parallelism(tp=2, pp=2, dp=4, ep=2, etp=1, order=order)
    with pytest.raises(LayoutError, match="put pp last"):
        split.groups("ep")
    # With etp = tp and cp 1 the strides agree.
    same = Parallelism(tp=2, pp=2, dp=4, ep=2, order=order)
    assert same.groups("ep").tolist()[:2] == [[0, 4], [1, 5]]


# --- impossible splits --------------------------------------------------------------------------------------------

_GPT: dict[str, Any] = {
    "available_gpus": 4_096,
    "num_layers": 96,
    "num_attention_heads": 96,
    "num_query_groups": 96,
    "ffn_hidden_size": 49_152,
    "sequence_length": 2_048,
    "global_batch_size": 1_536,
    "micro_batch_size": 1,
    "schedule_kind": "1f1b",
}
_MOE = _GPT | {"num_experts": 16, "expert_ffn_hidden_size": 24_576}


@pytest.mark.parametrize(
    ("degrees", "model"),
    [
        ({"tp": 8, "pp": 8, "dp": 16}, _GPT),
        ({"tp": 8, "pp": 8, "dp": 16}, _GPT | {"vpp": 3, "schedule_kind": "interleaved"}),
        ({"tp": 8, "dp": 16}, _GPT | {"num_query_groups": 8}),
        ({"tp": 8, "dp": 16}, _GPT | {"num_query_groups": 2}),
        ({"tp": 8, "cp": 4, "dp": 16}, _GPT),
        ({"tp": 8, "dp": 16, "ep": 16}, _MOE),
        ({"tp": 8, "dp": 16, "ep": 16, "etp": 1}, _MOE | {"ffn_hidden_size": None}),
        ({"cp": 3, "dp": 2}, _GPT | {"sequence_length": 2_049, "zigzag": False}),
    ],
)
def test_possible_splits_pass(degrees: dict[str, Any], model: dict[str, Any]) -> None:
    """A split that divides everything is not refused, whatever it uses."""
    check_split(Parallelism(**degrees), **model)


@pytest.mark.parametrize(
    ("degrees", "model", "message"),
    [
        (
            {"tp": 8, "pp": 8, "dp": 96},
            _GPT,
            "tp 8 × cp 1 × pp 8 × dp 96 = 6,144 GPUs, but the cluster has 4,096; use dp 64: 4,096 GPUs",
        ),
        (
            {"tp": 8, "pp": 8, "dp": 2},
            _GPT | {"available_gpus": 48},
            "tp 8 × cp 1 × pp 8 × dp 2 = 128 GPUs, but the cluster has 48; one replica alone takes 64",
        ),
        (
            {"tp": 64, "dp": 1, "sequence_parallel": False},
            _GPT | {"num_query_groups": 32},
            "num_attention_heads 96 is not divisible by tp 64; use tp 48 or 96",
        ),
        (
            {"tp": 8, "dp": 1},
            _GPT | {"num_query_groups": 12},
            "num_query_groups 12 is not divisible by tp 8; use tp 6 or 12",
        ),
        (
            {"tp": 8, "dp": 1},
            _GPT | {"num_query_groups": 6},
            "tp 8 is no multiple of num_query_groups 6, so they cannot be replicated evenly; use tp 6 or 12",
        ),
        (
            {"tp": 8, "dp": 1},
            _GPT | {"ffn_hidden_size": 1_020},
            "ffn_hidden_size 1,020 is not divisible by tp 8; use tp 6 or 10",
        ),
        ({"pp": 128, "dp": 1}, _GPT, "num_layers 96 are fewer than the 128 stages of pp 128; use pp 96"),
        (
            {"pp": 8, "dp": 1},
            _GPT | {"vpp": 5, "schedule_kind": "interleaved", "num_layers": 80},
            None,
        ),
        (
            {"pp": 8, "dp": 1},
            _GPT | {"vpp": 5, "schedule_kind": "interleaved"},
            None,
        ),
        (
            {"pp": 8, "dp": 1},
            _GPT | {"vpp": 5, "schedule_kind": "interleaved", "num_layers": 120, "global_batch_size": 8},
            None,
        ),
        (
            {"pp": 9, "dp": 1},
            _GPT | {"vpp": 2, "schedule_kind": "interleaved", "global_batch_size": 9},
            None,
        ),
        (
            {"pp": 6, "dp": 1},
            _GPT | {"vpp": 17, "schedule_kind": "interleaved"},
            "num_layers 96 are fewer than the 102 stages of pp 6 × 17 chunks; use pp 5 or vpp 16",
        ),
        (
            {"pp": 8, "dp": 1},
            _GPT | {"vpp": 2},
            "vpp 2 needs an interleaved schedule, not '1f1b'; use vpp 1 or schedule 'interleaved'",
        ),
        (
            {"dp": 8},
            _GPT | {"schedule_kind": "interleaved"},
            "an interleaved schedule needs more than pp 1; use schedule '1f1b' or raise pp",
        ),
        (
            {"dp": 100},
            _GPT | {"micro_batch_size": 2},
            (
                "global_batch_size 1,536 is not divisible by dp 100 × micro_batch_size 2 = 200;"
                " use global_batch_size 1,400 or 1,600"
            ),
        ),
        (
            {"dp": 16},
            _GPT | {"global_batch_size": 8},
            "global_batch_size 8 is not divisible by dp 16 × micro_batch_size 1 = 16; use global_batch_size 16",
        ),
        (
            {"pp": 8, "dp": 4},
            _GPT | {"vpp": 2, "schedule_kind": "interleaved", "global_batch_size": 100},
            (
                "an interleaved schedule needs microbatches divisible by pp 8, but global_batch_size 100 /"
                " (dp 4 × micro_batch_size 1) = 25; use global_batch_size 96 or 128"
            ),
        ),
        (
            {"cp": 3, "dp": 1},
            _GPT | {"zigzag": False},
            "sequence_length 2,048 is not divisible by cp 3; use sequence_length 2,046 or 2,049",
        ),
        (
            {"cp": 4, "dp": 1},
            _GPT | {"sequence_length": 2_052},
            (
                "sequence_length 2,052 is not divisible by 2 × cp 4 = 8 (causal zigzag);"
                " use sequence_length 2,048 or 2,056"
            ),
        ),
        (
            {"tp": 8, "cp": 2, "dp": 1},
            _GPT | {"sequence_length": 2_052},
            (
                "sequence_length 2,052 is not divisible by cp 2 × tp 8 = 16 as sequence parallelism needs;"
                " use sequence_length 2,048 or 2,064 or sequence_parallel false"
            ),
        ),
        ({"tp": 8, "cp": 2, "dp": 1, "sequence_parallel": False}, _GPT | {"sequence_length": 2_052}, None),
        ({"dp": 16, "ep": 16}, _GPT, "ep 16 on a model without experts; use ep 1"),
        ({"tp": 8, "dp": 16, "etp": 2}, _GPT, "etp 2 on a model without experts; leave etp out"),
        ({"dp": 32, "ep": 32}, _MOE, "num_experts 16 is not divisible by ep 32; use ep 16"),
        (
            {"dp": 12, "ep": 8},
            _MOE,
            "etp 1 × ep 8 = 8 does not divide tp 1 × cp 1 × dp 12 = 12; use ep 6 or 12",
        ),
        (
            {"tp": 8, "dp": 2},
            _MOE | {"expert_ffn_hidden_size": 1_020},
            "expert_ffn_hidden_size 1,020 is not divisible by etp 8; use etp 6 or 10",
        ),
        (
            {"pp": 2, "dp": 8, "ep": 4, "cp": 2, "order": "tp-cp-pp-ep-dp"},
            _MOE,
            (
                "in the rank order 'tp-cp-pp-ep-dp' pipeline stages of the experts (etp 1 × pp 2 × ep 4 × edp 4) are"
                " not those of the rest (tp 1 × cp 2 × pp 2 × dp 8); put pp last: 'tp-cp-ep-dp-pp'"
            ),
        ),
    ],
)
def test_impossible_splits_are_refused(degrees: dict[str, Any], model: dict[str, Any], message: str | None) -> None:
    """Each impossible split gives exactly one line with all factors and the fix; None marks a neighbour that passes."""
    if message is None:
        check_split(Parallelism(**degrees), **model)
        return
    with pytest.raises(LayoutError) as caught:
        check_split(Parallelism(**degrees), **model)
    assert str(caught.value) == message


def test_all_reasons_are_told_at_once() -> None:
    """A split that is wrong twice says so twice."""
    with pytest.raises(LayoutError) as caught:
        check_split(Parallelism(pp=7, dp=5), **_GPT | {"num_layers": 6})
    assert [line.split(" is")[0].split(" are")[0] for line in str(caught.value).splitlines()] == [
        "num_layers 6",
        "global_batch_size 1,536",
    ]
