"""Phases of a run: stretches of training with a recipe of their own, and ramps of the batch size.

A phase states its length and what differs from `training` and `parallelism`. A ramp is Megatron's: the batch grows from
`from` to the phase's batch by `increment`s, each for an equal part of the ramp's `samples`.

A phase may train another model, as a multimodal run does when its encoder is added: what a step computes and what is
saved are then that model's.

Limits: the job's GPUs are the same in all phases; what is frozen is not known, so a model counts as trained whole.

Pinned by tests/scenario/test_phases.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from simulator.errors import LayoutError
from simulator.scenario.parallelism import DENSE_AXES, Parallelism, name_factors
from simulator.scenario.transformer import Transformer
from simulator.scenario.units import Tokens, TokensField

# Every batch size is simulated once. Assumption: five times the batch sizes of the longest published ramp.
MAX_BATCH_SIZES = 100
# A last step is not added for what rounding leaves over.
_ROUNDING = 1e-12

_CLOSED = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)
_Count = Annotated[int, Field(strict=True, gt=0)]


class Ramp(BaseModel):
    """The batch grows (Megatron-LM's ``--rampup-batch-size from increment samples``).

    Attributes
    ----------
    from_
        Sequences of the first batches; ``from`` in a file.
    increment
        Sequences that are added each time.
    samples
        Sequences after which the phase's batch is reached.
    """

    model_config = _CLOSED

    from_: _Count = Field(alias="from")
    increment: _Count
    samples: Annotated[float, Field(strict=True, gt=0)]


class PhaseSplit(BaseModel):
    """Degrees that a phase changes; `dp` follows from the job's GPUs if another one is stated and it is not."""

    model_config = _CLOSED

    tp: _Count | None = None
    cp: _Count | None = None
    pp: _Count | None = None
    dp: _Count | None = None
    ep: _Count | None = None
    etp: _Count | None = None
    sequence_parallel: Annotated[bool, Field(strict=True)] | None = None

    def applied(self, base: Parallelism) -> Parallelism:
        """The split of the phase, over the GPUs of `base`.

        Raises
        ------
        LayoutError
            The degrees do not fill those GPUs.
        """
        own = {name: value for name, value in self.model_dump().items() if value is not None}
        kept = {name: value for name, value in base.model_dump().items() if value is not None}
        if set(own) & set(DENSE_AXES):
            del kept["dp"]
        if "tp" in own:  # what followed from tp follows from the new one
            kept = {name: value for name, value in kept.items() if name not in ("etp", "sequence_parallel")}
        split = Parallelism(**{**kept, **own}).derive(base.world_size)
        if split.world_size != base.world_size:
            degrees = name_factors({axis: getattr(split, axis) for axis in DENSE_AXES})
            raise LayoutError(
                f"{degrees} = {split.world_size:,} GPUs, but the job has {base.world_size:,}; leave dp out"
            )
        return split


class Phase(BaseModel):
    """A stretch of training; what is left out is as in `model`, `training` and `parallelism`."""

    model_config = _CLOSED

    name: str = Field(min_length=1)
    tokens: TokensField
    sequence_length: _Count | None = None
    global_batch_size: _Count | None = None
    micro_batch_size: _Count | None = None
    ramp: Ramp | None = None
    parallelism: PhaseSplit = PhaseSplit()
    model: Transformer | None = None


class Stretch(NamedTuple):
    """Steps of one recipe: the fields of `training` that it changes, and its steps; the last may be partly filled."""

    name: str
    phase: int
    changes: dict[str, Any]
    steps: int


def whole_steps(tokens: Tokens, tokens_per_step: int) -> int:
    """Steps that it takes; the last one may be partly filled."""
    return math.ceil(tokens / tokens_per_step * (1 - _ROUNDING))


def stretches(phase: Phase, number: int, recipe: dict[str, int]) -> list[Stretch]:
    """A phase as stretches of constant batch.

    Parameters
    ----------
    phase, number
        The phase, and which one it is.
    recipe
        `sequence_length`, `global_batch_size` and `micro_batch_size` of `training`.

    Raises
    ------
    ValueError
        A ramp that does not reach the batch in whole increments, or not within the phase.
    """
    own = {name: getattr(phase, name) for name in recipe}
    recipe = {name: recipe[name] if value is None else value for name, value in own.items()}
    length, batch = recipe["sequence_length"], recipe["global_batch_size"]
    done = 0
    found = []
    for size, samples in _ramp_sizes(phase, batch):
        # Megatron takes the size that the samples consumed so far say.
        steps = math.ceil((samples - done) / size * (1 - _ROUNDING))
        if steps > 0:
            changes = {**recipe, "global_batch_size": size, "tokens": float(steps * size * length)}
            found.append(Stretch(f"{phase.name}, batch {size:,}", number, changes, steps))
            done += steps * size
    left = phase.tokens - done * length
    if left <= 0:
        raise ValueError(
            f"phase {phase.name!r}: its ramp takes {done:,} sequences, {done * length:.6g} tokens, but the phase has"
            f" {phase.tokens:.6g}; use fewer samples, or more tokens"
        )
    name = f"{phase.name}, batch {batch:,}" if found else phase.name
    found.append(Stretch(name, number, {**recipe, "tokens": left}, whole_steps(left, batch * length)))
    return found


def _ramp_sizes(phase: Phase, batch: int) -> list[tuple[int, float]]:
    """Batch sizes before the last, each with the samples after which it ends."""
    ramp = phase.ramp
    if ramp is None:
        return []
    count, rest = divmod(batch - ramp.from_, ramp.increment)
    if batch <= ramp.from_ or rest:
        fix = f"use an increment that divides {batch - ramp.from_:,}" if rest else f"start below {batch:,}"
        raise ValueError(
            f"phase {phase.name!r}: a ramp from {ramp.from_:,} by {ramp.increment:,} does not reach the batch of"
            f" {batch:,} sequences; {fix}"
        )
    if count > MAX_BATCH_SIZES:
        raise ValueError(
            f"phase {phase.name!r}: an increment of {ramp.increment:,} makes {count:,} batch sizes on the way; at most"
            f" {MAX_BATCH_SIZES} are simulated: use {-(-(batch - ramp.from_) // MAX_BATCH_SIZES):,} or more"
        )
    return [(ramp.from_ + place * ramp.increment, ramp.samples * (place + 1) / count) for place in range(count)]
