"""A long run, from its plan to its records: `simulate_campaign`."""

from simulator.engine.campaign.job import simulate_campaign

__all__ = ["simulate_campaign"]
