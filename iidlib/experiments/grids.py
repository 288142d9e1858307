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

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from iidlib.config import RunConfig, override, preset
from iidlib.config.recipes import BASELINES, SCALES
from iidlib.errors import InputError, suggest
from iidlib.experiments.cells import EXPERIMENTS, Cell, Experiment, usual_network
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
"""Settings that a grid does not vary, and where they are given."""

_JUDGE = "eval.networks"
"""The setting that no cell of a grid has: each is evaluated by the usual network of its dataset."""

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
        title, found = _read(user_path(name))
        return Experiment(title, tuple(dict.fromkeys(cell for each in found for cell in each.values())))
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}{suggest(name, EXPERIMENTS)}; a grid's file ends in .yaml")
    return EXPERIMENTS[name]


def rounds(path: str | Path) -> list[dict[str, Cell]]:
    """The rounds of a grid: cells by what they vary, first under ``""`` what is given.

    Raises:
        InputError: for a file that is missing or no grid.
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
    usual = preset(method, grid.get("dataset", "validation:cifar10"), grid.get("ipc", 10))  # names as rows have them
    first = Cell(usual.dataset, usual.method, usual.ipc, usual_network(usual.dataset))
    found = []
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
        found.append(cells)
    return str(grid.get("title", path.stem)), found


def _check_settings(settings: dict[str, str], usual: RunConfig, path: Path) -> None:
    """Refuses what no run would take, and what the command gives."""
    for key, elsewhere in _ELSEWHERE.items():
        if key in settings:
            raise InputError(f"the grid {path} varies {key}, which is given by {elsewhere}")
    if _JUDGE in settings:
        usually = usual_network(usual.dataset)
        raise InputError(
            f"the grid {path} varies {_JUDGE}, but its cells are evaluated by {usually}; for other networks see "
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
    for scale in SCALES:  # a grid is for one of them, which is not known here
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
    """The cell with settings as texts, in the order of their names, so that equal cells are equal."""
    texts = {str(key): _text(value) for key, value in changes.items()}
    return replace(cell, settings=tuple(sorted(texts.items())))


def _text(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return ("off", "on")[value] if isinstance(value, bool) else str(value)  # YAML reads the bare words as booleans
