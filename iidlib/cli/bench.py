"""``iid bench``: speed compared with a per-class loop and with the machine's peak."""

import itertools
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from iidlib.cli.options import Device
from iidlib.cli.output import Kind, Quiet, print_table, result
from iidlib.cli.session import Failed, given_command, keeping
from iidlib.errors import InputError

__all__ = ["bench"]


def bench(
    ctx: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two classes instead of ten and fewer repetitions; takes about a minute.")
    ] = False,
    scaling: Annotated[
        bool,
        typer.Option("--scaling", help="Time one method as images, classes, batch size and network width grow."),
    ] = False,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks",
            metavar="N",
            min=2,
            help="Time one iid-dm of 100 classes and one idm of 10 on 1, 2, 4, ... and N processes, each with one CPU "
            "thread or GPU.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as a JSON list.")] = False,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="CSV file to append the rows to.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Benchmark the library against a per-class loop with equal losses and against the machine's peak."""
    from iidlib.bench import BenchReport
    from iidlib.bench import report as benchmark
    from iidlib.bench.tables import NEEDED
    from iidlib.experiments import check_results

    if quick + scaling + (ranks is not None) > 1:
        raise InputError("--quick, --scaling and --ranks are different measurements; give only one of them")
    if results:
        check_results(results, NEEDED)
    if ranks is not None:
        _ranks(ctx, ranks, device, results, as_json=as_json)
        return

    def kept(row: BenchReport) -> None:
        """Saves and shows a row while others are still being measured."""
        if results:
            row.append(results, given_command(ctx))
        if not (as_json and quiet):
            for line in row.lines():
                typer.echo(line, err=as_json)

    with keeping():
        if scaling:
            report = benchmark.scaling(device=device, progress=None, on_row=kept)
        else:
            report = benchmark.measure(quick=quick, device=device, progress=None, on_row=kept)
    with result():
        if as_json:
            typer.echo(report.to_json())
        else:
            for title, rows in report.tables().items():
                columns: dict[str, Kind] = {name: "text" if name == "work" else "number" for name in rows[0]}
                print_table(columns, [list(row.values()) for row in rows], title)
            for note in report.notes():
                typer.echo(note)
    if report.failures:
        reasons = "; ".join(f"{failure.what} {failure.method}: {failure.reason}" for failure in report.failures)
        raise Failed(f"failed: {reasons}")


def _ranks(ctx: typer.Context, most: int, device: str, results: Path | None, *, as_json: bool) -> None:
    """Times two distillations on numbers of processes up to `most`: with networks that are given, and trained ones."""
    import json

    import pandas as pd

    from iidlib.bench import compare_ranks
    from iidlib.bench.tables import NEEDED
    from iidlib.engine import pick_device
    from iidlib.experiments.tables import append_rows

    def kept(row: dict[str, Any]) -> None:
        if results:
            append_rows(results, pd.DataFrame([row]).assign(command=given_command(ctx)), needed=NEEDED)

    counts = [*itertools.takewhile(lambda count: count < most, (2**power for power in itertools.count())), most]
    with keeping():
        timed = partial(compare_ranks, counts, device=pick_device(device).type, on_row=kept)
        measured = [timed(method="iid-dm", classes=100), timed(method="idm", classes=max(10, most))]
    with result():
        if as_json:
            typer.echo(json.dumps([row for rows in measured for row in rows]))
            return
        columns: dict[str, Kind] = {"processes": "number", "s/iteration": "number", "times faster": "number"}
        for rows in measured:
            shown = [(str(row["ranks"]), f"{row['seconds']:.2f}", f"{row['ratio']:.2f}") for row in rows]
            first = rows[0]
            title = f"{first['method']}, {first['classes']} classes, {first['ipc']} images per class, {first['device']}"
            print_table(columns, shown, title)
