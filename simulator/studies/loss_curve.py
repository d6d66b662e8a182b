"""MFU lost over an axis: points, markers and the table behind the picture.

Pinned by tests/studies/test_failure_loss.py.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any, NamedTuple

from simulator.records import CAMPAIGN_KEYS, FAILURE_KEYS
from simulator.studies.replicate import Run

PARTS = (*FAILURE_KEYS, *(key for key in CAMPAIGN_KEYS if key not in (*FAILURE_KEYS, "productive")), "start")
"""Of the loss, what failures cost first; `start` is the first start, which no failure asked for."""
UNITS = {"gpus": "GPUs", "mtbf": "s", "interval": "s", "spares": "machines"}
"""What a picture may be against, and the unit of its values."""
OWN, OPTIMUM, BEST_OWNED = "this scenario", "simulated optimum", "most MFU over owned GPUs"
"""Names of markers: the scenario's own value, the best interval, the best number of spares."""


class Case(NamedTuple):
    """A run and where it stands on the axis, in the unit of `UNITS`."""

    value: float
    run: Run


class Estimate(NamedTuple):
    """A mean over replications with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


class LossPoint(NamedTuple):
    """A case, replicated.

    Attributes
    ----------
    value
        Where it stands on the axis.
    gpus, owned_gpus
        Of the job, and with those standing by.
    healthy_mfu, effective_mfu, effective_mfu_owned
        Means; over job GPUs, and over all GPUs paid for.
    loss
        MFU lost in all: healthy less effective.
    failure_loss
        The part of it that failures cost.
    parts
        MFU lost by fate, keyed by `PARTS`: they add up to `loss`.
    causes
        The same by cause: failure class, slow source, checkpoint and so on.
    failures, wall_clock_s
        Mean count of failures and mean length of the run.
    """

    value: float
    gpus: int
    owned_gpus: int
    healthy_mfu: float
    effective_mfu: float
    effective_mfu_owned: float
    loss: Estimate
    failure_loss: Estimate
    parts: dict[str, float]
    causes: dict[str, float]
    failures: float
    wall_clock_s: float


class Marker(NamedTuple):
    """A value of the axis worth a line of its own."""

    name: str
    value: float


class LeftOut(NamedTuple):
    """A value that could not be simulated, and why."""

    value: float
    reason: str


@dataclass(frozen=True)
class LossCurve:
    """MFU loss over an axis.

    Attributes
    ----------
    scenario, against, seed, runs
        Of what, over what (a key of `UNITS`), replications of which seed.
    points
        By ascending value.
    markers
        The scenario's own value, the optimum, closed forms.
    held
        What was held while the axis was varied, and what grew with it: a sentence.
    left_out
        Values of the default range that could not be simulated.
    """

    scenario: str
    against: str
    seed: int
    runs: int
    points: tuple[LossPoint, ...]
    markers: tuple[Marker, ...]
    held: str
    left_out: tuple[LeftOut, ...] = ()

    def written(self, value: float) -> str:
        """A value of the axis with its unit."""
        return f"{value:,.6g} {UNITS[self.against]}"

    def causes(self) -> tuple[str, ...]:
        """Causes of every point, those that cost most in all first."""
        names = dict.fromkeys(cause for point in self.points for cause in point.causes)
        return tuple(sorted(names, key=lambda name: (-sum(p.causes.get(name, 0.0) for p in self.points), name)))

    def rows(self, by: str = "fate") -> list[dict[str, float]]:
        """One flat row of figures per point, with the parts of the loss by `fate` or by `cause`."""
        return [_row(self.against, point, self._parts(point, by)) for point in self.points]

    def _parts(self, point: LossPoint, by: str) -> dict[str, float]:
        if by == "cause":
            return {f"by_cause.{cause}": point.causes.get(cause, 0.0) for cause in self.causes()}
        return {f"{key}_mfu_loss": value for key, value in point.parts.items()}

    def csv(self, by: str = "fate") -> str:
        """The rows as a table."""
        text = io.StringIO()
        rows = self.rows(by)
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def figures(self, by: str = "fate") -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "scenario": self.scenario,
            "against": self.against,
            "unit": UNITS[self.against],
            "seed": self.seed,
            "runs": self.runs,
            "held": self.held,
            "points": self.rows(by),
            "markers": {marker.name: marker.value for marker in self.markers},
            "left_out": [each._asdict() for each in self.left_out],
        }


def _row(against: str, point: LossPoint, parts: dict[str, float]) -> dict[str, float]:
    name = against if UNITS[against] != "s" else f"{against}_s"
    return {
        name: point.value,
        **({} if against == "gpus" else {"gpus": point.gpus}),
        "owned_gpus": point.owned_gpus,
        "healthy_mfu": point.healthy_mfu,
        "effective_mfu": point.effective_mfu,
        "effective_mfu_owned": point.effective_mfu_owned,
        "mfu_loss": point.loss.mean,
        "mfu_loss_low": point.loss.low,
        "mfu_loss_high": point.loss.high,
        "failure_mfu_loss": point.failure_loss.mean,
        "failure_mfu_loss_low": point.failure_loss.low,
        "failure_mfu_loss_high": point.failure_loss.high,
        **parts,
        "failures": point.failures,
        "wall_clock_s": point.wall_clock_s,
    }
