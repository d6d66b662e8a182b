"""The pipeline schedule as a scenario names it, and how many layers each of its stages holds.

A model is cut into stages. Most schedules have one on every pipeline rank; interleaved has `vpp` of them, ZB-V and
DualPipeV have two, and DualPipe has two as well, one of each of its two copies of the model.

Limits: a stage holds whole layers. Pinned by tests/scenario/test_pipeline.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.errors import LayoutError

_Layers = Annotated[int, Field(strict=True, ge=0)]
_Count = Annotated[int, Field(strict=True, gt=0)]

ScheduleKind = Literal[
    "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-1p", "zb-2p", "zbv", "dualpipe", "dualpipev"
]

CHUNKS = {"zbv": 2, "dualpipe": 2, "dualpipev": 2}
"""Stages on a rank of the schedules that fix it."""


ZERO_BUBBLE = ("zb-h1", "zb-h2", "zb-1p", "zb-2p", "zbv")
"""Schedules whose authors also do away with the wait for the gradient norm."""


def chunks_per_rank(kind: str, vpp: int = 1) -> int:
    """Stages on every pipeline rank."""
    return CHUNKS.get(kind, vpp)


def num_stages(kind: str, pp: int, vpp: int = 1) -> int:
    """Slices that the model is cut into; DualPipe keeps each of its pp slices on two ranks."""
    return pp if kind == "dualpipe" else pp * chunks_per_rank(kind, vpp)


def microbatch_rule(kind: str, pp: int) -> tuple[int, int]:
    """What the number of microbatches must be a multiple of, and at least.

    Interleaved: groups of pp (Megatron). DualPipe: even, and 2 pp or more; DualPipeV: 2 pp or more
    (deepseek-ai/DualPipe asserts both).
    """
    if kind == "interleaved":
        return pp, pp
    return {"dualpipe": (2, 2 * pp), "dualpipev": (1, 2 * pp)}.get(kind, (1, 1))


class Schedule(BaseModel):
    """A pipeline schedule and its cut of the layers.

    Attributes
    ----------
    vpp
        Model chunks per rank, of an interleaved schedule.
    layers
        Layers of each stage, from the input to the output.
    first_stage_layers, last_stage_layers
        Layers of the first and of the last pipeline rank (Megatron's num_layers_in_first_pipeline_stage and
        num_layers_in_last_pipeline_stage); the other ranks share the rest.
    embedding_and_loss_as_layers
        Embedding and output layer count as a layer each when layers are shared out (Llama 3 405B, arXiv 2407.21783,
        section 3.3.2; Megatron's account_for_embedding_in_pipeline_split and account_for_loss_in_pipeline_split).
    post_validation
        Of the zero-bubble schedules, which have it if nothing is said: no rank waits for the global gradient norm, so
        that steps follow one another without a gap (arXiv 2401.10241, section 4).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ScheduleKind = "1f1b"
    vpp: _Count = 1
    layers: tuple[_Layers, ...] | None = None
    first_stage_layers: _Count | None = None
    last_stage_layers: _Count | None = None
    embedding_and_loss_as_layers: Annotated[bool, Field(strict=True)] = False
    post_validation: Annotated[bool, Field(strict=True)] | None = None

    @model_validator(mode="after")
    def _chunks_need_interleaving(self) -> Self:
        fixed = CHUNKS.get(self.kind)
        if fixed is not None and self.vpp not in (1, fixed):
            raise ValueError(
                f"vpp {self.vpp} with {self.kind}, which always has {fixed} chunks per rank; leave vpp out"
            )
        if self.vpp > 1 and self.kind != "interleaved" and fixed is None:
            raise ValueError(f"vpp {self.vpp} needs kind: interleaved; {self.kind} runs one chunk per rank")
        if self.vpp == 1 and self.kind == "interleaved":
            raise ValueError("an interleaved schedule needs vpp of at least 2; with one chunk per rank use 1f1b")
        return self

    @model_validator(mode="after")
    def _post_validation_is_zero_bubbles(self) -> Self:
        if self.post_validation and self.kind not in ZERO_BUBBLE:
            raise ValueError(
                f"post_validation needs a zero-bubble schedule ({', '.join(ZERO_BUBBLE)}), not {self.kind}"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> Self:
        named = self.says_layers
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each say how layers are shared out; keep one of them")
        return self

    @property
    def says_layers(self) -> list[str]:
        """Fields by which this schedule says how layers are shared out."""
        ends = self.first_stage_layers is not None or self.last_stage_layers is not None
        ways = {
            "layers": self.layers is not None,
            "first_stage_layers or last_stage_layers": ends,
            "embedding_and_loss_as_layers": self.embedding_and_loss_as_layers,
        }
        return [way for way, given in ways.items() if given]

    @property
    def synchronous(self) -> bool:
        """Whether all ranks begin and end a step together, at the global gradient norm."""
        return self.kind not in ZERO_BUBBLE or self.post_validation is False

    @property
    def chunks(self) -> int:
        """Stages on every pipeline rank."""
        return chunks_per_rank(self.kind, self.vpp)


def stage_layers(schedule: Schedule, num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers of every stage, from the input to the output.

    Without a word in the schedule all stages hold as many; what does not divide goes to the first stages, so that the
    last ones, before the output layer, have one fewer.

    Raises
    ------
    LayoutError
        Too few layers, or a cut that does not add up.
    """
    count = num_stages(schedule.kind, pp, schedule.vpp)
    name = f"pp {pp}" if count == pp else f"pp {pp} × {count // pp} chunks"
    if schedule.layers is not None:
        return _listed(schedule.layers, num_layers, count, name)
    if schedule.embedding_and_loss_as_layers:
        return _with_ends(num_layers, count, name)
    if schedule.first_stage_layers is not None or schedule.last_stage_layers is not None:
        return _given_ends(schedule, num_layers, pp, count)
    if num_layers < count:
        chunks = count // pp
        fewer = f"pp {num_layers // chunks}" if num_layers >= chunks else "fewer chunks"
        fixes = fewer + (f" or vpp {num_layers // pp}" if schedule.vpp > 1 and num_layers >= 2 * pp else "")
        raise LayoutError(f"num_layers {num_layers} are fewer than the {count} stages of {name}; use {fixes}")
    return _even(num_layers, count)


def _even(layers: int, count: int) -> tuple[int, ...]:
    each, more = divmod(layers, count)
    return (each + 1,) * more + (each,) * (count - more)


def _listed(layers: tuple[int, ...], num_layers: int, count: int, name: str) -> tuple[int, ...]:
    if len(layers) != count:
        raise LayoutError(f"schedule.layers has {len(layers)} entries, but {name} has {count} stages")
    if sum(layers) != num_layers:
        raise LayoutError(f"schedule.layers add up to {sum(layers)}, but the model's num_layers is {num_layers}")
    empty = [stage for stage in range(1, count - 1) if not layers[stage]]
    if empty:
        raise LayoutError(f"schedule.layers leaves stage {empty[0]} empty; only the first and the last may be")
    return layers


def _with_ends(num_layers: int, count: int, name: str) -> tuple[int, ...]:
    """Embedding and output layer take a layer's place each."""
    if num_layers + 2 < count:
        raise LayoutError(
            f"num_layers {num_layers} with embedding and loss as layers are fewer than the {count} stages of {name};"
            " use a smaller pp"
        )
    layers = list(_even(num_layers + 2, count))
    layers[0] -= 1
    layers[-1] -= 1
    return tuple(layers)


def _given_ends(schedule: Schedule, num_layers: int, pp: int, count: int) -> tuple[int, ...]:
    """First and last as said, the rest shared out; of interleaved stages a rank's chunks share what the rank has."""
    ranks = pp if schedule.kind == "interleaved" else count
    first = [] if schedule.first_stage_layers is None else [schedule.first_stage_layers]
    last = [] if schedule.last_stage_layers is None else [schedule.last_stage_layers]
    middle, rest = ranks - len(first) - len(last), num_layers - sum(first) - sum(last)
    ends = " + ".join(
        [*(f"first_stage_layers {each}" for each in first), *(f"last_stage_layers {each}" for each in last)]
    )
    chunks = count // ranks
    if middle < 0 or rest < middle * chunks or (not middle and rest):
        raise LayoutError(f"{ends} of num_layers {num_layers} leave {rest} layers to {middle * chunks} other stages")
    if min([*first, *last]) < chunks:
        raise LayoutError(f"{ends} are fewer than the vpp {chunks} chunks of a rank")
    per_rank = [*first, *(_even(rest, middle) if middle else ()), *last]
    cuts = [_even(layers, chunks) for layers in per_rank]
    return tuple(cuts[rank][chunk] for chunk in range(chunks) for rank in range(ranks))
