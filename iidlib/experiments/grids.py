"""Experiments by name: the built-in ones, and grids in YAML files.

A grid varies the settings of one method, one at a time, in rounds, like a search that keeps what helped::

    title: Weights of iid-plus on held-out images
    method: iid-plus
    dataset: validation:cifar10
    ipc: 10
    rounds:
      - vary: {match.ce: [0, 0.1, 0.3], match.cm: [0, 1]}
      - given: {match.ce: 0.1}                 # found in the first round
        vary: {match.cc: [0, 3, 10]}

A round consists of the method with the `given` settings, and of one cell for each varied value on top of them; cells
that rounds have in common are measured once.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from iidlib.config import RunConfig, override, preset
from iidlib.config.recipes import BASELINES, SCALES
from iidlib.errors import InputError, suggest
from iidlib.experiments.cells import EXPERIMENTS, ORDERS, Cell, Experiment, usual_network
from iidlib.experiments.sweep import read_grid
from iidlib.files import user_path

__all__ = ["find", "is_grid", "rounds"]

_ELSEWHERE = {
    "seed": "--seeds",
    "scale": "--scale",
    "method": "method, at its top",
    "dataset": "dataset, at its top",
    "ipc": "ipc, at its top",
}
"""Settings that a grid cannot vary, and where they are set instead."""

_NETWORKS = "eval.networks"
"""Setting that a grid cannot vary: every cell is evaluated with the usual network of its dataset."""

_KNOWN = ("title", "method", "dataset", "ipc", "rounds")


def is_grid(name: str) -> bool:
    """Whether the name of an experiment is that of a file."""
    return name.endswith((".yaml", ".yml"))


def find(name: str) -> Experiment:
    """Finds an experiment by its name in ``EXPERIMENTS`` or ``ORDERS``, or by the file of its grid.

    Raises:
        InputError: for an unknown name, or a file that is missing or not a grid.
    """
    if is_grid(name):
        title, cells_by_round = _read(user_path(name))
        return Experiment(title, tuple(dict.fromkeys(cell for each in cells_by_round for cell in each.values())))
    known = EXPERIMENTS | ORDERS
    if name not in known:
        raise InputError(f"unknown experiment {name!r}{suggest(name, known)}; the file of a grid ends in .yaml")
    return known[name]


def rounds(path: str | Path) -> list[dict[str, Cell]]:
    """Rounds of a grid: cells by the value that they vary, the first under ``""`` with the given settings only.

    Raises:
        InputError: for a file that is missing or not a grid.
    """
    return _read(user_path(path))[1]


def _read(path: Path) -> tuple[str, list[dict[str, Cell]]]:
    grid = read_grid(path)
    if not isinstance(grid, dict) or not isinstance(grid.get("rounds"), list) or not grid["rounds"]:
        raise InputError(f"the grid {path} must be a mapping with a list of rounds")
    _check_keys(grid, _KNOWN, path)
    method = grid.get("method", "iid-plus")
    if method in BASELINES:
        raise InputError(f"the grid {path} varies settings of a distillation; {method} learns nothing")
    usual = preset(method, grid.get("dataset", "validation:cifar10"), grid.get("ipc", 10))  # as in rows
    first = Cell(usual.dataset, usual.method, usual.ipc, usual_network(usual.dataset))
    cells_by_round = []
    for round_ in grid["rounds"]:
        _check_keys(round_, ("given", "vary"), path)
        given, vary = round_.get("given") or {}, round_.get("vary") or {}
        if not isinstance(given, dict) or not isinstance(vary, dict):
            raise InputError(f"given and vary in the grid {path} must map settings to values")
        cells = {"": _with(first, given)}
        for key, values in vary.items():
            if not isinstance(values, list):
                raise InputError(f"vary in the grid {path} must give a list of values for {key}, got {values!r}")
            cells |= {f"{key}={_text(value)}": _with(first, given | {key: value}) for value in values}
        for cell in cells.values():
            _check_settings(dict(cell.settings), usual, path)
        cells_by_round.append(cells)
    return str(grid.get("title", path.stem)), cells_by_round


def _check_settings(settings: dict[str, str], usual: RunConfig, path: Path) -> None:
    """Rejects settings that no run accepts, and those that the command sets."""
    for key, elsewhere in _ELSEWHERE.items():
        if key in settings:
            raise InputError(f"the grid {path} varies {key}, which is given by {elsewhere}")
    if _NETWORKS in settings:
        usually = usual_network(usual.dataset)
        raise InputError(
            f"the grid {path} varies {_NETWORKS}, but its cells are evaluated by {usually}; for other networks see "
            "iid reproduce architectures, or iid evaluate RUN --networks"
        )
    length = settings.get("iterations", "")
    if length.endswith("%"):
        if not re.fullmatch("[1-9][0-9]{0,3}%", length):
            raise InputError(
                f"iterations in the grid {path} must be a number, or whole percents such as 50%, got {length}"
            )
        settings = {key: value for key, value in settings.items() if key != "iterations"}
    refused = []
    for scale in SCALES:  # a grid is meant for one of them, not known here
        try:
            override(preset(usual.method, usual.dataset, usual.ipc, scale), settings)
        except InputError as error:
            refused.append(error)
    if len(refused) == len(SCALES):
        raise refused[0]


def _check_keys(mapping: Any, known: tuple[str, ...], path: Path) -> None:
    if not isinstance(mapping, dict):
        raise InputError(f"rounds in the grid {path} must be mappings with vary, got {mapping!r}")
    for key in mapping:
        if key not in known:
            raise InputError(f"unknown key {key!r} in the grid {path}{suggest(str(key), known)}")


def _with(cell: Cell, changes: dict[str, Any]) -> Cell:
    """The cell with settings as strings, sorted by name, so that equal cells compare equal."""
    texts = {str(key): _text(value) for key, value in changes.items()}
    return replace(cell, settings=tuple(sorted(texts.items())))


def _text(value: Any) -> str:
    """A value in the form that ``--set`` accepts."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return ("off", "on")[value] if isinstance(value, bool) else str(value)  # YAML parses bare on and off as booleans
