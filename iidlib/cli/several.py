"""``iid evaluate`` of several sets: one process for each, on Dask workers."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from iidlib.cli.batches import watched
from iidlib.cli.output import Kind, print_table, report, result
from iidlib.cli.session import Failed
from iidlib.errors import InputError, SchedulerLost

if TYPE_CHECKING:
    import pandas as pd

    from iidlib.scale import Workers

__all__ = ["evaluate_several", "given_options"]

_NOT_PASSED = {
    "paths", "results", "out", "as_json", "quiet", "workers", "scheduler", "scheduler_file", "cluster", "retries",
    "timeout", "gpus",
}  # fmt: skip
"""Parameters of the command that the single evaluations do not receive."""


def given_options(ctx: typer.Context) -> list[str]:
    """Options as they were given on the command line, without those that are about the batch."""
    words: list[str] = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if name in _NOT_PASSED or source is None or source.name != "COMMANDLINE":
            continue
        value, option = ctx.params[name], parameter.opts[0]
        if isinstance(value, bool):
            words.append(option if value else parameter.secondary_opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [option, str(one)]
    return words


def evaluate_several(
    ctx: typer.Context,
    sets: Sequence[str],
    workers: "Workers",
    *,
    results: Path | None,
    retries: int,
    timeout: float | None,
) -> None:
    """Evaluates each set in a process of its own, and prints one table.

    Args:
        ctx: the command.
        sets: sets or baselines, as for the evaluation of one.
        workers: where the processes run.
        results: table of results to append to.
        retries: how often an evaluation that fails is tried again.
        timeout: seconds after which an evaluation is stopped.
    """
    from iidlib.config.recipes import BASELINES
    from iidlib.experiments import append_results, check_results, read_results
    from iidlib.scale import run_commands

    if len(set(sets)) < len(sets):
        raise InputError("a set is given twice")
    if results is not None:
        check_results(results)
    options = given_options(ctx)
    rows: dict[str, pd.DataFrame] = {}
    with tempfile.TemporaryDirectory(prefix=".iidlib-evaluate-", dir=Path.cwd()) as name:
        here = Path(name).relative_to(Path.cwd())
        tables = {one: here / f"{number}.csv" for number, one in enumerate(sets)}
        commands = {
            one: [("evaluate", one, *options, "--results", table.as_posix(), "--quiet")]
            for one, table in tables.items()
        }
        folders = {one: None if one in BASELINES else Path(one) for one in sets}
        try:
            with watched() as show:
                outcome = run_commands(
                    workers, commands, folders, logs=here / "logs", say=typer.echo, retries=retries, timeout=timeout,
                    on_look=show,
                )  # fmt: skip
        except SchedulerLost as error:
            raise Failed(f"failed: {error}; {_kept(tables, results)}\nrepeat the command for the others") from None
        except KeyboardInterrupt as stop:
            stop.args = (f"stopped; {_kept(tables, results)}",)
            raise
        finally:  # what has finished is kept, whatever happens
            rows = {one: read_results(table) for one, table in tables.items() if table.is_file()}
            if results is not None:
                for frame in rows.values():
                    append_results(results, frame)
    lines, found = [], []
    for one, frame in rows.items():
        for (label, network), part in frame.astype({"accuracy": float}).groupby(["method", "network"], sort=False):
            values = part["accuracy"]
            lines.append(
                (one, str(label), str(network), f"{values.mean():.1f} ± {values.std(ddof=0):.1f}", str(len(values)))
            )
            found.append({"set": one, "method": label, "network": network, "accuracy": values.mean()})
    columns: dict[str, Kind] = {"set": "text", "method": "name", "network": "name", "accuracy (%)": "number"}
    with result():
        print_table(columns | {"networks": "number"}, lines)
    report(None, {"scores": found})
    if outcome.failed:
        raise typer.Exit(1)


def _kept(tables: Mapping[str, Path], results: Path | None) -> str:
    """Which sets have finished, and where their rows are."""
    finished = [one for one, table in tables.items() if table.is_file()]
    if not finished:
        return "no set has finished"
    return f"finished: {', '.join(finished)}" + ("" if results is None else f", whose rows are in {results}")
