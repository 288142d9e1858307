"""``iid reproduce``: the cells of the paper's tables, and the runs that measure them."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from iidlib.cli.batches import (
    Cluster,
    Gpus,
    Retries,
    Scheduler,
    SchedulerFile,
    Timeout,
    time_of,
    watched,
)
from iidlib.cli.completion import complete_device, complete_experiment, complete_scale
from iidlib.cli.output import Kind, Quiet, console, print_table, result
from iidlib.cli.session import Failed, given_command, keeping
from iidlib.config import SCALES
from iidlib.errors import InputError, SchedulerLost, suggest

if TYPE_CHECKING:
    from iidlib.experiments import Job
    from iidlib.experiments.costs import Cost
    from iidlib.experiments.reproduce import Outcome

__all__ = ["reproduce"]

COLUMNS = ("cell", "published", "paper", "laptop", "tour")


def _folded(name: str, width: int) -> str:
    """Wraps a cell's name to lines of at most `width` characters, breaking after slashes."""
    lines = [""]
    for part in re.findall("[^/]+/?", name):
        if len(lines[-1] + part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def _minutes(cost: "Cost | None") -> str:
    """A cell's minutes, marked if they are predicted; "" if they are unknown."""
    return "" if cost is None else _in_minutes(cost.seconds, cost.measured)


def _in_minutes(seconds: float, measured: bool) -> str:
    minutes = max(seconds / 60, 0.1)
    return f"{'' if measured else '~'}{minutes:.{0 if minutes >= 100 else 1}f}"


def _pools(costs: "Iterable[Cost | None]") -> list[str]:
    """A line for each pool that the cells share."""
    pools = {cost.pool.name: cost.pool for cost in costs if cost is not None and cost.pool is not None}
    return [f"a pool, once: {_in_minutes(pool.seconds, pool.measured)} min ({name})" for name, pool in pools.items()]


def _cells(name: str, title: str, only: str, folder: Path | None, device: str, scale: str) -> None:
    """Prints the cells of an experiment with their published and measured values, and with their minutes on a device.

    Args:
        name: name of the experiment.
        title: its title.
        only: prefix of the cells to print.
        folder: folder of the results.
        device: name of the device; "" for no minutes.
        scale: scale of the runs whose minutes are printed.
    """
    from iidlib.experiments import find, mean_of, table, within
    from iidlib.experiments.costs import costs

    cells = table(name, folder)
    if only and not any(within(cell, only) for cell in cells["cell"]):
        raise InputError(f"{name} has no cell {only!r}; see iid reproduce {name} --list")
    headings, minutes = [*COLUMNS], {}
    if device:
        headings.append(f"{device} min")
        listed = [cell for cell in find(name).cells if within(cell.name, only)]
        minutes = {cell.name: cost for cell, cost in costs(listed, scale=scale, device=device, folder=folder).items()}
    shown = Table(
        title=escape(f"{name}: {title}"), box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False
    )
    shown.caption_justify = "left"
    for column in headings:
        is_name = column == "cell"
        shown.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    marks: dict[str, str] = {}
    rows: list[tuple[str, ...]] = []
    for row in cells.to_dict("records"):
        if not within(row["cell"], only):
            continue
        ours = (mean_of(row, "paper") or "missing", mean_of(row, "laptop"), mean_of(row, "tour"))
        published = "not found"
        if row["source"] != "not found":
            mark = marks.setdefault(row["source"], ascii_lowercase[len(marks)])
            published = f"{row['published']:.1f} {mark}"
        times = [_minutes(minutes[row["cell"]])] if device else []
        rows.append((row["cell"], published, *ours, *times))
    caption = "\n".join([*(f"{mark}: {source}" for source, mark in marks.items()), *_pools(minutes.values())])
    if console.width < 64 + (10 if device else 0):
        columns: dict[str, Kind] = {column: "text" if column == "cell" else "number" for column in headings}
        print_table(columns, rows, f"{name}: {title}")
        typer.echo(f"\n{caption}")
        return
    for cell, *numbers in rows:
        shown.add_row(escape(_folded(cell, console.width - 52 - (10 if device else 0))), *numbers)
    shown.caption = escape(caption)
    console.print(shown)


def _check_networks(todo: Iterable["Job"], scale: str) -> None:
    """Rejects cells whose evaluation network does not fit the images, before anything is distilled."""
    from iidlib.data.spec import SPECS
    from iidlib.networks import empty_network

    for job in todo:
        spec = SPECS.get(job.cell.dataset_at(scale))
        try:
            if spec is not None:
                empty_network(job.cell.network, num_classes=2, image_size=spec.image_size, channels=spec.channels)
        except ValueError as error:
            raise InputError(f"the cell {job.cell.name} cannot be measured: {error}") from None


def reproduce(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help="Experiment: main, ablation, ... (see --list), or the YAML file of a grid.",
            autocompletion=complete_experiment,
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show published and measured values, and which cells are missing.")
    ] = False,
    only: Annotated[
        str, typer.Option("--only", metavar="PREFIX", help="Only the cells below this prefix, e.g. cifar10/ipc10.")
    ] = "",
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            metavar="SCALE",
            help="Scale of the runs: ci, tour, laptop or paper.",
            autocompletion=complete_scale,
        ),
    ] = "tour",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Number of random seeds per cell.")] = 3,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="Time after which to stop cleanly, e.g. 8h or 30m.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Device: auto, cpu, cuda, cuda:N or mps; with --list h100, h200, a100, t4 or cpu, for the minutes.",
            autocompletion=complete_device,
        ),
    ] = "auto",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--results", metavar="FOLDER", help="Folder of the result tables (default: data/results of the checkout)."
        ),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Output folder of the runs.")] = Path(
        "runs/reproduce"
    ),
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Number of runs at a time (needs Dask; default: one)."),
    ] = None,
    scheduler: Scheduler = "",
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    retries: Retries = 0,
    timeout: Timeout = None,
    gpus: Gpus = 0,
    quiet: Quiet = False,
) -> None:
    """Show the cells of the paper's tables, or run the missing ones, most informative first."""
    from iidlib.engine import device_name, pick_device
    from iidlib.experiments import EXPERIMENTS, find, jobs, run_jobs
    from iidlib.experiments.costs import DEVICES, costs, device_model, model_of
    from iidlib.scale import Workers, run_jobs_on

    if name is not None:
        find(name)
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}{suggest(scale, SCALES)}")
    if show or name is None:
        timed = "" if device == "auto" else device_model(device).name
        source = ctx.get_parameter_source("scale")
        if source is not None and source.name == "DEFAULT":  # by name, since newer versions of typer vendor click
            scale = "paper"
        with result():
            for each in [name] if name else EXPERIMENTS:
                _cells(each, find(each).title, only, folder, timed, scale)
        if timed:
            typer.echo(
                f"{timed} min: minutes of one seed at scale {scale}, measured on such a device; ~ predicted from\n"
                "counted operations, right within a factor of two at best."
            )
        typer.echo(
            "Accuracy in percent. Ours: mean ± std over distillation seeds (number of seeds).\n"
            "Only scale paper compares with published values; tour uses cifar10-mini."
        )
        return
    if device in DEVICES and device != "cpu":
        raise InputError(f"{device} is a device to predict times for, with --list; runs take cuda, cuda:N, cpu or mps")
    seconds = time_of(budget, "--budget") if budget else math.inf
    on_dask = workers is not None or scheduler or scheduler_file or cluster
    if not on_dask and (retries or timeout or gpus):
        raise InputError("--retries, --timeout and --gpus are for batches on Dask: give --workers, or a scheduler")
    longest = None if timeout is None else time_of(timeout, "--timeout")
    model = model_of(device_name(pick_device(device)))  # at once: otherwise every run would start and fail
    todo = jobs(name, scale=scale, seeds=seeds, only=only, folder=folder, runs=runs, device=device)
    _check_networks(todo, scale)
    typer.echo(f"{name} at scale {scale}: {len(todo)} runs to do")
    if on_dask:
        where = Workers(workers or 1, scheduler, scheduler_file, cluster, gpus)
        options = ["--quiet"] if quiet else []
        try:
            with keeping(runs, given_command(ctx)), watched() as look:
                outcome = run_jobs_on(
                    where, todo, logs=runs / "logs", budget=seconds, say=typer.echo, options=options, retries=retries,
                    timeout=longest, on_look=look,
                )  # fmt: skip
        except SchedulerLost as error:
            raise Failed(f"failed: {error}; finished runs are kept\nrepeat the command to continue") from None
        _ended(outcome, len(todo))
        return
    known = costs([job.cell for job in todo], scale=scale, device=model, folder=folder) if budget and model else {}
    with keeping(runs, given_command(ctx)):
        outcome = run_jobs(todo, budget=seconds, say=typer.echo, options=["--quiet"] if quiet else [], costs=known)
    _ended(outcome, len(todo))


def _ended(outcome: "Outcome", count: int) -> None:
    """Prints how many runs have finished, and ends with status 1 if one has failed."""
    typer.echo(f"{outcome.done} of {count} runs done")
    if outcome.failed:
        raise typer.Exit(1)
