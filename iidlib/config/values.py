"""What a setting may be given as, and what it becomes: one rule for the command line, YAML and Python.

A value is converted where a class of settings is built, so that equal settings are equal, have one fingerprint and can
be written as YAML, whatever they were given as: ``cm=1``, ``cm=1.0``, ``cm="1"`` and ``cm=numpy.float32(1)`` are one.
What no rule converts is an `InputError` that names the setting.
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
"""The largest whole number of torch, which counts in 64 bits."""

_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Of float32's numbers beside zero: images, weights and rates are computed with in that."""

_SHOWN = 200
"""Characters of a wrong value that a message shows."""


def key_of(settings: Any, attribute: "Attribute[Any]") -> str:
    """The setting's dotted name, as users write it."""
    return f"{settings._prefix}{attribute.name}"


def converted(kind: type, fields: "list[Attribute[Any]]") -> "list[Attribute[Any]]":
    """Gives every field of a class of settings the converter of its type; for the ``field_transformer`` of attrs.

    A converter that a field declares for itself comes after it.

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
    """What converts a value to a field's type, as attrs calls it: with the value, the settings and the field."""
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
    """Numbers and lists of Python in the place of numpy's and torch's."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


def _refuse(key: str, expected: str, value: Any) -> InputError:
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]} ..."
    return InputError(f"{key} must be {expected}, got {shown}")


def check_text(key: str, value: Any) -> str:
    """Text, or a path as text.

    Raises:
        InputError: for anything else.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _refuse(key, "text", value)
    return str(text)


def _exact(value: Any) -> int | float | Decimal | None:
    """The number that a value is, or that a text says in the digits 0 to 9; None for what is none, or not finite."""
    if isinstance(value, str):
        try:
            # float is strict about what a number looks like, Decimal keeps every digit of it
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
    return number + 0.0  # zero has no sign


def _choice(value: Any, choices: Sequence[Any]) -> Any:
    """The value as it is; whether it is a choice, the field itself checks."""
    if isinstance(value, bool):  # YAML reads the bare words on and off as booleans
        word = ("off", "on")[value]
        return word if word in choices else value
    return str(value) if isinstance(value, str) else value


def _items(value: Any) -> list[Any] | None:
    """The parts of a text with commas, or of a sequence; None for what is neither."""
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
    """Settings of a group, or a mapping of some of them; those that it leaves out keep the paper's values."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _refuse(key, f"a {kind.__name__} or a mapping of its settings", value)
    known = [entry.name for entry in attrs.fields(kind)]
    for name in value:
        if name not in known:
            raise InputError(f"unknown setting {f'{key}.{name}'!r}{suggest(str(name), known)}")
    return kind(**value)
