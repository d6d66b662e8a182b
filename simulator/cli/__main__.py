"""`python -m simulator.cli`."""

from __future__ import annotations

from simulator.cli import main

main()
