"""Validators of the settings; each rejects invalid values with a one-line message that names the setting."""

import re
import typing
from collections.abc import Callable
from typing import Any

from attrs import Attribute

from iidlib.config.recipes import CHOSEN_STARTS, SCALES, STARTS
from iidlib.config.values import key_of
from iidlib.errors import InputError, suggest

__all__ = [
    "Validator",
    "above",
    "at_least",
    "at_most",
    "below",
    "each_once",
    "known_scale",
    "known_start",
    "one_of_its_choices",
]

Validator = Callable[[Any, "Attribute[Any]", Any], None]
"""Function of the settings, the field's declaration and its value that raises for invalid values."""


def _bound(holds: Callable[[Any], bool], text: str) -> Validator:
    """Rejects numbers that do not satisfy `holds`."""

    def check(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if not holds(value):
            raise InputError(f"{key_of(settings, attribute)} {text}, got {value!r}")

    return check


def above(bound: float) -> Validator:
    """Accepts numbers greater than `bound`."""
    return _bound(lambda value: value > bound, f"must be above {bound}")


def at_least(bound: float) -> Validator:
    """Accepts numbers of at least `bound`."""
    return _bound(lambda value: value >= bound, f"must be at least {bound}" if bound else "must not be negative")


def below(bound: float) -> Validator:
    """Accepts numbers less than `bound`."""
    return _bound(lambda value: value < bound, f"must be below {bound}")


def at_most(bound: float, what: str) -> Validator:
    """Accepts numbers of at most `bound`; `what` describes the number in the message."""
    return _bound(lambda value: value <= bound, f"is {what}, at most {bound}")


def one_of_its_choices(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Accepts the choices of the field's ``Literal`` type."""
    choices = typing.get_args(attribute.type)
    if value not in choices:
        raise InputError(f"{key_of(settings, attribute)} must be one of {', '.join(choices)}, got {value!r}")


def each_once(settings: Any, attribute: "Attribute[Any]", value: tuple[str, ...]) -> None:
    """Rejects repeated names, after their conversion to the library's: ``ConvNet`` and ``convnet3`` are the same."""
    if len(set(value)) < len(value):
        raise InputError(
            f"{key_of(settings, attribute)} must be names separated by commas, each once, got {','.join(value)!r}"
        )


def known_scale(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Accepts the names in ``recipes.SCALES``."""
    if value not in SCALES:
        raise InputError(f"unknown scale {value!r}{suggest(value, SCALES)}")


def known_start(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Accepts the ways to initialise the images, and ``set:DIGEST`` for a saved set."""
    choices = (*STARTS, *CHOSEN_STARTS)
    if value not in choices and not (isinstance(value, str) and re.fullmatch("set:[0-9a-f]{12}", value)):
        raise InputError(f"{key_of(settings, attribute)} must be one of {', '.join(choices)}, got {value!r}")
