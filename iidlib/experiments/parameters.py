"""Parameters of notebooks: read from their source with Python's parser, checked before anything is computed.

papermill inserts a cell after the one tagged ``parameters`` and checks nothing: an unknown name becomes a new variable,
and a value of the wrong type fails somewhere later, or nowhere. A sweep therefore checks names and values before it
starts a point, and a chapter checks its own in the line after its imports.
"""

import ast
import logging
import math
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iidlib.config import SCALES
from iidlib.config.recipes import BASES
from iidlib.errors import InputError, suggest
from iidlib.experiments.cells import EXPERIMENTS
from iidlib.experiments.notebook_source import declared_in, executed, literal

__all__ = ["check_parameters", "fitting_parameters", "take_parameters"]

logger = logging.getLogger("iidlib")


@dataclass(frozen=True)
class Kind:
    """The values that a parameter accepts."""

    wanted: str
    """Description, as in "ipc must be {wanted}"."""
    fit: Callable[[Any], Any]
    """Function that converts a value to what the notebook needs; raises ValueError if it does not fit."""


def _whole(least: int) -> Callable[[Any], int]:
    def fit(value: Any) -> int:
        value = _read(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < least:
            raise ValueError
        return int(value)

    return fit


def _number(least: float, most: float, *, above: bool = False) -> Callable[[Any], float]:
    def fit(value: Any) -> float:
        value = _read(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError
        if not least <= value <= most or (above and value == least):
            raise ValueError
        return value

    return fit


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _list_of(fit: Callable[[Any], Any], *, distinct: bool = False) -> Callable[[Any], list[Any]]:
    def fitted(value: Any) -> list[Any]:
        value = _read(value)
        entries = [fit(entry) for entry in (value if isinstance(value, list | tuple) else [value])]
        if distinct and (not entries or len(set(entries)) < len(entries)):
            raise ValueError
        return entries

    return fitted


def _read(value: Any) -> Any:
    """Parses a number or a list from text such as ``[0, 1]``, which papermill's ``-p`` leaves as text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError from None


def _names(value: Any) -> str:
    """Names as comma-separated text; a list of names is accepted, too."""
    parts = value if isinstance(value, list | tuple) else _text(value).split(",")
    names = [_text(part).strip() for part in parts]
    if not all(names) or len(set(names)) < len(names) or "convnet3" not in names:
        raise ValueError
    return ",".join(names)


def _each_once(value: Any) -> list[str]:
    """Names as a list; comma-separated text, or text of a Python list, is accepted, too."""
    if isinstance(value, str):
        value = _read(value) if value.strip().startswith("[") else value.split(",")
    names = [_text(part).strip() for part in value]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError
    return names


def _moments(value: Any) -> list[float]:
    moments = _list_of(_number(0, 1), distinct=True)(value)
    if not {0, 1} <= {*moments}:
        raise ValueError
    return moments


_COUNT = Kind("a whole number of 1 or more", _whole(1))
_SEED = Kind("a whole number of 0 or more", _whole(0))
_SHARE = Kind("a number above 0", _number(0, math.inf, above=True))
_TEXT = Kind("text", _text)

KINDS = {
    "dataset": _TEXT, "folder": _TEXT, "out": _TEXT,
    "classes": _COUNT, "ipc": _COUNT, "networks": _COUNT, "repeats": _COUNT, "size": _COUNT,
    "steps": Kind("a whole number of 2 or more", _whole(2)),
    "eval_networks": Kind("comma-separated names of different networks, convnet3 among them", _names),
    "methods": Kind("a list of different methods, such as [dm, iid-dm]", _each_once),
    "order": _SEED, "seed": _SEED,
    "eval_share": _SHARE, "share": _SHARE, "stronger": _SHARE,
    "seeds": Kind("a list of different whole numbers of 0 or more, such as [0, 1, 2]",
                  _list_of(_whole(0), distinct=True)),
    "shares": Kind("a list of different numbers from 0 to 1, both among them, such as [0, 0.5, 1]", _moments),
}  # fmt: skip
"""Values that the chapters' parameters accept, by name."""

CHOICES: dict[str, Collection[str]] = {
    "scale": SCALES,
    "method": BASES,
    "only": tuple(dict.fromkeys(cell.dataset for cell in EXPERIMENTS["main"].cells)),
}
"""Chapters' parameters that accept one of a few names."""


def take_parameters(namespace: MutableMapping[str, Any], names: str) -> None:
    """Checks a chapter's parameters, in the line after its imports: ``take_parameters(globals(), "scale ipc")``.

    A value that only has the wrong form is converted, with a warning: ``"[0, 1]"``, which papermill makes of
    ``-p seeds "[0, 1]"``, becomes the list. In a notebook the executed cells are inspected, too, to find names that the
    notebook does not have, whether papermill injected them or a reader mistyped them in the parameters cell.

    Args:
        namespace: the chapter's variables, ``globals()``; converted values are stored in it.
        names: names of the chapter's parameters, separated by spaces.

    Raises:
        InputError: for a name that the chapter does not have, a missing parameter, or a value that does not fit.
    """
    declared = names.split()
    executed_names, injected = executed(map(str, namespace.get("In", ())), declared)
    known = [*declared, *(name for name in executed_names or () if name not in declared)]
    for name in injected:
        if name not in known:
            raise InputError(f"this notebook has no parameter {name!r}{suggest(name, known)}")
    for name in declared:
        if name not in namespace or (executed_names is not None and name not in executed_names):
            others = [other for other in executed_names or () if other not in declared]
            hint = f"; it has {', '.join(map(repr, others))}" if others else ""
            raise InputError(f"the parameters cell gives no {name!r}{hint}; run it with all parameters")
        namespace[name] = _fitted(name, namespace[name], _kind(name))


def _kind(name: str) -> Kind | None:
    """Values that a chapter's parameter accepts; None for a name that no chapter has."""
    if name in CHOICES:
        return Kind(f"one of {', '.join(CHOICES[name])}", _text)
    return KINDS.get(name)


def _kind_like(default: Any) -> Kind | None:
    """Values that another notebook's parameter accepts, inferred from its default; None if that is inconclusive.

    A default of 0 may stand for a number with decimals, so any number is accepted for a number.
    """
    if isinstance(default, bool):
        return Kind("True or False", lambda value: _same_type(value, bool))
    if isinstance(default, int | float):
        return Kind("a number", _any_number)
    if isinstance(default, str):
        return _TEXT
    if isinstance(default, list):
        kinds = {type(entry): _kind_like(entry) for entry in default}
        entry = next(iter(kinds.values())) if len(kinds) == 1 else None
        return Kind("a list", _list_of(entry.fit if entry else lambda value: value))
    if isinstance(default, dict):
        return Kind("a mapping", lambda value: _same_type(value, dict))
    return None


def _any_number(value: Any) -> Any:
    value = _read(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return value


def _same_type(value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted):
        raise ValueError
    return value


def _fitted(name: str, value: Any, kind: Kind | None) -> Any:
    """Converts a value to what the notebook needs.

    Raises:
        InputError: if it does not fit.
    """
    if name in CHOICES and kind is not None and isinstance(value, str) and value not in CHOICES[name]:
        raise InputError(f"unknown {name} {value!r}{suggest(value, CHOICES[name])}")
    if kind is None:
        return value
    try:
        fitted = kind.fit(value)
    except (ValueError, TypeError, OverflowError):
        how = ""
        if kind.wanted.startswith("a list"):
            how = f"; papermill takes a list as in -y '{name}: [0, 1]'"
        elif kind.fit is _text and not isinstance(value, str):
            how = f"; papermill takes any text as in -r {name} TEXT"
        raise InputError(f"{name} must be {kind.wanted}, got {value!r}{how}") from None
    for one in fitted if name == "methods" else ():
        if one not in BASES:
            raise InputError(f"unknown method {one!r}{suggest(one, BASES)}")
    if type(fitted) is not type(value) or fitted != value:
        logger.warning("%s = %r is taken as %r", name, value, fitted)
    return fitted


def check_parameters(notebook: str | Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Checks parameters for a notebook; returns all that it declares, with their defaults as text.

    Raises:
        InputError: if the notebook is missing, or `parameters` has a name that it does not declare or a value that does
            not fit.
    """
    fitting_parameters(notebook, parameters)
    return {name: text for name, (text, _) in declared_in(notebook)[0].items()}


def fitting_parameters(notebook: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Converts parameters to what a notebook needs, with a warning, such as a number to a list of one number.

    A chapter's own rules apply to a chapter; for any other notebook, they are inferred from its defaults.

    Raises:
        InputError: as `check_parameters`.
    """
    declared, checked = declared_in(notebook)
    fitted = {}
    for name, value in parameters.items():
        if name not in declared:
            hint = suggest(str(name), declared) if declared else "; it has no cell tagged parameters"
            raise InputError(f"{Path(notebook).name} has no parameter {name!r}{hint}")
        if checked:
            fitted[name] = _fitted(name, value, _kind(name))
        else:
            # None is how many notebooks say "no limit", whatever their default is
            known, default = literal(declared[name][1])
            kind = _kind_like(default) if known and value is not None else None
            fitted[name] = _fitted(name, value, kind)
    return fitted
