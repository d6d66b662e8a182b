"""Measured training runs: a table of published step times, each row a scenario, and how far we are from it."""
