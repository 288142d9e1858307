"""Execution of a notebook over the points of a grid: papermill on Dask workers, one notebook and folder per point.

A notebook with a parameter ``out`` receives its point's folder, in which a run that was interrupted is resumed; a
``scores.csv`` that it writes there is added to the sweep's table. A point that has finished is known by its fingerprint
(the notebook's code, the parameters, the data and the library) and not executed again.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from iidlib.bars import bar
from iidlib.errors import InputError, one_line
from iidlib.experiments.parameters import check_parameters, fitting_parameters
from iidlib.experiments.sweep import Sweep
from iidlib.files import resolved_path
from iidlib.locks import locked
from iidlib.scale.batch import Batch, run_batch
from iidlib.scale.cluster import Workers, connected, probed
from iidlib.scale.plan import STATUS, Plan
from iidlib.scale.summary import write_summary
from iidlib.scale.task import Ended, Task

__all__ = ["run_sweep", "sweep_status"]

_TABLE = 3.0
"""Seconds, at least, between two tables while points end; rewriting it takes longer the more there are."""


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    workers: int | Workers = 1,
    retries: int = 0,
    timeout: float | None = None,
    progress: bool | None = False,
    summary: bool = True,
    on_look: Callable[[Batch], None] | None = None,
) -> pd.DataFrame:
    """Executes every point; one that fails does not stop the others. Explained in chapter 13.

    Args:
        sweep: what to execute, as returned by `load_grid`.
        out: folder of the sweep: ``point-000/`` and so on, each with the executed notebook, its parameters and its
            output, and ``sweep.csv``. What it has of an earlier call is kept: finished points are not executed again,
            unless the notebook, the parameters, the data or the library have changed.
        workers: number of notebooks executed at a time on this machine, each with its share of the cores as threads, or
            ``OMP_NUM_THREADS``; or other workers.
        retries: how often a point that fails is tried again.
        timeout: seconds after which a point is stopped.
        progress: draw a progress bar; None draws one on a terminal, and elsewhere logs a line every minute.
        summary: execute a notebook about the sweep at its end, ``summary.ipynb``.
        on_look: called about once per second with the state of the batch.

    Returns:
        One row per point, with the columns point, the parameters, status (done or failed), error, seconds, worker,
        notebook. ``sweep.csv`` has the same columns and, for a point with a ``scores.csv``, one row for each of its
        lines; columns of the scores with one of these names are dropped.

    Raises:
        InputError: if `out` cannot be used, workers is below 1, or a parameter is unknown or has a value that the
            notebook does not accept.
        SchedulerLost: if the scheduler has gone; finished points are kept.
        KeyboardInterrupt: if interrupted; running notebooks are stopped, and the finished points are in the table.
    """
    where = Workers(workers) if isinstance(workers, int) else workers
    if retries < 0 or (timeout is not None and not timeout > 0):
        raise InputError(f"retries must be 0 or more, and timeout above 0; got {retries} and {timeout}")
    points = [fitting_parameters(sweep.notebook, point) for point in sweep.points]
    takes_out = "out" in check_parameters(sweep.notebook, {})
    with _folder(Path(out)) as folder:
        plan = Plan.of(sweep.notebook, points, folder)
        missing = [point for point in plan.points if point.done is None]
        by_name = {point.name: point for point in missing}

        def ended(task: Task, outcome: Ended) -> None:
            by_name[task.name].keep(outcome)
            plan.write_table(at_most_every=_TABLE)
            progress_bar.advance()

        def looked(batch: Batch) -> None:
            plan.write_status(batch)
            if on_look is not None:
                on_look(batch)

        try:
            done = len(points) - len(missing)
            with bar("sweep", len(points), "point", done=done, shown=progress) as progress_bar:
                plan.write_table()
                if missing:
                    with connected(where) as client, probed(client, folder) as here:
                        apart = not here or not all(here)
                        tasks = [point.task(sweep.notebook, takes_out, timeout, apart) for point in missing]
                        run_batch(
                            client, tasks, needs=where.needs, retries=retries,
                            on_begin=lambda task: by_name[task.name].begin(task), on_end=ended,
                            on_stop=lambda task, outcome: by_name[task.name].keep(outcome), on_look=looked,
                        )  # fmt: skip
        except KeyboardInterrupt as stop:
            finished = sum(point.done is not None for point in plan.points)
            stop.args = (f"stopped; {finished} of {len(points)} points are finished, kept in {out}",)
            raise
        finally:
            for point in missing:
                point.tidy()
            plan.write_status(None)
            plan.write_table()
        if missing and summary:
            write_summary(folder)
        return pd.DataFrame([point.row() for point in plan.points])


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """The folder of a sweep, locked against other processes within the block."""
    with contextlib.ExitStack() as held:
        try:
            target = resolved_path(out)
            if target.exists() and not target.is_dir():
                raise InputError(f"{out} is a file, not a folder; give another --out")
            if target.is_dir() and any(target.iterdir()) and not (target / STATUS).is_file():
                raise InputError(f"{out} already exists and is no sweep; nothing was overwritten: give another --out")
            target.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(target / ".sweep.lock", wait=False))
        except BlockingIOError as holder:
            raise InputError(f"{out} is in use by {holder}; wait for it, or give another --out") from None
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror or error}") from None
        yield target


def sweep_status(folder: Path) -> dict[str, Any]:
    """How far a sweep is, as the process that runs it has last written.

    Raises:
        InputError: if the folder is no sweep.
    """
    try:
        return dict(json.loads((folder / STATUS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no sweep: {one_line(error)}") from None
