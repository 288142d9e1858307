"""What a field of the settings may hold; each validator refuses the rest in one line that names the setting."""

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
"""Called with the settings, the field's declaration and its value."""


def _bound(holds: Callable[[Any], bool], text: str) -> Validator:
    """Refuses numbers that do not satisfy `holds`."""

    def check(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if not holds(value):
            raise InputError(f"{key_of(settings, attribute)} {text}, got {value!r}")

    return check


def above(bound: float) -> Validator:
    """Numbers greater than `bound`."""
    return _bound(lambda value: value > bound, f"must be above {bound}")


def at_least(bound: float) -> Validator:
    """Numbers from `bound` on."""
    return _bound(lambda value: value >= bound, f"must be at least {bound}" if bound else "must not be negative")


def below(bound: float) -> Validator:
    """Numbers less than `bound`."""
    return _bound(lambda value: value < bound, f"must be below {bound}")


def at_most(bound: float, what: str) -> Validator:
    """Numbers up to `bound`; the message says what the number is."""
    return _bound(lambda value: value <= bound, f"is {what}, at most {bound}")


def one_of_its_choices(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """The choices that the field's ``Literal`` type names."""
    choices = typing.get_args(attribute.type)
    if value not in choices:
        raise InputError(f"{key_of(settings, attribute)} must be one of {', '.join(choices)}, got {value!r}")


def each_once(settings: Any, attribute: "Attribute[Any]", value: tuple[str, ...]) -> None:
    """After names are those of the library: ``ConvNet`` and ``convnet3`` are one network."""
    if len(set(value)) < len(value):
        raise InputError(
            f"{key_of(settings, attribute)} must be names separated by commas, each once, got {','.join(value)!r}"
        )


def known_scale(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Names of ``recipes.SCALES``."""
    if value not in SCALES:
        raise InputError(f"unknown scale {value!r}{suggest(value, SCALES)}")


def known_start(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Ways to choose the initial images, or the saved set that ``set:DIGEST`` names."""
    choices = (*STARTS, *CHOSEN_STARTS)
    if value not in choices and not (isinstance(value, str) and re.fullmatch("set:[0-9a-f]{12}", value)):
        raise InputError(f"{key_of(settings, attribute)} must be one of {', '.join(choices)}, got {value!r}")
