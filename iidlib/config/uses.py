"""Which settings a method uses, so that one that would change nothing is told."""

from collections.abc import Iterable, Mapping
from typing import Any

from iidlib.config.recipes import BASELINES, BASES
from iidlib.errors import InputError

__all__ = ["WEIGHTS", "check_weights", "without_effect"]


def _with_term(name: str) -> tuple[str, ...]:
    return tuple(method for method in BASES if method.endswith(f"-{name}") or method.startswith("iid-"))


WEIGHTS: dict[str, tuple[str, ...]] = {
    "match.cm": _with_term("cm"),
    "match.cc": _with_term("cc"),
    "match.ce": tuple(method for method, base in BASES.items() if base == "idm"),
}
"""The weights of terms, each with the methods that have the term, see `iidlib.distillation.METHODS`."""


_KNOWN = (*BASES, *BASELINES)
"""Without methods of one's own, which join later."""


def check_weights(method: str, given: Mapping[str, Any]) -> None:
    """Refuses a weight of a term that the method does not have: the set would be that of the method without it.

    A weight of 0 says what is the case and is taken; a method that is not known here may use anything.

    Args:
        method: the method.
        given: what the user gave, by dotted key, converted.

    Raises:
        InputError: with the method that has the term.
    """
    for key, methods in WEIGHTS.items():
        if given.get(key) and method in _KNOWN and method not in methods:
            near = _nearest(method, key)
            raise InputError(
                f"{key}={given[key]} has no effect on {method}: only {', '.join(methods)} have this term; "
                f"take {near}, or leave {key} out"
            )


def _nearest(method: str, key: str) -> str:
    """The method that has the terms of this one and the one of `key`, and as few others as possible."""
    terms = {name: {weight for weight, methods in WEIGHTS.items() if name in methods} for name in BASES}
    wanted = terms.get(method, set()) | {key}
    return min((name for name in BASES if wanted <= terms[name]), key=lambda name: len(terms[name]))


def without_effect(method: str, keys: Iterable[str]) -> list[str]:
    """Those of some settings that a method does not use, weights left to `check_weights`.

    >>> without_effect("dm", ["pool.epochs", "syn.lr"])
    ['pool.epochs']
    """
    if method not in BASES:
        return []
    unused = ["queue."] if BASES[method] != "idm" else []
    if method not in WEIGHTS["match.cc"]:
        unused += ["pool.", "match.cc_"]
    return [key for key in keys if key.startswith(tuple(unused))]
