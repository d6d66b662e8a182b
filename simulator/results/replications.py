"""Replications of a run or of several: quantiles and means with their intervals, differences in pairs, mean MFU loss.

Pinned by tests/results/test_replications.py; the keys are defined in docs/definitions.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from simulator import __version__
from simulator.results.statistics import CONFIDENCE, Mean, mean, quantile, quantile_interval

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}

FIGURES = (
    "finish_days",
    "effective_mfu",
    "effective_mfu_owned",
    "failure_induced_mfu_loss",
    "goodput",
    "failures",
    "interruptions",
    "gpu_hours",
    "cost_usd",
    "failure_cost_usd",
    "energy_kwh",
)
"""Figures of a replication that are kept, of those of `campaign_figures`; besides them the parts of the MFU loss."""

Row: TypeAlias = dict[str, float | None]
"""Figures of one replication of one run."""


def row_of(figures: Mapping[str, Any]) -> Row:
    """What is kept of the figures of a campaign."""
    loss = figures["mfu_loss"]
    return {
        **{key: figures[key] for key in FIGURES},
        "mfu_loss": loss["total"],
        **{f"mfu_loss.{key}": points for key, points in loss["parts"].items()},
        **{f"by_cause.{cause}": points for cause, points in loss["by_cause"].items()},
    }


def reached_precision(rows: Sequence[tuple[Row, ...]]) -> float | None:
    """How far the interval of the mean wall-clock reaches to either side, as a share of it; of the least certain run.

    None below two replications.
    """
    reaches = []
    for position in range(len(rows[0])):
        found = mean([_number(row[position]["finish_days"]) for row in rows])
        if found.half_width is None:
            return None
        reaches.append(found.half_width / found.value)
    return max(reaches)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass(frozen=True)
class Replications:
    """Replications that were finished, in order.

    Attributes
    ----------
    names
        Of the runs.
    asked
        How many there should have been, at most.
    precision
        That was asked for.
    stopped
        Why they ended: `number` (all are there), `precision` (it was reached) or `interrupted`.
    rows
        Of each replication, the figures of every run.
    scenarios
        Each as a scenario file, where the runs come from one.
    """

    names: tuple[str, ...]
    seed: int
    asked: int
    precision: float | None
    stopped: str
    rows: tuple[tuple[Row, ...], ...]
    scenarios: tuple[dict[str, Any], ...] = ()

    def values(self, run: int, figure: str) -> list[float]:
        """A figure over all replications; a cause that a replication does not have cost nothing in it."""
        if any(row[run].get(figure, 0.0) is None for row in self.rows):
            return []
        return [_number(row[run].get(figure, 0.0)) for row in self.rows]

    @cached_property
    def summaries(self) -> tuple[dict[str, Any], ...]:
        """Figures of each run: mean, spread and quantiles with their intervals; None where a figure is not known."""
        return tuple(
            {figure: _summary(self.values(position, figure)) for figure in FIGURES}
            for position, _ in enumerate(self.names)
        )

    def mfu_loss(self, run: int) -> dict[str, Any]:
        """Mean points of MFU lost, by fate and by cause; they add up."""
        keys = dict.fromkeys(key for row in self.rows for key in row[run])
        means = {key: mean(self.values(run, key)).value for key in keys if key.startswith(("mfu_loss", "by_cause."))}
        return {
            "total": means["mfu_loss"],
            "failure_induced": mean(self.values(run, "failure_induced_mfu_loss")).value,
            "parts": _below(means, "mfu_loss."),
            "by_cause": dict(sorted(_below(means, "by_cause.").items(), key=lambda entry: (-entry[1], entry[0]))),
        }

    def differences(self, run: int) -> dict[str, Mean | None]:
        """Mean difference of a run from the first in the same replication, with its interval."""
        found: dict[str, Mean | None] = {}
        for figure in FIGURES:
            first, other = self.values(0, figure), self.values(run, figure)
            pairs = zip(first, other, strict=False)
            found[figure] = mean([b - a for a, b in pairs]) if first and other else None
        return found

    @property
    def reached(self) -> float | None:
        """Half-width of the mean wall-clock's interval as a share of it."""
        return reached_precision(self.rows)

    def figures(self) -> dict[str, Any]:
        """The object that `--json` prints; it says nothing about how many processes there were."""
        return {
            "replications": len(self.rows),
            "asked": self.asked,
            "stopped": self.stopped,
            "precision": {"asked": self.precision, "reached": self.reached},
            "confidence": CONFIDENCE,
            "scenarios": [
                {
                    "name": name,
                    "figures": self.summaries[position],
                    "mfu_loss": self.mfu_loss(position),
                    "scenario": self.scenarios[position] if self.scenarios else None,
                }
                for position, name in enumerate(self.names)
            ],
            "differences": [
                {
                    "name": name,
                    "from": self.names[0],
                    "figures": {figure: _difference(found) for figure, found in self.differences(position).items()},
                }
                for position, name in enumerate(self.names)
                if position
            ],
            "version": __version__,
            "seed": self.seed,
        }

    def csv(self) -> str:
        """Every replication of every run in a line."""
        keys = [key for key in self.rows[0][0] if not key.startswith("by_cause.")]
        lines = [",".join(["replication", "scenario", *keys])]
        for number, row in enumerate(self.rows):
            for name, figures in zip(self.names, row, strict=True):
                cells = ("" if figures[key] is None else repr(figures[key]) for key in keys)
                lines.append(",".join([str(number), _quoted(name), *cells]))
        return "\n".join(lines) + "\n"


def _below(means: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in means.items() if key.startswith(prefix)}


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


def _summary(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    ordered = sorted(values)
    centre = mean(values)
    found: dict[str, Any] = {
        "mean": centre.value,
        "mean_interval": _ends(centre.interval),
        "deviation": centre.deviation,
    }
    for name, share in QUANTILES.items():
        found[name] = quantile(ordered, share)
        found[f"{name}_interval"] = _ends(quantile_interval(ordered, share))
    return {**found, "least": ordered[0], "most": ordered[-1]}


def _difference(found: Mean | None) -> dict[str, Any] | None:
    return None if found is None else {"mean": found.value, "mean_interval": _ends(found.interval)}


def _ends(interval: Iterable[float | None] | None) -> list[float | None] | None:
    return None if interval is None else list(interval)
