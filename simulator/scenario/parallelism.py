"""How a job is split over GPUs: degrees, rank order, groups, and which splits are impossible.

Job GPUs = tp · cp · pp · dp. A rank is a point of that grid; the order string says which axis varies fastest,
so the groups of an axis are rows of a transposed `arange` (nanotron's form of Megatron's `RankGenerator`,
Megatron-LM `core/parallel_state.py`). Experts have a second grid over the same ranks, etp · ep · edp · pp, in
which `ep` takes its place from the same order string and cp is folded into the expert data parallelism.

Limits: layers are split evenly over stages, one order string rules all groups, and nothing here knows which
node a rank sits on (`placement` is only recorded).

Pinned by tests/scenario/test_parallelism.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from simulator.errors import LayoutError

if TYPE_CHECKING:
    # Degrees are None only in a description from which `derive` has not filled the gaps yet. Everything past
    # the front door sees whole numbers, so that is what a type checker sees.
    Degree: TypeAlias = int
    Switch: TypeAlias = bool
else:
    Degree = Annotated[int, Field(strict=True, ge=1)] | None
    Switch = Annotated[bool, Field(strict=True)] | None

Ranks: TypeAlias = NDArray[np.int64]

DENSE_AXES = ("tp", "cp", "pp", "dp")
_EXPERT_ONLY = frozenset(("etp", "ep", "edp"))
# In the expert grid an axis of the order string stands for another; cp has no place of its own.
_EXPERT_NAME = {"tp": "etp", "ep": "ep", "dp": "edp", "pp": "pp"}
# Assumption: a fix further away than this is no fix, and the search for one stays quick.
_FIX_REACH = 4096

_LEFT_OUT: Any = None


def _like_tp(fields: dict[str, Any]) -> Any:
    return fields.get("tp")  # absent where tp itself is wrong, None where it is to be derived


def _where_tp(fields: dict[str, Any]) -> Any:
    tp = fields.get("tp")
    return None if tp is None else tp > 1


class Parallelism(BaseModel):
    """Degrees of a parallel split.

    At most one of `tp`, `cp`, `pp`, `dp` is None (`dp` by default) until `derive` fills it in.

    Attributes
    ----------
    tp, cp, pp, dp
        Tensor, context, pipeline and data parallel degree; their product is the job's GPUs.
    ep, etp
        Expert parallel degree and tensor parallel degree inside an expert (default: `tp`);
        etp · ep divides tp · cp · dp.
    order
        Axes of the rank grid, first varies fastest. `ep` counts only in the expert grid.
    sequence_parallel
        Split norms and dropout along the sequence over the tp group (default: where tp > 1).
    placement
        ``contiguous``, ``leaf_aware``, or node numbers in the order in which ranks fill them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tp: Degree = 1
    cp: Degree = 1
    pp: Degree = 1
    dp: Degree = _LEFT_OUT
    ep: Annotated[int, Field(strict=True, ge=1)] = 1
    etp: Degree = Field(default_factory=_like_tp)
    order: str = "tp-cp-ep-dp-pp"
    sequence_parallel: Switch = Field(default_factory=_where_tp)
    placement: Literal["contiguous", "leaf_aware"] | tuple[Annotated[int, Field(strict=True, ge=0)], ...] = "contiguous"

    @field_validator("order")
    @classmethod
    def _order_names_every_axis_once(cls, order: str) -> str:
        axes = order.split("-")
        if sorted(axes) not in (sorted(DENSE_AXES), sorted((*DENSE_AXES, "ep"))):
            raise ValueError(
                f"{order!r} is not a rank order; write tp, cp, ep, dp and pp once each, like 'tp-cp-ep-dp-pp'"
            )
        return order

    @field_validator("placement")
    @classmethod
    def _nodes_once(cls, placement: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(placement, tuple):
            if not placement:
                raise ValueError("an empty list places no rank; write 'contiguous' or the node numbers in order")
            if len(set(placement)) < len(placement):
                twice = next(node for node in placement if placement.count(node) > 1)
                raise ValueError(f"node {twice} is listed {placement.count(twice)} times; list each node once")
        return placement

    @model_validator(mode="after")
    def _one_gap_at_most(self) -> Parallelism:
        gaps = _gaps(self)
        if len(gaps) > 1:
            raise ValueError(f"{' and '.join(gaps)} are left out; only one degree can be derived: write the others")
        if self.ep > 1 and "ep" not in self.order.split("-"):
            raise ValueError(
                f"ep {self.ep} has no place in the rank order {self.order!r}; write it like 'tp-cp-ep-dp-pp'"
            )
        return self

    def derive(self, gpus: int) -> Parallelism:
        """Fill in the degree that was left out so that the job covers `gpus` GPUs.

        With no degree left out, the job may be smaller than `gpus`: the rest are spares or idle.

        Raises
        ------
        LayoutError
            The other degrees do not divide `gpus`, or the job is larger.
        """
        gaps = _gaps(self)
        given = {axis: getattr(self, axis) for axis in DENSE_AXES if axis not in gaps}
        product = math.prod(given.values())
        factors = f"{name_factors(given)} = {product:,}"
        if product > gpus:
            raise LayoutError(f"{factors} GPUs are more than the {gpus:,} there are")
        found: dict[str, int] = {}
        if gaps:
            degree, idle = divmod(gpus, product)
            if idle:
                raise LayoutError(
                    f"{factors} does not divide {gpus:,} GPUs; use {gaps[0]} {degree:,}:"
                    f" {degree * product:,} = {degree:,} × {product:,} GPUs, leaving {idle:,} idle"
                )
            found = {gaps[0]: degree}
        known = {name: value for name, value in self.model_dump().items() if value is not None}
        return Parallelism(**{**known, **found})

    @property
    def world_size(self) -> int:
        """Job GPUs: tp · cp · pp · dp."""
        return math.prod(_dense_grid(self).values())

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense parameters: dp · cp."""
        grid = _dense_grid(self)
        return grid["dp"] * grid["cp"]

    @property
    def edp(self) -> int:
        """Expert data parallel degree: tp · cp · dp / (etp · ep)."""
        return _expert_grid(self)["edp"]

    def coordinates(self, rank: int, *, experts: bool = False) -> dict[str, int]:
        """Position of a rank in the dense grid (tp, cp, dp, pp), or in that of the experts (etp, ep, edp, pp).

        Raises
        ------
        LayoutError
            There is no such rank.
        """
        grid = _expert_grid(self) if experts else _dense_grid(self)
        if not 0 <= rank < self.world_size:
            raise LayoutError(f"there is no rank {rank:,}: ranks are 0 to {self.world_size - 1:,}")
        position = {}
        for axis, degree in grid.items():
            rank, position[axis] = divmod(rank, degree)
        return position

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """Rank at a position: the inverse of `coordinates`, for either grid.

        Raises
        ------
        LayoutError
            An axis is missing, unknown, or the position lies outside the grid.
        """
        experts = not _EXPERT_ONLY.isdisjoint(coordinates)
        grid = _expert_grid(self) if experts else _dense_grid(self)
        if set(coordinates) != set(grid):
            raise LayoutError(f"{sorted(coordinates)} is no position: name each of {', '.join(grid)}")
        rank, stride = 0, 1
        for axis, degree in grid.items():
            if not 0 <= coordinates[axis] < degree:
                raise LayoutError(f"{axis} {coordinates[axis]} is outside 0 to {degree - 1}")
            rank += coordinates[axis] * stride
            stride *= degree
        return rank

    def index(self, axis: str) -> Ranks:
        """Position of every rank along an axis [world_size]."""
        number = np.empty(self.world_size, dtype=np.int64)
        groups = self.groups(axis)
        number[groups] = np.arange(groups.shape[1])
        return number

    def groups(self, axes: str) -> Ranks:
        """Ranks that differ only in the given axes.

        Parameters
        ----------
        axes
            One axis, ``"tp"``, or several, ``"dp-cp"`` (the group over which gradients are reduced). `etp`, `ep`
            and `edp` are axes of the experts' grid, in which cp and dp have no place.

        Returns
        -------
        ndarray of int64, shape [number of groups, group size]
            Groups by their first rank, ranks ascending: Megatron's order in both.

        Raises
        ------
        LayoutError
            Unknown axes, or axes of two grids.
        """
        names = axes.split("-")
        experts = not _EXPERT_ONLY.isdisjoint(names)
        grid = _expert_grid(self) if experts else _dense_grid(self)
        if not set(names) <= set(grid) or len(set(names)) < len(names):
            raise LayoutError(f"{axes!r} names no groups; join axes of tp-cp-dp-pp or of etp-ep-edp-pp")
        # C order has its last axis fastest, the order string its first.
        slow_to_fast = list(reversed(grid))
        ranks = np.arange(self.world_size, dtype=np.int64).reshape([grid[axis] for axis in slow_to_fast])
        inside = [index for index, axis in enumerate(slow_to_fast) if axis in names]
        outside = [index for index, axis in enumerate(slow_to_fast) if axis not in names]
        size = math.prod(grid[axis] for axis in names)
        return np.ascontiguousarray(ranks.transpose([*outside, *inside]).reshape(-1, size))


def _gaps(parallelism: Parallelism) -> list[str]:
    return [axis for axis in DENSE_AXES if getattr(parallelism, axis) is None]


def name_factors(degrees: Mapping[str, Any]) -> str:
    """A product with its factors named: ``tp 8 × pp 15``."""
    return " × ".join(f"{axis} {degree:,}" for axis, degree in degrees.items())


def _dense_grid(parallelism: Parallelism) -> dict[str, int]:
    """Degree of every axis, fastest first; ep has degree 1 here and is left out."""
    gaps = _gaps(parallelism)
    if gaps:
        raise LayoutError(f"{gaps[0]} is left out and not derived yet: call derive(gpus) first")
    return {axis: getattr(parallelism, axis) for axis in parallelism.order.split("-") if axis != "ep"}


def _expert_grid(parallelism: Parallelism) -> dict[str, int]:
    """Degree of every axis of the experts' grid, fastest first; checks that it fits the dense one."""
    dense = _dense_grid(parallelism)
    stage = parallelism.world_size // parallelism.pp
    etp = parallelism.tp if parallelism.etp is None else parallelism.etp
    expert = etp * parallelism.ep
    if stage % expert:
        factors = name_factors({axis: dense[axis] for axis in ("tp", "cp", "dp")})
        fixes = suggest("ep", parallelism.ep, lambda ep: stage % (etp * ep) == 0, stage)
        raise LayoutError(f"etp {etp} × ep {parallelism.ep} = {expert:,} does not divide {factors} = {stage:,}{fixes}")
    degrees = {"etp": etp, "ep": parallelism.ep, "edp": stage // expert, "pp": parallelism.pp}
    axes = [_EXPERT_NAME[axis] for axis in parallelism.order.split("-") if axis in _EXPERT_NAME]
    if "ep" not in axes:
        axes.append("ep")
    grid = {axis: degrees[axis] for axis in axes}
    # A pipeline stage must hold the same ranks in both grids (Megatron asserts the same).
    if parallelism.pp > 1 and _stride(dense, "pp") != _stride(grid, "pp"):
        raise LayoutError(
            f"in the rank order {parallelism.order!r} pipeline stages of the experts ({name_factors(grid)}) are not"
            f" those of the rest ({name_factors(dense)}); put pp last: 'tp-cp-ep-dp-pp'"
        )
    return grid


def _stride(grid: Mapping[str, int], axis: str) -> int:
    axes = list(grid)
    return math.prod(grid[name] for name in axes[: axes.index(axis)])


def suggest(axis: str, degree: int, works: Callable[[int], bool], most: int) -> str:
    """Name the nearest degrees below and above that work, if there are any."""
    start = min(degree - 1, most)
    below = next((value for value in range(start, max(start - _FIX_REACH, 0), -1) if works(value)), None)
    above = next((value for value in range(degree + 1, min(most, degree + _FIX_REACH) + 1) if works(value)), None)
    found = [f"{value:,}" for value in (below, above) if value is not None]
    return f"; use {axis} {' or '.join(found)}" if found else ""
