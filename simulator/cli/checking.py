"""Commands that hold the models against measurements: `collectives` and `validate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.options import JsonOption, OutputOption, app
from simulator.cli.output import dump, progress_bar, refuse_existing, refuse_no_picture, write

if TYPE_CHECKING:
    from simulator.report.tables import Report


@app.command()
def collectives(
    cluster: Annotated[
        str, typer.Option("--cluster", metavar="FILE", help="A topology file, or a shipped one's name.")
    ],
    op: Annotated[str, typer.Option("--op", help="all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, ...")],
    gpus: Annotated[int | None, typer.Option("--gpus", help="The first so many GPUs; all if left out.")] = None,
    smallest: Annotated[str, typer.Option("--min", metavar="SIZE", help="Smallest size.")] = "1 KiB",
    largest: Annotated[str, typer.Option("--max", metavar="SIZE", help="Largest size.")] = "8 GiB",
    algorithm: Annotated[str | None, typer.Option("--algorithm", help="Not NCCL's choice but this one.")] = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it, too: .png, .svg, .pdf.")
    ] = None,
) -> None:
    """Predict a collective on an idle cluster over a range of sizes, as nccl-tests prints it."""
    refuse_existing(output)
    refuse_existing(picture)
    refuse_no_picture(picture)
    from simulator.studies.collectives import collective_table

    table = collective_table(cluster, op, gpus, smallest, largest, algorithm)
    if picture is not None:
        from simulator.report.collectives import plot_collective

        plot_collective(table, picture)
    if as_json:
        write(dump(table.figures()), output)
    else:
        from simulator.report.collectives import collective_report
        from simulator.report.tables import render

        write(render(collective_report(table), plain=output is not None), output)


@app.command()
def validate(
    collective: Annotated[bool, typer.Option("--collectives", help="Timings of collectives.")] = False,
    of_memory: Annotated[bool, typer.Option("--memory", help="Runs that fitted in memory or did not.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="Timings of GEMMs and attention.")] = False,
    cases: Annotated[Path | None, typer.Option("--cases", metavar="FILE.csv", help="Not the shipped rows.")] = None,
    split: Annotated[str, typer.Option("--split", help="Of training runs: test, calibration, heldout or all.")] = "all",
    group: Annotated[str | None, typer.Option("--group", metavar="NAME", help="Only this group of runs.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; as many as processors.")] = None,
    every_row: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write every row here, too.")] = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Compare predictions with measurements: training runs, if nothing else is asked for.

    Rows that cannot be read make the exit code 1; rows that cannot be simulated are counted and named.

    Columns of --cases, as in the shipped tables (simulator/validation); a column in brackets may be missing or blank.

    Training runs: id, group, accelerator, gpus, sequence_length, software, step_time_s or tokens_per_s_per_gpu, [model,
    num_layers, hidden_size, ffn_hidden_size, gated_mlp, num_attention_heads, num_query_groups, vocab_size, num_experts,
    top_k, gpus_per_node, scale_up_GBps, nic_Gbps, fabric, precision, tp, sequence_parallel, cp, pp, vpp, ep, dp,
    zero_stage, zero_group, schedule, micro_batch_size, global_batch_size, recompute, attention, split].

    --kernels, GEMMs: hardware, dtype, m, n, k, time_ms, [groups, layout, note, source]. Attention: hardware, impl,
    dtype, pass, causal, batch, heads, seqlen, head_dim, time_ms or tflops, [kv_heads, note, source].

    --memory: model, layers, hidden, heads, kv_heads, ffn_hidden, vocab, seq_len, gpus, dp, tp, pp, micro_batch,
    grad_accum, zero_stage, tied, status, [id, accelerator, software, after_pp_fix, mem_alloc_bytes,
    mem_reserved_bytes]; or a table of training runs with peak_memory_bytes and peak_memory_kind.

    --collectives: op, gpus, nodes, platform, network, msg_bytes, time_us, [id, harness, algo, nics_per_node, nic_Gbps].
    """
    refuse_existing(output)
    refuse_existing(every_row)
    chosen = {"--collectives": collective, "--memory": of_memory, "--kernels": kernels}
    runs_only = {"--split": split != "all", "--group": group is not None, "--jobs": jobs is not None}
    _refuse_unused(chosen, runs_only, {"--csv": collective and every_row is not None})
    if of_memory:
        _validate_memory(cases, every_row, as_json, output)
    elif kernels:
        _validate_kernels(cases, every_row, as_json, output)
    elif collective:
        _validate_collectives(cases, as_json, output)
    else:
        _validate_runs(cases, split, group, jobs, every_row, as_json, output)


def _refuse_unused(chosen: dict[str, bool], runs_only: dict[str, bool], others: dict[str, bool]) -> None:
    """Refuse two tables at once, and options that the table at hand has no use for."""
    from simulator.errors import ScenarioError

    tables = [name for name, given in chosen.items() if given]
    if len(tables) > 1:
        raise ScenarioError(f"{' and '.join(tables)} are two tables; ask for one at a time", field="validate")
    unused = [name for name, given in {**runs_only, **others}.items() if given and tables]
    if unused:
        raise ScenarioError(f"{unused[0]} does not apply to {tables[0]}; leave it out", field="validate")


def _finish(
    found: Any, report: Callable[[Any], Report], problems: list[str], as_json: bool, output: Path | None
) -> None:
    """Write what was found; rows that cannot be read make the exit code 1."""
    if as_json:
        write(dump(found.figures()), output)
    else:
        from simulator.report.tables import render

        write(render(report(found), plain=output is not None), output)
    for problem in problems:
        typer.echo(f"trainsim: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


def _validate_collectives(cases: Path | None, as_json: bool, output: Path | None) -> None:
    from simulator.report.collectives import validation_report
    from simulator.studies.validate import validate_collectives

    found = validate_collectives(cases)
    problems = [f"{cases}: row {row.row}: {row.reason}" for row in found.malformed]
    _finish(found, validation_report, problems, as_json, output)


def _validate_kernels(cases: Path | None, every_row: Path | None, as_json: bool, output: Path | None) -> None:
    from simulator.report.kernels import kernel_report
    from simulator.studies.validate_kernels import validate_kernels

    found = validate_kernels(cases)
    if every_row is not None:
        write(found.csv(), every_row)
    problems = [f"{cases}: {row.row}: {row.reason}" for row in found.malformed]
    _finish(found, kernel_report, problems, as_json, output)


def _validate_memory(cases: Path | None, every_row: Path | None, as_json: bool, output: Path | None) -> None:
    from simulator.report.memory import rows_csv, validation_report
    from simulator.studies.validate_memory import validate_memory

    found = validate_memory(cases)
    if every_row is not None:
        write(rows_csv(found), every_row)
    problems = [f"{cases}: {row.refused}" for row in found.malformed]
    _finish(found, validation_report, problems, as_json, output)


def _validate_runs(
    cases: Path | None,
    split: str,
    group: str | None,
    jobs: int | None,
    every_row: Path | None,
    as_json: bool,
    output: Path | None,
) -> None:
    from simulator.report.validation import rows_csv, validation_report
    from simulator.studies.validate_runs import validate as validate_runs

    with progress_bar() as progress:
        tell = lambda done, rows: progress("rows", done / rows)  # noqa: E731
        found = validate_runs(cases, split=split, group=group, jobs=jobs, tell=tell)
    if every_row is not None:
        write(rows_csv(found), every_row)
    problems = [f"{cases or 'shipped rows'}: {row.refused}" for row in found.malformed]
    _finish(found, validation_report, problems, as_json, output)
