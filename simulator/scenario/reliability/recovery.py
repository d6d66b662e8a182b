"""How the run goes on after a failure: what a restart consists of, and what is done about lost machines.

Pinned by tests/scenario/reliability/test_recovery.py.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from simulator.scenario.reliability.durations import DURATION, NONE, DurationField, LogNormal, add
from simulator.scenario.reliability.forms import PositiveCount, Section, also
from simulator.scenario.units import SecondsField

# Assumption: the middle of the 5-20 min that RSC reports from failure to training again (arXiv 2410.21680).
RESTART = LogNormal(600.0)
# Assumption: FT-HSDP stalls for 3 min at 100,000 GPUs (arXiv 2602.00277); it is less at the sizes most run at.
RECONFIGURE = LogNormal(30.0)
REJOIN = LogNormal(60.0)


class Restart(Section):
    """From machines in place to loading the checkpoint; parts that are left out take no time.

    Attributes
    ----------
    scheduling, container
        Until the job's processes are placed, and until their software is up.
    communicators
        Process groups and collectives' connections.
    per_gpu
        Seconds more per GPU of the job, for set-up that grows with it: MegaScale's was 1,047 s on 2,048 GPUs before
        tuning (arXiv 2402.15627, section 3.5), some 0.5 s each.
    """

    model_config = ConfigDict(json_schema_extra=also({**DURATION, "description": "all of it at once"}))

    scheduling: DurationField = NONE
    container: DurationField = NONE
    communicators: DurationField = NONE
    per_gpu: SecondsField = 0.0

    @model_validator(mode="before")
    @classmethod
    def _in_one(cls, content: Any) -> Any:
        # `restart: 10 min` and `restart: {median: 3.7 min, mean: 38.9 min}` say it all at once.
        if isinstance(content, dict) and not {"median", "mean"} & set(content):
            return content
        return content if isinstance(content, Restart) else {"scheduling": content}

    def time(self, gpus: int) -> LogNormal:
        """Of a job of so many GPUs."""
        return add(self.machine, self.together(gpus))

    @property
    def machine(self) -> LogNormal:
        """Of one machine, whatever the others do."""
        return add(self.scheduling, self.container)

    def together(self, gpus: int) -> LogNormal:
        """Of all machines of a job of so many GPUs, once each is up."""
        return add(self.communicators, LogNormal(gpus * self.per_gpu))


class Recovery(Section):
    """What is done about lost machines.

    Attributes
    ----------
    policy
        `restart`: spares take their place and the job restarts. `wait`: for the repair of the very machine.
        `elastic`: the data-parallel replica is dropped and the others carry on until machines are back. `partial`: only
        new machines are scheduled and start their containers, the others wait in place; then all set up communicators.
        Where the other replicas hold the state, new machines load theirs from them and only the step in progress is
        lost; else all go back to a save. What takes no machine restarts in place.
    reconfigure, rejoin
        Pauses of the others when a replica is dropped, and when it is taken in again (`elastic`).
    fewest_replicas
        With fewer the job waits (`elastic`).
    """

    model_config = ConfigDict(
        json_schema_extra=also({"type": "string", "enum": ["restart", "wait", "elastic", "partial"]})
    )

    policy: Literal["restart", "wait", "elastic", "partial"] = "restart"
    reconfigure: DurationField = RECONFIGURE
    rejoin: DurationField = REJOIN
    fewest_replicas: PositiveCount = 1

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, content: Any) -> Any:
        return {"policy": content} if isinstance(content, str) else content
