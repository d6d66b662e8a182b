"""Rows as scenarios: columns first, then the named model, then the stack's habits; everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.scenario.stacks import read_stacks
from simulator.studies.runs.scenarios import RefusedError, catalogue_model, cut_by_cost, describe, stack_of
from simulator.studies.runs.table import Row

GPT: dict[str, Any] = {
    "model": "GPT-1.7B",
    "num_layers": 24,
    "hidden_size": 2304,
    "ffn_hidden_size": 9216,
    "gated_mlp": False,
    "num_attention_heads": 24,
    "num_query_groups": 24,
    "vocab_size": 51200,
    "sequence_length": 2048,
    "accelerator": "A100-80GB-SXM",
    "gpus": 32,
    "gpus_per_node": 8,
    "scale_up_GBps": 300.0,
    "nic_Gbps": 200.0,
    "fabric": "InfiniBand",
    "precision": "fp16",
    "tp": 1,
    "cp": 1,
    "pp": 1,
    "dp": 32,
    "sequence_parallel": False,
    "zero_stage": 0,
    "micro_batch_size": 16,
    "global_batch_size": 512,
    "recompute": "full",
    "attention": "unfused",
}


def row(software: str = "Megatron-LM 6985e58, pytorch 20.12", **changes: Any) -> Row:
    """A row of SC'21's Table 1 with some cells changed; None is blank."""
    cells = {key: value for key, value in {**GPT, **changes}.items() if value is not None}
    return Row(2, "a", "g", "test", software, cells, 3.5)


def test_a_complete_row_assumes_only_the_family() -> None:
    """Everything is in the columns but whether GPT or Llama."""
    scenario, assumed = describe(row())
    assert assumed == {"model": "a GPT"}
    assert scenario.training.stack == "megatron-2021"
    assert (scenario.gpus, scenario.num_microbatches) == (32, 1)
    assert not scenario.training.optimizer.overlap_grad_reduce  # the stack's habit
    assert not scenario.memory.enforce


def test_blanks_follow_the_stack_and_are_listed() -> None:
    """Recomputation, attention and ZeRO stage of Megatron-LM 2022; heads of 128; dp from the GPUs."""
    blank: dict[str, Any] = dict.fromkeys(
        ("recompute", "attention", "zero_stage", "num_query_groups", "dp", "micro_batch_size")
    )
    scenario, assumed = describe(row("Megatron-LM 2022", num_attention_heads=18, **blank))
    habits = read_stacks()["megatron-2022"].habits
    assert assumed["recompute"] == habits.recompute == scenario.training.recompute
    assert assumed["attention"] == habits.attention
    assert (assumed["num_query_groups"], assumed["dp"], assumed["micro_batch_size"]) == (18, 32, 1)


def test_an_unknown_software_is_generic() -> None:
    """And said to be."""
    scenario, assumed = describe(row("HomeBrew 1.0"))
    assert (scenario.training.stack, assumed["stack"]) == ("generic", "generic")


def test_a_named_model_fills_what_has_no_column() -> None:
    """DeepSeek-V3 cut to 4 layers keeps MLA, shared expert and sizes, and at most one dense layer."""
    blank: dict[str, Any] = dict.fromkeys(("ffn_hidden_size", "num_query_groups", "gated_mlp"))
    scenario, assumed = describe(
        row(
            model="DeepSeek-V3 cut to 4 layers",
            num_layers=4,
            hidden_size=7168,
            num_attention_heads=128,
            num_experts=256,
            top_k=8,
            vocab_size=129280,
            ep=8,
            precision="bf16",
            **blank,
        )
    )
    model = scenario.model
    assert model.mla is not None
    assert model.moe is not None
    assert (model.moe.ffn_hidden_size, model.moe.num_shared_experts, model.num_moe_layers) == (2048, 1, 3)
    assert assumed["first_dense_layers"] == 1


def test_longest_name_wins() -> None:
    """Punctuation and case do not matter; a prefix is enough."""
    found = catalogue_model("Llama3-70B cut to 12 layers")
    assert found is not None
    assert found.name == "llama3-70b"
    assert catalogue_model("My own 7B") is None
    assert catalogue_model("GPT-1.7B") is None  # GPT-1 is another model


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"global_batch_size": None}, "global_batch_size is blank"),
        ({"hidden_size": None}, "hidden_size is blank"),
        ({"num_layers": 7, "pp": 2, "dp": 16, "schedule": "bidirectional"}, "schedule"),
        ({"global_batch_size": 511}, "global_batch_size 511 is not divisible"),
        ({"precision": "int3"}, "precision"),
    ],
)
def test_what_cannot_be_simulated_is_refused(changes: dict[str, Any], reason: str) -> None:
    """With a reason that names the field."""
    with pytest.raises(RefusedError, match=reason):
        describe(row(**changes))


def test_layers_that_leave_room_for_both_ends() -> None:
    """22 layers over 8 stages: with embedding and output layer 24, so 2, 3, ..., 3, 2 (Zero Bubble, Llama 3 405B)."""
    scenario, assumed = describe(row(num_layers=22, pp=8, dp=4, schedule="1f1b", micro_batch_size=1))
    assert assumed["embedding_and_loss_as_layers"]
    assert scenario.training.schedule.embedding_and_loss_as_layers


def test_nanotron_weighs_the_output_layer() -> None:
    """16 layers of 67M and an output layer of 268M, four layers' worth, over 2 stages: 10 units each, so 11 and 5.

    A stage is full once its weights pass its share, hence 11 (11 > 10).
    """
    scenario, _ = describe(
        row(
            "nanotron 2024-12",
            num_layers=16,
            hidden_size=2048,
            ffn_hidden_size=8192,
            gated_mlp=True,
            num_attention_heads=32,
            num_query_groups=32,
            vocab_size=131072,
            pp=2,
            dp=16,
            micro_batch_size=1,
        )
    )
    assert cut_by_cost(scenario.model, 2) == (11, 5)
    # pipelines were run with the release after their fix: full once its weights reach its share
    assert cut_by_cost(scenario.model, 2, reached=True) == (10, 6)
    assert scenario.training.stack == "nanotron-2025-checked"
    assert scenario.training.schedule.layers == (10, 6)


def test_only_pipelines_were_run_with_the_later_release() -> None:
    """Of one `software`, runs with a pipeline take the stack that the entry names for them."""
    assert [stack_of(row("nanotron 2024-12", pp=pp, dp=32 // pp))[0].name for pp in (1, 2)] == [
        "nanotron-2024",
        "nanotron-2025-checked",
    ]


def test_shard_groups_smaller_than_dp() -> None:
    """InternEvo keeps the optimizer's shards inside a node."""
    scenario, _ = describe(row("InternEvo 2023", zero_stage=1, zero_group=8))
    assert scenario.training.optimizer.shard_group == 8


