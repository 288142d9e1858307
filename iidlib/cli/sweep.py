"""``iid sweep``: executes a chapter over a grid of parameters."""

from pathlib import Path
from typing import Annotated

import typer

from iidlib.cli.output import Quiet, report

__all__ = ["sweep"]


def sweep(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID", help="YAML file that names a notebook and a product or zip of parameters.")
    ],
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Number of notebooks executed in parallel.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Output folder (default: runs/sweep-<grid>).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Execute a chapter over a grid of parameters, one notebook per point (needs papermill)."""
    from iidlib.experiments import load_grid, run_sweep

    folder = out or Path("runs") / f"sweep-{grid.stem}"
    frame = run_sweep(load_grid(grid), folder, workers=workers, progress=None)
    failed = frame[frame["status"] != "done"]
    for row in failed.to_dict("records"):
        typer.echo(f"failed: {folder / row['notebook']}: {row['error']}", err=True)
    typer.echo(f"{len(frame) - len(failed)} of {len(frame)} points done, table in {folder / 'sweep.csv'}")
    report(folder / "sweep.csv", {})
    if len(failed):
        raise typer.Exit(1)
