"""Published figures that a scenario is compared with: data beside the inputs, never read by the simulation.

Each entry is named after the figure of the result that it is compared with, and gives one `value`, a range `between`,
or a bound `at_least` / `at_most`, with its source.

Pinned by tests/scenario/test_expected.py.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from simulator.scenario.units import parse_quantity

FIGURES: dict[str, str | None] = {
    "step_time_s": "time", "tokens_per_s": "throughput", "tokens_per_s_per_gpu": "throughput", "mfu": None,
    "mfu_causal": None, "mfu_6nd": None, "hfu": None, "bubble_fraction": None, "bubble_overhead": None,
    "wall_clock_s": "time", "healthy_mfu": None, "effective_mfu": None, "effective_mfu_owned": None,
    "failure_induced_mfu_loss": None, "goodput": None, "ettr": None, "failures": None, "interruptions": None,
    "mttf_s": "time", "mttr_s": "time", "lost_work_s": "time", "checkpoint_s": "time", "detection_s": "time",
    "restart_s": "time", "waiting_s": "time", "gpu_hours": "gpu-hours",
    "job_gpu_hours": "gpu-hours", "cost_usd": "money",
    "memory_bytes": "bytes", "total_parameters": None, "active_parameters": None,
}  # fmt: skip
"""Figures that can be compared, with the dimension that their values carry (none: a plain number)."""

_FORMS = ("value", "between", "at_least", "at_most")


class Expected(BaseModel):
    """One published figure, in SI units (gpu_hours in hours)."""

    # infinities would not survive JSON, and nothing is published as one
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float | None = None
    between: tuple[float, float] | None = None
    at_least: float | None = None
    at_most: float | None = None
    source: str
    note: str = ""

    @model_validator(mode="after")
    def _exactly_one_form(self) -> Self:
        given = [form for form in _FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_FORMS)}; found {', '.join(given) or 'none'}")
        if self.between is not None and self.between[0] > self.between[1]:
            low, high = self.between
            raise ValueError(f"between: {low} is more than {high}; write the lower end first")
        return self


def read_expected(name: str, content: Any) -> Any:
    """Turn the unit strings of one entry into SI numbers; the rest is left for `Expected` to check.

    Raises
    ------
    ValueError
        A bare number for a figure with a dimension, or a unit string of another.
    """
    dimension = FIGURES[name]
    if dimension is None or not isinstance(content, dict):
        return content

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [parse_quantity(each, dimension) for each in value]
        return parse_quantity(value, dimension)

    return {key: number(value) if key in _FORMS and value is not None else value for key, value in content.items()}


def agrees(expected: Expected, simulated: float) -> bool | None:
    """Whether a figure lies in the published range or within its bound; None for a single value, which has no width."""
    if expected.between is not None:
        return expected.between[0] <= simulated <= expected.between[1]
    if expected.at_least is not None:
        return simulated >= expected.at_least
    if expected.at_most is not None:
        return simulated <= expected.at_most
    return None
