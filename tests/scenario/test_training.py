"""The training recipe: defaults, what is refused, and what a refusal says."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from simulator.scenario.training import BYTES_PER_ELEMENT, Optimizer, Precision, Schedule, Training

NEEDED = {"sequence_length": 2048, "global_batch_size": 512}


def recipe(**changes: Any) -> Training:
    """Read a recipe as a scenario file holds it."""
    return Training.model_validate({**NEEDED, **changes})


def test_defaults() -> None:
    """A recipe of two numbers: bf16, a sequence a microbatch, 1F1B, flash attention, whole Adam, fp32 gradients."""
    made = recipe()
    assert (made.micro_batch_size, made.precision, made.recompute, made.attention) == (1, "bf16", "none", "flash")
    assert made.schedule == Schedule(kind="1f1b", vpp=1)
    assert made.optimizer == Optimizer(kind="adam", zero_stage=0, grad_dtype="fp32", overlap_grad_reduce=True)
    assert (made.dropout, made.stack, made.tokens) == (False, "generic", None)


def test_tokens_of_a_step() -> None:
    """512 sequences of 2,048 tokens."""
    assert recipe().tokens_per_step == 1_048_576


def test_length_of_the_run_has_a_unit() -> None:
    """A bare number of tokens is refused, as every quantity with a dimension."""
    assert recipe(tokens="13e12 tokens").tokens == 13e12
    with pytest.raises(ValidationError, match="tokens"):
        recipe(tokens=13e12)


def test_schedule_by_name() -> None:
    """`schedule: gpipe` is short for `schedule: {kind: gpipe}`."""
    assert recipe(schedule="gpipe").schedule == recipe(schedule={"kind": "gpipe"}).schedule == Schedule(kind="gpipe")
    assert recipe(schedule={"kind": "interleaved", "vpp": 4}).schedule.vpp == 4


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("interleaved", "an interleaved schedule needs vpp of at least 2; with one chunk per rank use 1f1b"),
        ({"kind": "interleaved", "vpp": 1}, "an interleaved schedule needs vpp of at least 2"),
        ({"kind": "1f1b", "vpp": 2}, "vpp 2 needs kind: interleaved; 1f1b runs one chunk per rank"),
        ({"kind": "gpipe", "vpp": 3}, "vpp 3 needs kind: interleaved; gpipe runs one chunk per rank"),
        ("zigzag", "Input should be 'gpipe', '1f1b', 'interleaved', 'zb-h1'"),
    ],
)
def test_chunks_and_interleaving_belong_together(schedule: Any, message: str) -> None:
    """What cannot be is refused with the fix."""
    with pytest.raises(ValidationError, match=message):
        recipe(schedule=schedule)


@pytest.mark.parametrize("field", ["sequence_length", "global_batch_size", "micro_batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 8.0, True, "8", None])
def test_counts_are_whole_positive_numbers(field: str, value: Any) -> None:
    """Neither zero nor a fraction, a text or a switch."""
    with pytest.raises(ValidationError, match=field):
        recipe(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("precision", "int8"),
        ("recompute", "some"),
        ("recompute", True),
        ("attention", "sparse"),
        ("dropout", "yes"),
        ("dropout", 1),
        ("micro_batchsize", 2),
        ("optimizer", {"zero_stage": 4}),
        ("optimizer", {"zero_stage": True}),
        ("optimizer", {"zero_stage": "1"}),
        ("optimizer", {"kind": "lion"}),
        ("optimizer", {"grad_dtype": "fp8"}),
        ("optimizer", {"state_dtype": "fp16"}),
        ("optimizer", {"overlap_grad_reduce": 1}),
        ("optimizer", {"overlap_param_gather": "true"}),
        ("optimizer", {"reshard": True}),
    ],
)
def test_what_is_not_allowed_is_refused(field: str, value: Any) -> None:
    """Unknown names, values outside their lists, and truths that are no switches."""
    with pytest.raises(ValidationError, match=field):
        recipe(**{field: value})


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_zero_stages(zero_stage: int) -> None:
    """All four of ZeRO's."""
    assert recipe(optimizer={"zero_stage": zero_stage}).optimizer.zero_stage == zero_stage


def test_recipe_is_frozen_and_survives_its_dump() -> None:
    """A result embeds the recipe, and what it embeds can be read again."""
    made = recipe(tokens="1e9 tokens", schedule={"kind": "interleaved", "vpp": 2}, optimizer={"zero_stage": 3})
    assert Training.model_validate(made.model_dump(mode="json", exclude_none=True)) == made
    with pytest.raises(ValidationError, match="frozen"):
        made.micro_batch_size = 2


def test_every_precision_has_a_size() -> None:
    """Bytes of an element: 4 for fp32 and tf32, 2 for 16 bits, 1 for fp8."""
    assert set(get_args(Precision)) == set(BYTES_PER_ELEMENT)
    assert BYTES_PER_ELEMENT == {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1}


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_no_sync_needs_something_to_put_off(zero_stage: int) -> None:
    """Below ZeRO-2 gradients are reduced once a step anyway."""
    with pytest.raises(ValidationError, match="use zero_stage 2 or 3"):
        recipe(optimizer={"zero_stage": zero_stage, "no_sync": True})
    assert recipe(optimizer={"zero_stage": 3, "no_sync": True}).optimizer.no_sync
