"""Software stacks: every entry is complete, has a source, and can be told apart by name."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from simulator.scenario.stacks import CATALOGUE, Stack, find_stack, read_stacks
from simulator.scenario.training import Training

STACKS = read_stacks()


def test_names_are_unique() -> None:
    """No entry of the file hides another one."""
    names = [entry["name"] for entry in yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))]
    assert names == list(STACKS)


def test_default_stack_exists() -> None:
    """A recipe that names no stack finds one."""
    assert Training(sequence_length=1, global_batch_size=1).stack in STACKS


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_every_stack_says_where_it_is_from(stack: Stack) -> None:
    """A source, and for the slowdown beside collectives a value between nothing and doubling."""
    assert len(stack.source) > 20
    assert 1 <= stack.overlap_slowdown < 2
    assert stack.step_overhead >= 0


def test_megatron_of_2021_reduces_all_gradients_at_once() -> None:
    """Its bucket is larger than any model; Megatron-Core's has 40M elements."""
    assert STACKS["megatron-2021"].grad_bucket_elements > 1e12 / 2
    assert STACKS["megatron-core-2024"].grad_bucket_elements == 40_000_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("overlap_slowdown", 0.9),
        ("grad_bucket_elements", 0),
        ("step_overhead", 0.1),
        ("blocking_p2p", None),
        ("speed", 1),
    ],
)
def test_a_wrong_entry_is_refused(field: str, value: Any) -> None:
    """A slowdown below 1, an empty bucket, seconds without a unit, a missing switch, an unknown field."""
    content = STACKS["generic"].model_dump(mode="json")
    assert Stack.model_validate(content) == STACKS["generic"]
    with pytest.raises(ValidationError, match=field):
        Stack.model_validate({**content, field: value})


def test_the_longest_prefix_wins() -> None:
    """Case does not matter; what nobody names is nobody's."""
    found = {
        "Megatron-LM 2020": "megatron-2020",
        "megatron-lm fork (zero-bubble)": "zero-bubble-2023",
        "Megatron-LM 1234567": "megatron-core-2024",
        "NeMo 26.04.01 container, Megatron-Bridge": "nemo-2026",
        "NeMo": "nemo-2025",
    }
    for software, name in found.items():
        stack = find_stack(software)
        assert stack is not None
        assert stack.name == name
    assert find_stack("HomeBrew 1.0") is None


def test_no_software_belongs_to_two_stacks() -> None:
    """A prefix is written once."""
    prefixes = [prefix.lower() for stack in STACKS.values() for prefix in stack.software]
    assert len(prefixes) == len(set(prefixes))


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_a_factor_is_fitted_or_taken_from_a_neighbour(stack: Stack) -> None:
    """A factor other than 1 has a fit to calibration rows or names the stack that it is from."""
    if stack.prior is not None:
        assert stack.compute_efficiency == STACKS[stack.prior].compute_efficiency
    elif stack.compute_efficiency != 1:
        assert stack.fit is not None
        assert stack.fit.rows >= 1
