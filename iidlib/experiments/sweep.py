"""Grids of a notebook's parameters, which `iidlib.scale.run_sweep` executes.

A grid is a YAML file::

    notebook: ../book/01_quickstart.ipynb      # relative to this file
    product:                                   # every combination, see `points`
      ipc: [1, 10]
      seeds: [[0], [1]]
    fixed:                                     # the same for every point
      scale: tour

Everything is checked before anything starts: papermill itself only warns about a parameter that the notebook does not
have, and uses the default.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iidlib.errors import InputError, suggest
from iidlib.experiments.parameters import fitting_parameters
from iidlib.experiments.points import points_of
from iidlib.files import load_yaml, user_path

__all__ = ["OWN_COLUMNS", "Sweep", "load_grid", "read_grid"]

OWN_COLUMNS = ("point", "status", "error", "seconds", "worker", "notebook")
"""Columns of a sweep's table besides the parameters."""


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
    if not {"product", "zip"} & {*grid}:
        raise InputError(f"the grid {path} needs product or zip")
    fixed = grid.get("fixed") or {}
    if not isinstance(fixed, dict):
        raise InputError(f"fixed in the grid {path} must map parameters to values")
    varied = points_of(grid, str(path))
    for name in (*varied[0], *fixed):
        if name in varied[0] and name in fixed:
            raise InputError(f"the grid {path} gives {name!r} both in fixed and in product or zip")
        if name in OWN_COLUMNS:
            raise InputError(f"the parameter {name!r} in the grid {path} has the name of a column of the sweep's table")
    notebook = path.parent / user_path(grid["notebook"])
    points = []
    for number, point in enumerate(varied):
        try:
            points.append(fitting_parameters(notebook, fixed | point))
        except InputError as error:
            raise InputError(f"point {number} of the grid {path}: {error}") from None
    return Sweep(notebook, tuple(points))
