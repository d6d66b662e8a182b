"""Machines beside the job's: spares that stand by, the shop that repairs, and lemons that fail more often.

Pinned by tests/scenario/reliability/test_machines.py.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from simulator.scenario.reliability.durations import NONE, DurationField, LogNormal
from simulator.scenario.reliability.forms import Count, Section, Share, also

# AIReSim's defaults (arXiv 2603.07041): hosts are selected in 3 min, pre-emption takes 20 min; an automated repair
# takes 2 h, and 80 % escalate to a manual one of 2 days; 40 % and 20 % of them leave a bad machine bad.
SELECTION = LogNormal(180.0)
PREEMPTION = LogNormal(1200.0)
AUTOMATIC = LogNormal(2 * 3600.0)
ESCALATION = 0.8
MANUAL = LogNormal(2 * 86400.0)
SILENT_AUTOMATIC, SILENT_MANUAL = 0.4, 0.2


class Spares(Section):
    """Nodes that take the place of lost ones.

    Attributes
    ----------
    hot, swap
        Standing by, and how long it takes to put them in place; left out: all nodes of the cluster that neither the job
        nor `warm` uses.
    warm, selection
        In the cluster, but not prepared: they refill the hot ones, or serve after `selection`.
    preempted, preemption
        Nodes of other jobs that can be taken after `preemption`; they are not paid for.
    """

    model_config = ConfigDict(
        json_schema_extra=also({"type": "integer", "minimum": 0, "description": "hot spares: nodes"})
    )

    hot: Count | None = None
    swap: DurationField = NONE
    warm: Count = 0
    selection: DurationField = SELECTION
    preempted: Count = 0
    preemption: DurationField = PREEMPTION

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, content: Any) -> Any:
        return content if isinstance(content, dict | Spares) else {"hot": content}

    def standing_by(self, left_over: int) -> tuple[int, int]:
        """Hot and warm nodes, of `left_over` that the job does not use."""
        return max(0, left_over - self.warm) if self.hot is None else self.hot, self.warm


class Repair(Section):
    """The repair shop: automatic first; with probability `escalation` followed by a manual one.

    `silent_automatic` and `silent_manual` are the probabilities that a repair leaves a lemon a lemon.
    """

    automatic: DurationField = AUTOMATIC
    escalation: Share = ESCALATION
    manual: DurationField = MANUAL
    silent_automatic: Share = SILENT_AUTOMATIC
    silent_manual: Share = SILENT_MANUAL


class Lemons(Section):
    """Bad machines, spares included.

    Attributes
    ----------
    share
        Of all machines.
    factor
        How many times as often as a good one each fails. Rates of failures are means over all machines.
    retire_after
        Visits to the shop after which a machine does not come back; 0: it always does.
    """

    share: Share
    factor: Annotated[float, Field(strict=True, ge=1)]
    retire_after: Count = 0
