"""What breaks, and what saves the run: the `reliability:` section of a scenario."""

from simulator.scenario.reliability.checkpoint import Checkpoint as Checkpoint
from simulator.scenario.reliability.checkpoint import Interval as Interval
from simulator.scenario.reliability.failures import FailureClass as FailureClass
from simulator.scenario.reliability.section import Reliability as Reliability
