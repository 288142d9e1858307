"""Chapters executed over a grid of parameters: papermill in local processes, one notebook and one folder a point.

A grid is a YAML file::

    notebook: ../book/01_quickstart.ipynb      # relative to this file
    product:                                   # every combination; or `zip:`, lists walked side by side
      ipc: [1, 10]
      seeds: [[0], [1]]
    fixed:                                     # the same at every point
      scale: tour

Everything is checked before anything starts: papermill itself only warns about a parameter that the notebook does not
have, and runs the default. A notebook with a parameter ``out`` is given its point's folder; the ``scores.csv`` that it
leaves there joins the sweep's table.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from iidlib.config import InputError, suggest
from iidlib.runs import atomic_write

__all__ = ["Sweep", "check_parameters", "load_grid", "run_sweep"]


@dataclass(frozen=True)
class Sweep:
    """A notebook and the parameters of each of its executions."""

    notebook: Path
    points: tuple[dict[str, Any], ...]


def check_parameters(notebook: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a notebook declares, by name with their defaults as text.

    Raises:
        InputError: if the notebook is missing or declares none, or `parameters` has one that it does not declare.
    """
    notebook = Path(notebook)
    if not notebook.is_file():
        raise InputError(f"no notebook at {notebook}")
    try:
        from papermill import inspect_notebook
    except ImportError:
        raise InputError("notebooks need papermill; install it with: pip install 'iidlib[book]'") from None
    try:
        declared = {name: facts["default"] for name, facts in inspect_notebook(str(notebook)).items()}
    except Exception as error:  # whatever a damaged notebook makes of papermill's reader
        raise InputError(
            f"{notebook} is not a notebook that papermill can read ({' '.join(str(error).split())})"
        ) from None
    for name in parameters:
        if name not in declared:
            hint = suggest(name, declared) if declared else "; it has no cell tagged parameters"
            raise InputError(f"{notebook.name} has no parameter {name!r}{hint}")
    return declared


def load_grid(path: str | Path) -> Sweep:
    """Reads and checks a grid.

    Raises:
        InputError: for a file that is missing or not a grid, or a parameter that the notebook does not have.
    """
    path = Path(path)
    try:
        grid = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read the grid {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the grid {path} is not YAML: {' '.join(str(error).split())}") from None
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
    both = sorted(set(axes) & set(fixed))
    if both:
        raise InputError(f"the grid {path} gives {both[0]!r} both in {kind} and in fixed")
    lengths = {len(values) for values in axes.values()}
    if kind == "zip" and len(lengths) > 1:
        raise InputError(f"the lists of zip in the grid {path} must be of one length, got {sorted(lengths)}")
    rows = itertools.product(*axes.values()) if kind == "product" else zip(*axes.values(), strict=True)
    points = tuple(fixed | dict(zip(axes, row, strict=True)) for row in rows)
    notebook = path.parent / Path(grid["notebook"]).expanduser()
    check_parameters(notebook, points[0])
    return Sweep(notebook, points)


def run_sweep(sweep: Sweep, out: str | Path, *, workers: int = 1, progress: bool = False) -> pd.DataFrame:
    """Executes every point; one that fails does not stop the others.

    Args:
        sweep: what to execute, as `load_grid` gives it.
        out: folder made for the sweep: ``point-000/`` and so on with the executed notebook, and ``sweep.csv``.
        workers: notebooks executed at a time; they share the cores between them.
        progress: show a progress bar.

    Returns:
        One row a point: point, the parameters, status (done or failed), error, seconds, notebook. ``sweep.csv`` has
        the same columns, and one row for each line of a point's ``scores.csv`` where it left one.

    Raises:
        InputError: if `out` is not empty or cannot be written, workers is below 1, or a parameter is unknown.
    """
    out = Path(out)
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    takes_out = "out" in check_parameters(sweep.notebook, {name: None for point in sweep.points for name in point})
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists already; nothing was overwritten: give another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
    threads = max(1, (os.cpu_count() or 1) // workers)

    def execute(number: int) -> dict[str, Any]:
        folder = out / f"point-{number:03d}"
        own = {"out": str(folder.resolve())} if takes_out and "out" not in sweep.points[number] else {}
        return {"point": number} | _execute(sweep.notebook, folder, sweep.points[number], own, threads)

    bar = tqdm(total=len(sweep.points), desc="sweep", unit="point", disable=not progress)
    with bar, ThreadPoolExecutor(workers) as pool:
        rows = []
        for row in pool.map(execute, range(len(sweep.points))):
            rows.append(row)
            bar.update()
            atomic_write(out / "sweep.csv", _tidy(pd.DataFrame(rows), out).to_csv(index=False))
    return pd.DataFrame(rows)


def _execute(
    notebook: Path, folder: Path, parameters: Mapping[str, Any], own: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    """Runs papermill on one point in a process of its own."""
    folder.mkdir()
    settings = folder / "parameters.yaml"
    settings.write_text(yaml.safe_dump(dict(parameters) | dict(own)))
    executed = folder / notebook.name
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(executed),
        "-f",
        str(settings),
        "--no-progress-bar",
    ]
    begun = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    failed = process.returncode != 0
    return {
        **parameters,
        "status": "failed" if failed else "done",
        "error": (lines[-1] if lines else f"exit status {process.returncode}") if failed else "",
        "seconds": round(time.perf_counter() - begun, 1),
        "notebook": str(executed.relative_to(folder.parent)),
    }


def _tidy(points: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Each point's row, once for each of its scores; the scores' columns give way to parameters of the same name."""
    frames = []
    for number, row in enumerate(points.to_dict("records")):
        scores = out / f"point-{number:03d}" / "scores.csv"
        if not scores.is_file():
            frames.append(pd.DataFrame([row]))
            continue
        table = pd.read_csv(scores)
        fresh = table[[name for name in table if name not in row]]
        frames.append(pd.DataFrame([row] * len(table)).reset_index(drop=True).join(fresh))
    return pd.concat(frames, ignore_index=True)
