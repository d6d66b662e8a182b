"""Commands about scenarios, clusters, schedules and the catalogue: parse, one library call, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.options import JsonOption, OutputOption, ScenarioArgument, SetOption, app
from simulator.cli.output import dump, progress_bar, refuse_existing, refuse_no_picture, write


@app.command()
def run(
    scenario: ScenarioArgument,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    no_fold: Annotated[bool, typer.Option("--no-fold", help="Simulate every rank, also equal ones.")] = False,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="Run every kernel and collective by itself.")] = False,
    no_skip: Annotated[bool, typer.Option("--no-skip", help="Simulate every microbatch, also repeating ones.")] = False,
) -> None:
    """Simulate one step and the whole run, and print them beside the published figures.

    The last three options switch exact shortcuts off: slower, the same figures.
    """
    refuse_existing(output)
    from simulator.scenario.scenario import load, located
    from simulator.studies.simulate import Shortcuts, simulate

    with progress_bar() as progress, located(scenario, overrides or ()):
        shortcuts = Shortcuts(not no_fold, not no_fuse, not no_skip)
        simulation = simulate(load(scenario, overrides or ()), progress, shortcuts)
    if as_json:
        write(dump(simulation.figures()), output)
    else:
        from simulator.report.tables import render, run_report

        write(render(run_report(simulation), plain=output is not None), output)


@app.command()
def compare(
    scenarios: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="Two or more scenario files or names.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Simulate several scenarios and print them side by side, with the differences from the first."""
    refuse_existing(output)
    from simulator.studies.compare import compare as compare_all

    with progress_bar() as progress:
        comparison = compare_all(scenarios, overrides or (), progress)
    if as_json:
        write(dump(comparison.figures()), output)
    else:
        from simulator.report.tables import compare_report, render

        write(render(compare_report(comparison), plain=output is not None), output)