def test_a_schedule_that_fixes_its_chunks() -> None:
    """ZB-V cuts 4 ranks into 8 stages also where vpp is blank: 22 layers and both ends share them out evenly."""
    made, assumed = describe(row(num_layers=22, pp=4, dp=8, schedule="zb-v", vpp=None, recompute="none"))
    assert made.training.schedule.embedding_and_loss_as_layers
    assert assumed["embedding_and_loss_as_layers"] is True


def test_a_mixture_follows_its_stack() -> None:
    """SimuMax measured mixtures padded to a capacity of 1, which is listed; a dense model of theirs has none."""
    moe = {"num_experts": 8, "top_k": 2, "gated_mlp": True, "recompute": "none", "precision": "bf16"}
    made, assumed = describe(row("Megatron-LM 23e00ed", **moe))
    assert (made.training.expert_capacity_factor, made.training.expert_padding) == (1.0, True)
    assert assumed["expert_capacity_factor"] == 1.0
    dense, _ = describe(row("Megatron-LM 23e00ed", recompute="none"))
    assert dense.training.expert_capacity_factor is None


def test_a_wrong_word_names_its_column() -> None:
    """Precision and fabric; the list of what is known is with them."""
    with pytest.raises(RefusedError, match="column precision: 'bf2' is not simulated; known: 'fp32', 'tf32'"):
        describe(row(precision="bf2"))
    with pytest.raises(
        RefusedError, match="column fabric: 'carrier pigeons' names no network that we know; known words"
    ):
        describe(row(fabric="carrier pigeons"))
