"""Settings that each method uses, to report those without effect."""

from collections.abc import Iterable, Mapping
from typing import Any

from iidlib.config.recipes import BASELINES, BASES, CHOSEN_STARTS, FROM_POOL, SOURCES, Base
from iidlib.config.schema import RunConfig
from iidlib.errors import InputError

__all__ = ["WEIGHTS", "check_weights", "chosen_by_pool", "has_pairs", "source_of", "uses_pool", "without_effect"]


def _with_term(name: str) -> tuple[str, ...]:
    return tuple(method for method in BASES if method.endswith(f"-{name}") or method.startswith("iid-"))


def _on(*bases: Base) -> tuple[str, ...]:
    return tuple(method for method, base in BASES.items() if base in bases)


WEIGHTS: dict[str, tuple[str, ...]] = {
    "match.mean": tuple(BASES),
    "match.cm": _with_term("cm"),
    "match.cc": _with_term("cc"),
    "match.ce": _on("idm", "plus"),
    "match.mmd": _on("plus"),
}
"""Methods that have each term, by the term's weight, see `iidlib.distillation.METHODS`."""


_KNOWN = (*BASES, *BASELINES)
"""Methods of the library; user-defined ones are registered later."""


def check_weights(method: str, given: Mapping[str, Any]) -> None:
    """Rejects the weight of a term that the method does not have, since it would change nothing.

    A weight of 0 is accepted, and user-defined methods may use any weight.

    Args:
        method: name of the method.
        given: the user's settings by dotted key, converted.

    Raises:
        InputError: naming the methods that have the term.
    """
    for key, methods in WEIGHTS.items():
        if given.get(key) and method in _KNOWN and method not in methods:
            owners = f"{', '.join(methods)} {'has' if len(methods) == 1 else 'have'}"
            remedy = f"take {nearest}, or leave" if (nearest := _nearest(method, key)) else "leave"
            raise InputError(
                f"{key}={given[key]} has no effect on {method}: only {owners} this term; {remedy} {key} out"
            )


def _nearest(method: str, key: str) -> str | None:
    """Returns the method that has the terms of this one and that of `key`, with as few others as possible, if any."""
    terms = {name: {weight for weight, methods in WEIGHTS.items() if name in methods} for name in BASES}
    wanted = terms.get(method, set()) | {key}
    return min((name for name in BASES if wanted <= terms[name]), key=lambda name: len(terms[name]), default=None)


def source_of(config: RunConfig) -> str:
    """Returns the source of a run's matching networks: ``match.source`` with ``auto`` resolved."""
    return SOURCES[BASES.get(config.method, "dm")] if config.match.source == "auto" else config.match.source


def without_effect(config: RunConfig, keys: Iterable[str]) -> list[str]:
    """Returns those of `keys` that a run does not use; weights of missing terms are left to `check_weights`.

    >>> without_effect(RunConfig(method="dm"), ["pool.epochs", "syn.lr"])
    ['pool.epochs']
    """
    method, source, match, pool = config.method, source_of(config), config.match, config.pool
    if method not in BASES:
        return []
    used = {key for key, methods in WEIGHTS.items() if method in methods and getattr(match, key[6:])}
    if not has_pairs(config):
        used -= {"match.cc", "match.cm"}
    unused = [f"{group}." for group in ("queue", "stages") if group != source]
    if source != "queue":
        unused.append("checkpoint.queue")
    unused += [f"{key}_" for key in ("match.cc", "match.cm", "match.mmd") if key not in used]
    if not uses_pool(config):
        unused.append("pool.")
    elif source not in FROM_POOL and "match.cc" not in used:  # one fully trained network chooses the initial images
        unused += ["pool.count"] if pool.path else ["pool.count", "pool.epochs_kept"]  # a saved pool fixes its copies
    if len({*pool.epochs_kept, pool.epochs}) == 1:
        unused.append("stages.")
    if match.statistics != "cached":
        unused.append("match.cached_pairs")
    if match.mmd_form != "characteristic":
        unused.append("match.mmd_frequencies")
    if match.cc_form != "exp":
        unused += ["match.cc_alpha", "match.cc_beta"]
    if match.cc_scaling != "relative":
        unused.append("match.cc_real")
    if source == "random" and "match.ce" in used:  # weighted by the networks' accuracy, which is 0
        unused.append("match.ce")
    return [key for key in keys if key.startswith(tuple(unused))]


def uses_pool(config: RunConfig) -> bool:
    """Whether a run of a method of the library uses the pool, in its iterations or for its initial images."""
    centralizes = config.method in WEIGHTS["match.cc"] and config.match.cc > 0 and has_pairs(config)
    return centralizes or source_of(config) in FROM_POOL or chosen_by_pool(config)


def has_pairs(config: RunConfig) -> bool:
    """Whether a class has several images; with one, class centralization and L_CM are zero.

    Each tile of a mosaic counts as an image.
    """
    return config.ipc * config.syn.factor**2 > 1


def chosen_by_pool(config: RunConfig) -> bool:
    """Whether a network of the pool chooses the initial images."""
    return config.syn.init in CHOSEN_STARTS
