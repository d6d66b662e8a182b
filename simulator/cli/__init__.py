"""The command line: parse, one library call, report.

Library modules are imported inside the commands, and nowhere else in the package, so that `trainsim --help` answers at
once. Only `SimulatorError` is caught: one message on stderr, exit code 2. Anything else is our own bug.

Pinned by tests/test_cli.py.
"""

from __future__ import annotations

import gc
import io
import sys

import typer

from simulator.cli import commands  # isort: skip  # the order of the commands in --help
from simulator.cli import plotting  # isort: skip
from simulator.cli import checking  # isort: skip
from simulator.cli.options import app

__all__ = ["app", "checking", "commands", "main", "plotting"]


def main() -> None:
    """Entry point of the `trainsim` command."""
    from simulator.errors import SimulatorError

    # A cluster graph is a million small objects that all stay: looking for garbage among them every 700 costs a tenth.
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows ? for ×, and no traceback
    try:
        app()
    except SimulatorError as error:
        typer.echo(f"trainsim: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"trainsim: cannot write: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("trainsim: interrupted", err=True)
        sys.exit(130)