@app.command()
def replicate(
    scenarios: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="A scenario, or several to compare.")],
    runs: Annotated[
        int | None, typer.Option("--runs", help="Replications: 200; with --precision at most these, or 10,000.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="SHARE", help="Stop when the mean wall-clock is known to this, as 0.5%."),
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Processes; as many as processors.")] = None,
    every_row: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write every replication, too.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw when it finishes: .png, .svg, .pdf.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Simulate the run many times with other failures: P10, P50 and P90 of finish, MFU and cost, and how sure they are.

    Several scenarios meet the same failures and are compared in pairs. Ctrl-C reports what was finished.
    """
    for path in (output, every_row, picture):
        refuse_existing(path)
    refuse_no_picture(picture)
    from simulator.studies.replicate import read_precision, replicate_scenarios

    share = None if precision is None else read_precision(precision)
    with progress_bar() as progress:
        found = replicate_scenarios(scenarios, overrides or (), number=runs, precision=share, jobs=jobs, tell=progress)
    if every_row is not None:
        write(found.csv(), every_row)
    if as_json:
        write(dump(found.figures()), output)
    else:
        from simulator.report.replications import replications_report
        from simulator.report.tables import render

        write(render(replications_report(found), plain=output is not None), output)
    if picture is not None:
        from simulator.report.replications_plot import plot_replications

        plot_replications(found, picture)
    if found.stopped == "interrupted":
        if as_json or output is not None:  # else the report has said so
            told = f"trainsim: interrupted: {len(found.rows):,} of {found.asked:,} replications were finished"
            typer.echo(told, err=True)
        raise typer.Exit(130)


@app.command()
def show(
    scenario: ScenarioArgument, overrides: SetOption = None, as_json: JsonOption = False, output: OutputOption = None
) -> None:
    """Show what would be simulated: cluster, model, groups, memory per pipeline stage, schedule."""
    refuse_existing(output)
    from simulator.scenario.scenario import load
    from simulator.studies.show import describe_scenario

    description = describe_scenario(load(scenario, overrides or ()))
    if as_json:
        write(dump(description.figures()), output)
    else:
        from simulator.report.tables import render, show_report

        write(render(show_report(description), plain=output is not None), output)


@app.command()
def schedule(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Name of the schedule, such as 1f1b or zb-h1.")],
    pp: Annotated[int, typer.Option("--pp", help="Pipeline ranks.")],
    microbatches: Annotated[int, typer.Option("--microbatches", help="Microbatches in a step.")],
    vpp: Annotated[int | None, typer.Option("--vpp", help="Chunks per rank, of an interleaved schedule.")] = None,
    forward: Annotated[float, typer.Option("--forward", help="Time of a stage's forward.")] = 1.0,
    backward: Annotated[float | None, typer.Option("--backward", help="Time of its whole backward.")] = None,
    half_input: Annotated[float | None, typer.Option("--input", help="Time of the backward for the input.")] = None,
    half_weight: Annotated[float | None, typer.Option("--weight", help="Time of the backward for the weights.")] = None,
    message: Annotated[float, typer.Option("--message", help="Time of a message between ranks.")] = 0.0,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Draw a pipeline schedule over time, with its bubble and its activations in flight."""
    refuse_existing(output)
    from simulator.studies.schedules import times_of, view_schedule

    times = times_of(forward, backward, half_input, half_weight, message)
    view = view_schedule(kind, pp=pp, num_microbatches=microbatches, vpp=vpp, times=times)
    if as_json:
        write(dump(view.figures()), output)
    else:
        from simulator.report.schedules import schedule_report
        from simulator.report.tables import render

        write(render(schedule_report(view), plain=output is not None), output)


@app.command()
def memory(
    scenario: ScenarioArgument, overrides: SetOption = None, as_json: JsonOption = False, output: OutputOption = None
) -> None:
    """Show what fills the memory of a GPU on every pipeline stage, and, if it does not fit, what would make it fit."""
    refuse_existing(output)
    from simulator.studies.memory import memory_plan

    plan = memory_plan(scenario, overrides or ())
    if as_json:
        write(dump(plan.figures()), output)
    else:
        from simulator.report.memory import memory_report
        from simulator.report.tables import render

        write(render(memory_report(plan), plain=output is not None), output)


@app.command()
def topology(
    name: Annotated[str, typer.Argument(metavar="FILE", help="A cluster file, a shipped topology, or a scenario.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Count a cluster: tiers, links, bisection bandwidth, oversubscription and sample routes."""
    refuse_existing(output)
    from simulator.studies.topology import count_topology

    census = count_topology(name, overrides or ())
    if as_json:
        write(dump(census.figures()), output)
    else:
        from simulator.report.tables import render
        from simulator.report.topology import topology_report

        write(render(topology_report(census), plain=output is not None), output)


@app.command()
def schema(output: OutputOption = None) -> None:
    """Print the JSON Schema of the scenario file, for editors."""
    refuse_existing(output)
    from simulator.studies.show import scenario_schema

    write(dump(scenario_schema()), output)


@app.command()
def calibrate(
    like: Annotated[str, typer.Option("--like", metavar="NAME", help="The catalogue's accelerator that this one is.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE.yaml", help="A new file for the entry.")],
    name: Annotated[str | None, typer.Option("--name", help="Of the entry; the file's name if left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the shapes, for a trial.")] = False,
) -> None:
    """Measure the kernels of this machine's GPU and write an accelerator to simulate with; needs PyTorch."""
    refuse_existing(output)
    from simulator.calibrate.entry import make_entry, write_entry
    from simulator.calibrate.measuring import measure
    from simulator.calibrate.torch_bench import open_bench
    from simulator.scenario.hardware import find_accelerator

    accelerator = find_accelerator(like)
    bench = open_bench()
    with progress_bar() as progress:
        measured = measure(bench, quick=quick, progress=progress)
    write_entry(make_entry(measured, accelerator, name or output.stem), output)
    typer.echo(f"{output}: {measured.name}, {len(measured.gemms)} GEMMs, {len(measured.attention)} of attention")


@app.command(name="list")
def list_() -> None:
    """List shipped scenarios and topologies, and the catalogue's models, accelerators, stacks and failures."""
    from simulator.report.tables import list_report, render
    from simulator.studies.show import catalogue

    write(render(list_report(catalogue())), None)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from simulator import __version__

        typer.echo(__version__)
        raise typer.Exit
