"""Conversion of given values to the types of the settings, by the same rules for the command line, YAML and Python.

A value is converted when a class of settings is built. Equal settings therefore compare equal, have one fingerprint
and can be written as YAML however they were given: ``cm=1``, ``cm=1.0``, ``cm="1"`` and ``cm=numpy.float32(1)`` are
the same. A value that no rule converts raises an `InputError` that names the setting.
"""

import math
import numbers
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import attrs
from attrs import Attribute, Converter

from iidlib.errors import InputError, suggest

__all__ = ["LARGEST_WHOLE", "check_text", "converted", "key_of"]

LARGEST_WHOLE = 2**63 - 1
"""Largest whole number of torch, whose integers have 64 bits."""

_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Smallest and largest normal number of float32, in which images, weights and rates are computed."""

_SHOWN = 200
"""Characters of an invalid value that a message shows."""


def key_of(settings: Any, attribute: "Attribute[Any]") -> str:
    """Returns the setting's dotted name, as users write it."""
    return f"{settings._prefix}{attribute.name}"


def converted(kind: type, fields: "list[Attribute[Any]]") -> "list[Attribute[Any]]":
    """Adds the converter of its type to every field of a class of settings; a ``field_transformer`` of attrs.

    A converter declared by the field itself is applied after it.

    Raises:
        TypeError: for a field of a type without a rule.
    """
    found = []
    for entry in fields:
        converter: Any = Converter(_rule(entry.type), takes_self=True, takes_field=True)
        found.append(entry.evolve(converter=attrs.converters.pipe(converter, entry.converter) if entry.converter
                                  else converter))  # fmt: skip
    return found


def _rule(kind: Any) -> Callable[[Any, Any, "Attribute[Any]"], Any]:
    """Returns the converter to a field's type, which attrs calls with the value, the settings and the field."""
    convert: Callable[[str, Any], Any]
    if kind in (int, float, str):
        convert = {int: _whole, float: _number, str: check_text}[kind]
    elif typing.get_origin(kind) is Literal:

        def convert(key: str, value: Any) -> Any:
            return _choice(value, typing.get_args(kind))

    elif typing.get_origin(kind) is tuple:
        convert = _whole_numbers if int in typing.get_args(kind) else _names
    elif attrs.has(kind):

        def convert(key: str, value: Any) -> Any:
            return _group(key, value, kind)

    else:
        raise TypeError(f"settings of type {kind} have no rule in {__name__}")

    def rule(value: Any, settings: Any, attribute: "Attribute[Any]") -> Any:
        return convert(key_of(settings, attribute), _as_python(value))

    return rule


def _as_python(value: Any) -> Any:
    """Converts NumPy's and torch's numbers and arrays to Python's numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


def _refuse(key: str, expected: str, value: Any) -> InputError:
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]} ..."
    return InputError(f"{key} must be {expected}, got {shown}")


def check_text(key: str, value: Any) -> str:
    """Returns text as it is and a path as text.

    Raises:
        InputError: for anything else.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _refuse(key, "text", value)
    return str(text)


def _exact(value: Any) -> int | float | Decimal | None:
    """Returns a number, or the number that a text writes in the digits 0 to 9; None if there is no finite number."""
    if isinstance(value, str):
        try:
            # float checks the syntax strictly, Decimal keeps every digit
            within = value.isascii() and math.isfinite(float(value))
        except ValueError:
            return None
        return Decimal(value.strip()) if within else None
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None


def _whole(key: str, value: Any) -> int:
    number = _exact(value)
    if number is None or number != int(number):
        raise _refuse(key, "a whole number", value)
    if number > LARGEST_WHOLE:
        raise _refuse(key, f"at most {LARGEST_WHOLE} (64 bits)", value)
    return int(number)


def _number(key: str, value: Any) -> float:
    exact = _exact(value)
    if exact is None:
        raise _refuse(key, "a number", value)
    try:
        number = float(exact)
    except OverflowError:
        number = math.inf
    if abs(number) > _LARGEST:
        raise _refuse(key, f"at most {_LARGEST:.2g} (float32 holds no larger number)", value)
    if exact != 0 and abs(number) < _SMALLEST:
        raise _refuse(key, f"0 or at least {_SMALLEST:.2g} (anything smaller is 0 in float32)", value)
    return number + 0.0  # turns -0.0 into 0.0


def _choice(value: Any, choices: Sequence[Any]) -> Any:
    """Returns the value, with booleans as ``on`` and ``off``; the field's validator checks the choice."""
    if isinstance(value, bool):  # YAML reads the bare words on and off as booleans
        word = ("off", "on")[value]
        return word if word in choices else value
    return str(value) if isinstance(value, str) else value


def _items(value: Any) -> list[Any] | None:
    """Splits a text at its commas, or a sequence into its items; None for anything else."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray) else None


def _whole_numbers(key: str, value: Any) -> tuple[int, ...]:
    one = isinstance(value, int) and not isinstance(value, bool)
    items = [value] if one else _items(value)
    if items is None:
        raise _refuse(key, "whole numbers separated by commas", value)
    return tuple(_whole(key, item) for item in items if item != "")


def _names(key: str, value: Any) -> tuple[str, ...]:
    items = [item.strip() if isinstance(item, str) else item for item in _items(value) or [None]]
    if not all(isinstance(item, str) and item and "," not in item for item in items):
        raise _refuse(key, "names separated by commas", value)
    return tuple(map(str, items))


def _group(key: str, value: Any, kind: type) -> Any:
    """Returns the settings of a group, given as such or as a mapping; omitted settings keep the paper's values."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _refuse(key, f"a {kind.__name__} or a mapping of its settings", value)
    known = [entry.name for entry in attrs.fields(kind)]
    for name in value:
        if name not in known:
            raise InputError(f"unknown setting {f'{key}.{name}'!r}{suggest(str(name), known)}")
    return kind(**value)
