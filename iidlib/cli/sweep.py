"""``iid sweep``: a chapter over a grid of parameters."""

from pathlib import Path
from typing import Annotated

import typer

from iidlib.cli.output import Quiet, report

__all__ = ["sweep"]


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file: notebook, and product or zip of parameters.")],
    workers: Annotated[int, typer.Option("--workers", help="Notebooks executed at a time.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for notebooks and table; else below runs/.")] = None,
    quiet: Quiet = False,
) -> None:
    """Execute a chapter over a grid of parameters, each point a notebook of its own (papermill)."""
    from iidlib.experiments import load_grid, run_sweep

    folder = out or Path("runs") / f"sweep-{grid.stem}"
    frame = run_sweep(load_grid(grid), folder, workers=workers, progress=None)
    failed = frame[frame["status"] != "done"]
    for row in failed.to_dict("records"):
        typer.echo(f"failed: {folder / row['notebook']}: {row['error']}", err=True)
    typer.echo(f"{len(frame) - len(failed)} of {len(frame)} points done; table in {folder / 'sweep.csv'}")
    report(folder / "sweep.csv", {})
    if len(failed):
        raise typer.Exit(1)
