"""Who pays which seconds: every second of wall-clock is booked once, under a fate and a cause.

Pinned by tests/engine/campaign/test_campaign.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulator.physics.campaign.plan import Phase
from simulator.records import CAMPAIGN_KEYS, Incident, Progress
from simulator.scenario.units import Seconds

HOUR: Seconds = 3600.0


class Ledger:
    """Seconds by fate and cause; with records, also what happened when."""

    def __init__(self, records: bool):
        self.seconds: dict[tuple[str, str], float] = {}
        self.records = records
        self.incidents: list[Incident] = []
        self.progress: list[Progress] = []

    def add(self, key: str, cause: str, seconds: Seconds) -> None:
        """Book some seconds."""
        place = (key, cause)
        self.seconds[place] = self.seconds.get(place, 0.0) + seconds

    def spent(self, key: str, start: Seconds, end: Seconds, step: float) -> None:
        """For the records: the job stood still at a step."""
        if self.records and end > start:
            self.progress.append(Progress(start, end, step, step, key))

    def trained(self, start: Seconds, end: Seconds, first: float, last: float) -> None:
        """For the records: steps were done."""
        if self.records and end > start:
            self.progress.append(Progress(start, end, first, last, "productive"))

    def gave_up(self, step: int, key: str) -> None:
        """For the records: steps after this one are lost."""
        place = len(self.progress) - 1
        while place >= 0:
            start, end, first, last, fate = self.progress[place]
            if last <= step:
                break
            if fate == "productive":
                if first >= step:
                    self.progress[place] = Progress(start, end, first, last, key)
                else:
                    middle = start + (end - start) * (step - first) / (last - first)
                    self.progress[place : place + 1] = [
                        Progress(start, middle, first, step, fate), Progress(middle, end, step, last, key)
                    ]  # fmt: skip
            place -= 1

    def by_cause(self) -> dict[str, dict[str, float]]:
        """{cause: {fate: seconds}}, without what was nothing."""
        causes: dict[str, dict[str, float]] = {}
        for (key, cause), seconds in sorted(self.seconds.items()):
            if seconds > 0:
                causes.setdefault(cause, {})[key] = seconds
        return causes

    def time_s(self, productive: Seconds) -> dict[str, float]:
        """Seconds by fate."""
        times = dict.fromkeys(CAMPAIGN_KEYS, 0.0) | {"productive": productive}
        for key in times:
            if key != "productive":
                times[key] = math.fsum(s for (fate, _), s in self.seconds.items() if fate == key)
        return times

    def hours(self, phases: Sequence[Phase], wall_clock: Seconds) -> tuple[float, ...]:
        """Productive seconds of each hour, steps spread evenly over each stretch of progress."""
        if not self.records:
            return ()
        hours = [0.0] * math.ceil(wall_clock / HOUR)
        for start, end, first, last, key in self.progress:
            if key != "productive":
                continue
            rate = _healthy(phases, first, last) / (end - start)
            for hour in range(int(start // HOUR), min(len(hours) - 1, int(end // HOUR)) + 1):
                inside = min(end, (hour + 1) * HOUR) - max(start, hour * HOUR)
                hours[hour] += max(0.0, inside) * rate
        return tuple(hours)


def _healthy(phases: Sequence[Phase], first: float, last: float) -> Seconds:
    seconds, begun = 0.0, 0
    for phase in phases:
        inside = min(last, begun + phase.steps) - max(first, begun)
        if inside > 0:
            seconds += inside * phase.step_time
        begun += phase.steps
    return seconds
