"""Points of a grid: the parameters of each execution, from products, zips and ranges.

A node is a mapping of parameters to their values. In a product every value meets every value of the others; in a zip
the first values belong together, the second, and so on. Nodes contain nodes::

    product:
      ipc: [1, 10]
      seeds: {from: 0, to: 4, step: 1}            # 0, 1, 2, 3, 4
      match_cm: {log10: [-3, 1], num: 5}          # 0.001, 0.01, 0.1, 1, 10
      zip:                                        # two points, for each of the others
        methods: [[dm], [idm]]
        iterations: [1000, 500]
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from iidlib.errors import InputError, suggest

__all__ = ["MOST", "points_of"]

MOST = 100_000
"""Largest number of points of a grid."""

_NODES = ("product", "zip")


def points_of(grid: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Points of a grid, in the order in which its file gives them; the last parameter varies fastest.

    Args:
        grid: content of the file; its ``product`` and ``zip`` are combined with each other.
        where: name of the grid in messages.

    Raises:
        InputError: for a node that is none, a range that has no values, a parameter given twice, lists of a zip that
            differ in length, or more than ``MOST`` points.
    """
    return _product([_points(kind, grid[kind], where) for kind in _NODES if kind in grid], where)


def _points(kind: str, node: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(node, list) and node and all(isinstance(one, dict) for one in node):
        return _product([_points(kind, one, where) for one in node], where)
    if not isinstance(node, dict) or not node:
        raise InputError(f"{kind} in the grid {where} must map parameters to lists of values, got {node!r}")
    parts = []
    for name, values in node.items():
        if name in _NODES:
            parts.append(_points(name, values, where))
        else:
            parts.append([{name: value} for value in _values(name, values, kind, where)])
    if kind == "product":
        return _product(parts, where)
    lengths = sorted({len(part) for part in parts})
    if len(lengths) > 1:
        raise InputError(f"the lists of zip in the grid {where} must be of one length, got {lengths}")
    return [_merged(row, where) for row in zip(*parts, strict=True)]


def _product(parts: list[list[dict[str, Any]]], where: str) -> list[dict[str, Any]]:
    count = math.prod(map(len, parts))
    if count > MOST:
        raise InputError(f"the grid {where} has {count} points, more than {MOST}; split it")
    return [_merged(row, where) for row in itertools.product(*parts)]


def _merged(row: tuple[dict[str, Any], ...], where: str) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for part in row:
        for name, value in part.items():
            if name in point:
                raise InputError(f"the grid {where} gives {name!r} twice")
            point[name] = value
    return point


def _values(name: str, values: Any, kind: str, where: str) -> list[Any]:
    """Values of a parameter: a list, or those of a range."""
    if isinstance(values, list) and values:
        return values
    if not isinstance(values, dict):
        raise InputError(
            f"{kind} in the grid {where} must map parameters to lists of values, or to ranges such as "
            f"{{from: 0, to: 10, step: 2}} or {{log10: [-3, 1], num: 5}}; {name} is {values!r}"
        )
    for keys, made in _RANGES.items():
        if set(values) == {*keys}:
            try:
                found = made(*(values[key] for key in keys))
            except (TypeError, ValueError, OverflowError, ZeroDivisionError):
                found = []
            if not found:
                raise InputError(f"the range of {name} in the grid {where} has no values, or too many: {values}")
            return found
    known = sorted({key for keys in _RANGES for key in keys})
    hints = [suggest(str(key), known) for key in values if key not in known]
    raise InputError(
        f"the range of {name} in the grid {where} must be {{from, to, step}}, {{linear: [first, last], num}} or "
        f"{{log10: [first, last], num}}, got {values}{''.join(hints)}"
    )


def _steps(first: Any, last: Any, step: Any) -> list[Any]:
    """Values from first to last, both included if the step fits."""
    _check_numbers(first, last, step)
    count = math.floor((last - first) / step + 1e-9) + 1
    if all(isinstance(one, int) for one in (first, last, step)):
        return list(range(first, first + count * step, step)[: MOST + 1])
    return [_short(first + number * step) for number in range(min(count, MOST + 1))]


def _linear(ends: Any, count: Any) -> list[float]:
    first, last = ends
    _check_numbers(first, last, count)
    if not isinstance(count, int) or not 2 <= count <= MOST:
        raise ValueError
    return [_short(first + (last - first) * number / (count - 1)) for number in range(count)]


def _log10(ends: Any, count: Any) -> list[float]:
    return [_short(10.0**exponent) for exponent in _linear(ends, count)]


def _check_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError


def _short(value: float) -> float:
    """The number without the last digits, in which sums and powers differ from what one would write."""
    return float(f"{value:.12g}")


_RANGES: dict[tuple[str, ...], Callable[..., list[Any]]] = {
    ("from", "to", "step"): _steps,
    ("linear", "num"): _linear,
    ("log10", "num"): _log10,
}
"""Values of a range by its keys."""
