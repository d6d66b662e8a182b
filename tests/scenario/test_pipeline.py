"""The schedule of a scenario: which fields go together, and how layers are shared out."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.errors import LayoutError
from simulator.physics.schedules.tables import SCHEDULES
from simulator.scenario.pipeline import Schedule, ScheduleKind, num_stages, stage_layers


def test_every_schedule_can_be_named() -> None:
    """The names of a scenario are those of the tables."""
    assert get_args(ScheduleKind) == tuple(SCHEDULES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "zbv", "vpp": 4}, "vpp 4 with zbv, which always has 2 chunks per rank; leave vpp out"),
        ({"kind": "zb-h1", "vpp": 2}, "vpp 2 needs kind: interleaved; zb-h1 runs one chunk per rank"),
        ({"layers": [2, 2], "embedding_and_loss_as_layers": True}, "each say how layers are shared out; keep one"),
        ({"layers": [2, 2], "last_stage_layers": 1}, "layers and first_stage_layers or last_stage_layers each say"),
        ({"first_stage_layers": 0}, "greater than 0"),
        ({"layers": [-1, 5]}, "greater than or equal to 0"),
        ({"embedding_and_loss_as_layers": 1}, "valid boolean"),
    ],
)
def test_fields_that_exclude_each_other(fields: dict[str, Any], message: str) -> None:
    """What cannot be is refused with the fix."""
    with pytest.raises(ValidationError, match=message):
        Schedule.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "num_layers", "pp", "layers"),
    [
        ({}, 96, 8, (12,) * 8),
        # 61 = 13 · 4 + 3 · 3: the last stages, before the output layer, have fewer
        ({}, 61, 16, (4,) * 13 + (3,) * 3),
        # Zero Bubble's 1.5B: 22 layers and both ends on 8 stages
        ({"embedding_and_loss_as_layers": True}, 22, 8, (2, 3, 3, 3, 3, 3, 3, 2)),
        # Llama 3 405B: 126 layers, pp 16; 128 places of 8
        ({"embedding_and_loss_as_layers": True}, 126, 16, (7, *(8,) * 14, 7)),
        # with 8 chunks of one place each the first stage is the embedding alone and the last the output layer
        ({"kind": "interleaved", "vpp": 8, "embedding_and_loss_as_layers": True}, 126, 16, (0, *(1,) * 126, 0)),
        ({"first_stage_layers": 1, "last_stage_layers": 2}, 11, 4, (1, 4, 4, 2)),
        ({"last_stage_layers": 1}, 61, 16, (*(4,) * 15, 1)),
        # interleaved: what a rank has is shared by its chunks, stage = chunk · pp + rank
        ({"kind": "interleaved", "vpp": 2, "first_stage_layers": 2}, 14, 4, (1, 2, 2, 2, 1, 2, 2, 2)),
        ({"kind": "zbv"}, 9, 2, (3, 2, 2, 2)),
        ({"kind": "dualpipe"}, 9, 2, (5, 4)),
        ({"layers": [1, 4, 0]}, 5, 3, (1, 4, 0)),
        ({"embedding_and_loss_as_layers": True}, 5, 1, (5,)),
    ],
)
def test_cuts_worked_out(fields: dict[str, Any], num_layers: int, pp: int, layers: tuple[int, ...]) -> None:
    """Published cuts and small ones."""
    assert stage_layers(Schedule.model_validate(fields), num_layers, pp) == layers


@pytest.mark.parametrize(
    ("fields", "num_layers", "pp", "message"),
    [
        ({}, 4, 8, "num_layers 4 are fewer than the 8 stages of pp 8; use pp 4"),
        ({"kind": "interleaved", "vpp": 4}, 12, 4, "fewer than the 16 stages of pp 4 × 4 chunks; use pp 3 or vpp 3"),
        ({"layers": [2, 2]}, 4, 4, "schedule.layers has 2 entries, but pp 4 has 4 stages"),
        ({"layers": [2, 2, 2]}, 4, 3, "schedule.layers add up to 6, but the model's num_layers is 4"),
        ({"layers": [2, 0, 2]}, 4, 3, "leaves stage 1 empty; only the first and the last may be"),
        ({"embedding_and_loss_as_layers": True}, 4, 8, "fewer than the 8 stages of pp 8"),
        ({"first_stage_layers": 5}, 6, 4, "first_stage_layers 5 of num_layers 6 leave 1 layers to 3 other stages"),
        ({"first_stage_layers": 2, "last_stage_layers": 2}, 5, 2, "leave 1 layers to 0 other stages"),
        (
            {"kind": "interleaved", "vpp": 2, "last_stage_layers": 1},
            9,
            2,
            "last_stage_layers 1 are fewer than the vpp 2",
        ),
    ],
)
def test_cuts_that_do_not_add_up(fields: dict[str, Any], num_layers: int, pp: int, message: str) -> None:
    """The message quotes the numbers."""
    with pytest.raises(LayoutError, match=message):
        stage_layers(Schedule.model_validate(fields), num_layers, pp)


@given(
    st.sampled_from(get_args(ScheduleKind)), st.integers(1, 12), st.integers(2, 4), st.integers(1, 200), st.booleans()
)
def test_no_layer_is_lost(kind: Any, pp: int, vpp: int, num_layers: int, ends: bool) -> None:
    """Every stage of a default cut has as many layers as the next, or one more; with ends as layers they count too."""
    vpp = vpp if kind == "interleaved" else 1
    schedule = Schedule(kind=kind, vpp=vpp, embedding_and_loss_as_layers=ends)
    count = num_stages(kind, pp, vpp)
    if num_layers < count:
        return
    layers = list(stage_layers(schedule, num_layers, pp))
    assert (len(layers), sum(layers)) == (count, num_layers)
    if ends:
        layers[0] += 1
        layers[-1] += 1
    assert layers == sorted(layers, reverse=True)
    assert layers[0] - layers[-1] <= 1
