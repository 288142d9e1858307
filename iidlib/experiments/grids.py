"""Experiments by name: those of the catalogue, and those of a grid in a YAML file.

A grid varies settings of one method, one at a time, in rounds, as a search does that keeps what helped::

    title: Weights of iid-plus on held-out images
    method: iid-plus
    dataset: validation:cifar10
    ipc: 10
    rounds:
      - vary: {match.ce: [0, 0.1, 0.3], match.cm: [0, 1]}
      - given: {match.ce: 0.1}                 # what the first round has shown
        vary: {match.cc: [0, 3, 10]}

A round consists of the method with what is `given`, and of one cell for each value beside it; what rounds have in
common is measured once.
"""

from pathlib import Path
from typing import Any

from iidlib.config import override, preset
from iidlib.errors import InputError, suggest
from iidlib.experiments.cells import EXPERIMENTS, Cell, Experiment
from iidlib.files import load_yaml, user_path

__all__ = ["find", "is_grid"]

_KNOWN = ("title", "method", "dataset", "ipc", "rounds")


def is_grid(name: str) -> bool:
    """Whether a name of an experiment is that of a file."""
    return name.endswith((".yaml", ".yml"))


def find(name: str) -> Experiment:
    """An experiment by its name in ``EXPERIMENTS``, or by its grid's file.

    Raises:
        InputError: for an unknown one, or a file that is missing or no grid.
    """
    if is_grid(name):
        return _read(user_path(name))
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}{suggest(name, EXPERIMENTS)}; a grid's file ends in .yaml")
    return EXPERIMENTS[name]


def _read(path: Path) -> Experiment:
    try:
        grid = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the grid {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"the grid {path} is not YAML: {error}") from None
    if not isinstance(grid, dict) or not isinstance(grid.get("rounds"), list) or not grid["rounds"]:
        raise InputError(f"the grid {path} must be a mapping with a list of rounds")
    _check_keys(grid, _KNOWN, path)
    first = Cell(
        str(grid.get("dataset", "validation:cifar10")), str(grid.get("method", "iid-plus")), grid.get("ipc", 10)
    )
    usual = preset(first.method, first.dataset, first.ipc)
    cells: dict[Cell, None] = {}
    for round_ in grid["rounds"]:
        _check_keys(round_, ("given", "vary"), path)
        given, vary = round_.get("given") or {}, round_.get("vary") or {}
        if not isinstance(given, dict) or not isinstance(vary, dict):
            raise InputError(f"given and vary in the grid {path} must map settings to values")
        cells[_with(first, given)] = None
        for key, values in vary.items():
            if not isinstance(values, list):
                raise InputError(f"vary in the grid {path} must give a list of values for {key}, got {values!r}")
            cells |= dict.fromkeys(_with(first, given | {key: value}) for value in values)
    for cell in cells:
        changes = {key: value for key, value in cell.settings if key != "iterations" or not value.endswith("%")}
        override(usual, changes)  # refuses what no run would take
    return Experiment(str(grid.get("title", path.stem)), tuple(cells))


def _check_keys(mapping: Any, known: tuple[str, ...], path: Path) -> None:
    if not isinstance(mapping, dict):
        raise InputError(f"rounds in the grid {path} must be mappings with vary, got {mapping!r}")
    for key in mapping:
        if key not in known:
            raise InputError(f"unknown key {key!r} in the grid {path}{suggest(str(key), known)}")


def _with(cell: Cell, changes: dict[str, Any]) -> Cell:
    """The cell with settings as texts, in the order of their names, so that equal cells are equal."""
    texts = {
        str(key): ",".join(map(str, value)) if isinstance(value, list) else _text(value)
        for key, value in changes.items()
    }
    return Cell(cell.dataset, cell.method, cell.ipc, settings=tuple(sorted(texts.items())))


def _text(value: Any) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)  # YAML reads the bare words as booleans
