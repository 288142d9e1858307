"""``iid sweep``: executes a chapter over a grid of parameters."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from iidlib.cli.output import Quiet, report
from iidlib.cli.session import Failed
from iidlib.errors import SchedulerLost

if TYPE_CHECKING:
    from iidlib.experiments import Sweep

__all__ = ["sweep"]


def sweep(
    grid: Annotated[
        Path,
        typer.Argument(
            metavar="GRID",
            help="YAML file that names a notebook and a product or zip of parameters; with --status, a sweep's folder.",
        ),
    ],
    workers: Annotated[
        int,
        typer.Option("--workers", metavar="N", help="Number of points executed in parallel."),
    ] = 1,
    scheduler: Scheduler = "",
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    retries: Retries = 0,
    timeout: Timeout = None,
    gpus: Gpus = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the points and the time expected; execute nothing.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show how far the sweep in a folder is.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Output folder (default: runs/sweep-<grid>).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Execute a notebook over a grid of parameters, one notebook per point (needs papermill and Dask)."""
    from iidlib.experiments import load_grid
    from iidlib.scale import Workers, job_script, run_sweep

    if status:
        _show(grid)
        return
    seconds = None if timeout is None else time_of(timeout, "--timeout")
    folder, plan = out or Path("runs") / f"sweep-{grid.stem}", load_grid(grid)
    where = Workers(workers, scheduler, scheduler_file, cluster, gpus)
    if dry_run:
        _plan(plan, workers)
        if cluster is not None:
            typer.echo(f"the script of each job in the queue:\n\n{job_script(cluster)}")
        return
    try:
        with watched() as show:
            frame = run_sweep(plan, folder, workers=where, retries=retries, timeout=seconds, on_look=show)
    except SchedulerLost as error:
        raise Failed(f"failed: {error}; finished points are kept in {folder}\nrepeat the command to continue") from None
    failed = frame[frame["status"] != "done"]
    for row in failed.to_dict("records"):
        typer.echo(f"failed: {folder / row['notebook']}: {row['error']}", err=True)
    typer.echo(f"{len(frame) - len(failed)} of {len(frame)} points done, table in {folder / 'sweep.csv'}")
    report(folder / "sweep.csv", {})
    if len(failed):
        raise typer.Exit(1)


def _plan(plan: "Sweep", workers: int) -> None:
    """Prints the points, and the time that they are expected to take."""
    from iidlib.experiments.expected import expected_seconds

    times = [expected_seconds(plan.notebook, point) for point in plan.points]
    for number, (point, seconds) in enumerate(zip(plan.points, times, strict=True)):
        known = "" if math.isnan(seconds) else f"  {seconds / 60:.1f} min"
        typer.echo(f"{number:4}  {' '.join(f'{name}={value}' for name, value in point.items())}{known}")
    unknown = sum(map(math.isnan, times))
    total = sum(seconds for seconds in times if not math.isnan(seconds))
    if unknown < len(times):
        typer.echo(
            f"{_points(len(times) - unknown)}: {total / 60:.1f} min by measured rows, "
            f"{total / workers / 60:.1f} min with {workers} at a time if each is as fast"
        )
    if unknown:
        typer.echo(f"{_points(unknown)}: nothing was measured at this scale, so the time is not known")


def _points(count: int) -> str:
    return f"{count} point{'' if count == 1 else 's'}"


def _show(folder: Path) -> None:
    """Prints how far a sweep is."""
    from iidlib.scale import sweep_status

    known = sweep_status(folder)
    left = known["seconds_left"]
    rest = "" if left is None else f", some {left / 60:.1f} minutes left"
    how = "ended" if known["ended"] else f"running, as of {time.time() - known['at']:.0f} seconds ago"
    typer.echo(f"{known['done']} of {known['points']} points done, {len(known['failed'])} failed{rest} ({how})")
    for name, worker in known["running"].items():
        typer.echo(f"{name}: running on {worker}")
    for name, error in known["failed"].items():
        typer.echo(f"{name}: failed: {error}")
