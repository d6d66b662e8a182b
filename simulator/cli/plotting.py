"""Pictures of a scenario: `plot step`, `plot failure-loss` and `plot campaign`.

Pinned by tests/test_cli_plot_campaign.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.options import JsonOption, ScenarioArgument, SetOption, app
from simulator.cli.output import dump, progress_bar, refuse_existing, refuse_no_picture, write

if TYPE_CHECKING:
    from simulator.scenario.scenario import Scenario

_LOSS = ("--against", "--runs", "--jobs", "--values", "--from", "--to", "--by", "--csv")
_WHAT = {"step": (), "failure-loss": (*_LOSS, "--json"), "campaign": ("--replication", "--json")}
"""Pictures, and the options that each has beside the common ones."""


@app.command()
def plot(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="step, failure-loss or campaign.")],
    scenario: ScenarioArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A new .png, .svg or .pdf; named after both if left out."),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="failure-loss: gpus (default), mtbf, interval or spares.")
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="failure-loss: replications of each value; 50.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="failure-loss: processes; as many as processors.")] = None,
    values: Annotated[
        str | None, typer.Option("--values", metavar="LIST", help="failure-loss: values, as '10 min, 30 min, 1 h'.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="VALUE", help="failure-loss: least value.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="VALUE", help="failure-loss: largest value.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="failure-loss: stack fates (default) or causes.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="failure-loss: the table, too.")] = None,
    replication: Annotated[int | None, typer.Option("--replication", help="campaign: which replication; 0.")] = None,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Draw a picture: a training step, what failures cost, or the course of the whole run.

    step: the pipeline over time and where the step goes. failure-loss: points of MFU lost, by fate, against cluster
    size, mean time between failures, checkpoint interval or number of spares. campaign: progress over the wall-clock
    with its incidents. With --json the numbers behind the picture are printed; it is then drawn only with --output.
    """
    given = {
        "--against": against, "--runs": runs, "--jobs": jobs, "--values": values, "--from": first, "--to": last,
        "--by": by, "--csv": table, "--replication": replication, "--json": as_json or None,
    }  # fmt: skip
    _refuse_unknown(what, [name for name, value in given.items() if value is not None])
    kind = f"{what}-{against or 'gpus'}" if what == "failure-loss" else what
    if output is None and not as_json:
        output = Path(f"{Path(scenario).stem}-{kind}.png")
    for path in (output, table):
        refuse_existing(path)
    refuse_no_picture(output)
    from simulator.scenario.scenario import load, located

    with located(scenario, overrides or ()):
        chosen = load(scenario, overrides or ())
        if what == "failure-loss":
            asked = (values, first, last)
            _plot_failure_loss(chosen, against or "gpus", asked, runs, jobs, by or "fate", table, as_json, output)
        elif what == "campaign":
            _plot_campaign(chosen, replication or 0, as_json, output)
        else:
            assert output is not None
            _plot_step(chosen, output)
    if output is not None and not as_json:
        typer.echo(str(output))


def _refuse_unknown(what: str, given: list[str]) -> None:
    """Refuse a picture that there is not, and options that the one at hand has no use for."""
    from simulator.errors import ScenarioError
    from simulator.scenario.explain import nearest

    if what not in _WHAT:
        raise ScenarioError(f"no picture {what!r}; there are: {', '.join(_WHAT)}{nearest(what, _WHAT)}", field="plot")
    unused = [name for name in given if name not in _WHAT[what]]
    if unused:
        raise ScenarioError(f"{unused[0]} does not apply to plot {what}; leave it out", field="plot")


def _plot_step(scenario: Scenario, output: Path) -> None:
    from simulator.report.plots import plot_step
    from simulator.studies.simulate import simulate

    with progress_bar() as progress:
        simulation = simulate(scenario, progress)
    plot_step(simulation, output)


def _plot_failure_loss(
    scenario: Scenario,
    against: str,
    asked: tuple[str | None, str | None, str | None],
    runs: int | None,
    jobs: int | None,
    by: str,
    table: Path | None,
    as_json: bool,
    output: Path | None,
) -> None:
    from simulator.errors import ScenarioError
    from simulator.studies.failure_axes import read_wanted
    from simulator.studies.failure_loss import RUNS, failure_loss

    if by not in ("fate", "cause"):
        raise ScenarioError(f"{by!r} is no way to stack; use fate or cause", field="--by")
    number = RUNS if runs is None else runs
    wanted = read_wanted(against, *asked)
    with progress_bar() as progress:
        curve = failure_loss(scenario, against, wanted, runs=number, jobs=jobs, tell=progress)
    if table is not None:
        write(curve.csv(by), table)
    if as_json:
        write(dump(curve.figures(by)), None)
    if output is not None:
        from simulator.report.failure_loss import plot_failure_loss

        plot_failure_loss(curve, output, by)
    for value, reason in curve.left_out:
        typer.echo(f"trainsim: {against} {curve.written(value)} is left out: {reason}", err=True)
    if curve.runs < number:
        typer.echo(f"trainsim: interrupted: {curve.runs:,} of {number:,} replications were finished", err=True)
        raise typer.Exit(130)


def _plot_campaign(scenario: Scenario, replication: int, as_json: bool, output: Path | None) -> None:
    from simulator.studies.campaign_record import record_campaign

    with progress_bar() as progress:
        recorded = record_campaign(scenario, replication, tell=progress)
    if as_json:
        write(dump(recorded.figures()), None)
    if output is not None:
        from simulator.report.campaign_plot import plot_campaign

        plot_campaign(recorded, output)
