"""``iid bench``: speed against the loop over classes and against the machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from iidlib.cli.options import Device
from iidlib.cli.session import Failed, console, given_command, keeping
from iidlib.errors import InputError

__all__ = ["bench"]


def bench(
    ctx: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two classes instead of ten and fewer repetitions: a minute.")
    ] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="One method as images, classes, batch and width grow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as a JSON list.")] = False,
    results: Annotated[Path | None, typer.Option("--results", help="CSV file to which the rows are added.")] = None,
    device: Device = "auto",
) -> None:
    """Time the library against the per-class loop and the machine's best, with the same losses, in one run."""
    from iidlib.bench import LossesDiffer
    from iidlib.bench import report as benchmark
    from iidlib.experiments import check_results

    if quick and scaling:
        raise InputError("--quick and --scaling are two measurements; give one of them")
    if results:
        check_results(results, benchmark.NEEDED)
    progress = sys.stderr.isatty()
    try:
        with keeping():
            if scaling:
                report = benchmark.scaling(device=device, progress=progress)
            else:
                report = benchmark.measure(quick=quick, device=device, progress=progress)
    except LossesDiffer as error:
        raise Failed(f"failed: {error}") from error
    if results:
        report.append(results, given_command(ctx))
    if as_json:
        typer.echo(report.to_json())
        return
    for title, rows in report.tables().items():
        table = Table(title=title)
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "work" else "right")
        for row in rows:
            table.add_row(*(escape(value) for value in row.values()))
        console.print(table)
    for note in report.notes():
        typer.echo(note)
