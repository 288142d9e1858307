"""Execution of chapters over a grid of parameters: papermill in local processes, one notebook and folder per point.

A grid is a YAML file::

    notebook: ../book/01_quickstart.ipynb      # relative to this file
    product:                                   # every combination; or `zip:`, lists in parallel
      ipc: [1, 10]
      seeds: [[0], [1]]
    fixed:                                     # the same for every point
      scale: tour

Everything is checked before anything starts: papermill itself only warns about a parameter that the notebook does not
have, and uses the default. A notebook with a parameter ``out`` receives its point's folder; a ``scores.csv`` that it
writes there is added to the sweep's table.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from iidlib.bars import bar
from iidlib.errors import InputError, suggest
from iidlib.experiments.parameters import check_parameters, fitting_parameters
from iidlib.files import atomic_write, load_yaml, resolved_path, user_path

__all__ = ["Sweep", "load_grid", "read_grid", "run_sweep"]

_OWN_COLUMNS = ("point", "status", "error", "seconds", "notebook")


@dataclass(frozen=True)
class Sweep:
    """A notebook and the parameters of each execution."""

    notebook: Path
    points: tuple[dict[str, Any], ...]


def read_grid(path: Path) -> Any:
    """Content of the file of any kind of grid.

    Raises:
        InputError: if it cannot be read, or is not YAML.
    """
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the grid {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"the grid {path} is not YAML: {error}") from None


def load_grid(path: str | Path) -> Sweep:
    """Reads and checks a grid.

    Raises:
        InputError: for a file that is missing or not a grid, a parameter that the notebook does not have, or a value
            that it does not accept.
    """
    path = Path(path)
    grid = read_grid(path)
    known = ("notebook", "product", "zip", "fixed")
    if not isinstance(grid, dict) or not isinstance(grid.get("notebook"), str):
        raise InputError(f"the grid {path} must be a mapping with a notebook and a product or zip of parameters")
    for key in grid:
        if key not in known:
            raise InputError(f"unknown key {key!r} in the grid {path}{suggest(str(key), known)}")
    if ("product" in grid) == ("zip" in grid):
        raise InputError(f"the grid {path} needs product or zip, one of the two")
    kind = "product" if "product" in grid else "zip"
    axes, fixed = grid[kind], grid.get("fixed") or {}
    if (
        not isinstance(axes, dict)
        or not axes
        or not all(isinstance(values, list) and values for values in axes.values())
    ):
        raise InputError(f"{kind} in the grid {path} must map parameters to lists of values")
    if not isinstance(fixed, dict):
        raise InputError(f"fixed in the grid {path} must map parameters to values")
    for name in axes:
        if name in fixed:
            raise InputError(f"the grid {path} gives {name!r} both in {kind} and in fixed")
    for name in (*axes, *fixed):
        if name in _OWN_COLUMNS:
            raise InputError(f"the parameter {name!r} in the grid {path} has the name of a column of the sweep's table")
    lengths = {len(values) for values in axes.values()}
    if kind == "zip" and len(lengths) > 1:
        raise InputError(f"the lists of zip in the grid {path} must be of one length, got {sorted(lengths)}")
    rows = itertools.product(*axes.values()) if kind == "product" else zip(*axes.values(), strict=True)
    points = tuple(fixed | dict(zip(axes, row, strict=True)) for row in rows)
    notebook = path.parent / user_path(grid["notebook"])
    return Sweep(notebook, tuple(fitting_parameters(notebook, point) for point in points))


def run_sweep(sweep: Sweep, out: str | Path, *, workers: int = 1, progress: bool | None = False) -> pd.DataFrame:
    """Executes every point; one that fails does not stop the others. Explained in chapter 13.

    Args:
        sweep: what to execute, as returned by `load_grid`.
        out: folder created for the sweep: ``point-000/`` and so on, each with the executed notebook, its parameters and
            papermill's output, and ``sweep.csv``.
        workers: number of notebooks executed at a time; they share the cores, unless ``OMP_NUM_THREADS`` is set.
        progress: draw a progress bar; None draws one on a terminal, and elsewhere logs a line every minute.

    Returns:
        One row per point, with the columns point, the parameters, status (done or failed), error, seconds, notebook.
        ``sweep.csv`` has the same columns and, for a point with a ``scores.csv``, one row for each of its lines;
        columns of the scores with one of these names are dropped.

    Raises:
        InputError: if `out` is not empty or cannot be written, workers is below 1, or a parameter is unknown or
            has a value that the notebook does not accept.
        KeyboardInterrupt: if interrupted; running notebooks are stopped, and the finished points are in the table.
    """
    out = Path(out)
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    points = [fitting_parameters(sweep.notebook, point) for point in sweep.points]
    takes_out = "out" in check_parameters(sweep.notebook, {})
    try:
        target = resolved_path(out)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{out} already exists; nothing was overwritten: give another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
    waiting = list(enumerate(points))
    running: list[_Execution] = []
    rows: dict[int, dict[str, Any]] = {}
    tables: dict[int, pd.DataFrame] = {}
    try:
        with bar("sweep", len(sweep.points), "point", shown=progress) as progress_bar:
            while waiting or running:
                while waiting and len(running) < workers:
                    number, parameters = waiting.pop(0)
                    folder = out / f"point-{number:03d}"
                    extra = {"out": str(folder.resolve())} if takes_out and "out" not in parameters else {}
                    running.append(_Execution(number, sweep.notebook, folder, parameters, extra, workers))
                time.sleep(0.05)
                for execution in [each for each in running if each.process.poll() is not None]:
                    running.remove(execution)
                    row, scores = execution.result()
                    rows[execution.number], tables[execution.number] = row, _joined(row, scores)
                    in_order = pd.concat([tables[number] for number in sorted(tables)], ignore_index=True)
                    atomic_write(out / "sweep.csv", in_order.to_csv(index=False))
                    progress_bar.advance()
    except KeyboardInterrupt as stop:
        stop.args = (f"stopped; {len(rows)} of {len(sweep.points)} points are finished, kept in {out}",)
        raise
    finally:
        for execution in running:
            execution.interrupt()
        for execution in running:
            execution.end()
    return pd.DataFrame([rows[number] for number in sorted(rows)])


class _Execution:
    """Execution of one point by papermill, in a separate process that does not receive the terminal's signals."""

    def __init__(
        self,
        number: int,
        notebook: Path,
        folder: Path,
        parameters: Mapping[str, Any],
        extra: Mapping[str, Any],
        workers: int,
    ) -> None:
        """Starts papermill; `extra` are parameters besides those of the grid."""
        folder.mkdir()
        self.number, self._folder, self._parameters = number, folder, dict(parameters)
        self._executed, self._log = folder / notebook.name, folder / "papermill.log"
        settings = folder / "parameters.yaml"
        settings.write_text(yaml.safe_dump(self._parameters | dict(extra), allow_unicode=True), encoding="utf-8")
        options = ["-f", str(settings), "--kernel", "python3", "--no-progress-bar"]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
        self._started = time.perf_counter()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "papermill", str(notebook), str(self._executed), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # prefer a kernel of this environment to one of the same name in the user's home
                env=threads | os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"},
                start_new_session=True,
            )

    def result(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """Row of a point whose process has ended, and its scores as text, empty if it wrote none."""
        error, scores = "", pd.DataFrame()
        if self.process.returncode != 0:
            # the last line of a traceback names the error; colours are for terminals
            text = re.sub(r"\x1b\[[0-9;]*m", "", self._log.read_text(encoding="utf-8", errors="replace"))
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            error = lines[-1] if lines else f"exit status {self.process.returncode}"
        elif (self._folder / "scores.csv").is_file():
            try:
                scores = pd.read_csv(self._folder / "scores.csv", dtype=str, keep_default_na=False)
            except (OSError, ValueError) as problem:
                error = f"scores.csv cannot be read: {' '.join(str(problem).split())}"
        row = {
            "point": self.number,
            **self._parameters,
            "status": "failed" if error else "done",
            "error": error,
            "seconds": round(time.perf_counter() - self._started, 1),
            "notebook": self._executed.relative_to(self._folder.parent).as_posix(),
        }
        return row, scores

    def interrupt(self) -> None:
        """Asks papermill to stop, like Ctrl-C; it then shuts down its kernel.

        Windows has no such signal for another process: papermill is terminated, and its kernel exits on its own.
        """
        self.process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)

    def end(self) -> None:
        """Waits for papermill to stop, and kills it if it does not."""
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def _joined(row: Mapping[str, Any], scores: pd.DataFrame) -> pd.DataFrame:
    """Row of a point, repeated for each of its scores."""
    table = pd.DataFrame([dict(row)] * max(1, len(scores)))
    return table.join(scores[[name for name in scores if name not in row]])
