"""Settings by dotted key: listing, overrides, presets with the origin of each value, and conversion to and from YAML.

A preset applies the tables of `recipes` to the paper's settings, so that all changes can be read in one place.
"""

import hashlib
import typing
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import yaml

from iidlib.config.recipes import BASELINES, BASES, Origin, layers
from iidlib.config.schema import RunConfig
from iidlib.config.uses import WEIGHTS, check_weights
from iidlib.config.values import check_text
from iidlib.errors import InputError, suggest
from iidlib.files import load_yaml

__all__ = [
    "Setting",
    "Source",
    "check_weights_by_hand",
    "differing",
    "fingerprint",
    "from_yaml",
    "override",
    "preset",
    "resolved",
    "settings",
    "to_yaml",
]

ADDED: Mapping[str, Any] = {
    "match.mean": 1.0,
    "match.source": "auto",
    "match.cm_blocks": 1,
    "match.mmd": 0.0,
    "match.mmd_form": "gaussian",
    "match.mmd_frequencies": 256,
    "pool.augmentation": "none",
    "pool.untrained": "refuse",
    "stages.schedule": "uniform",
    "stages.interpolate": "off",
    "checkpoint.queue": "full",
    "compute.classes": 0,
    "compute.ensemble": "auto",
}
"""Settings added after version 0.1.0, with their defaults."""


def settings(kind: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Types of all settings by dotted key; groups such as ``match`` are not settings themselves."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for entry in attrs.fields(kind):
        hint = hints[entry.name]
        if attrs.has(hint):
            found |= settings(hint, f"{prefix}{entry.name}.")
        else:
            found[prefix + entry.name] = hint
    return found


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values of all settings by dotted key."""
    flat: dict[str, Any] = {}
    for entry in attrs.fields(type(config)):
        value = getattr(config, entry.name)
        if attrs.has(type(value)):
            flat |= flattened(value, f"{prefix}{entry.name}.")
        else:
            flat[prefix + entry.name] = value
    return flat


_RECORDED_SEPARATELY = ("method", "dataset", "ipc", "scale", "seed", "iterations", "pool.path")
"""Settings with a separate field in the provenance of a set."""


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def differing(config: RunConfig) -> dict[str, str]:
    """Settings of a distilled set that differ from its preset, as text that `override` reads.

    Settings that are recorded separately (seed, iterations and so on) are left out, and so are those that do not
    affect the images: evaluation, checkpoints, chunks and compilation.
    """
    return {
        key: _text(value)
        for key, value in _unusual(config).items()
        if key not in _RECORDED_SEPARATELY
        and (key == "compute.precision" or not key.startswith(("eval.", "checkpoint.", "compute.")))
    }


def check_weights_by_hand(config: RunConfig) -> None:
    """Rejects settings built by hand if they set a weight that the method does not use.

    A weight that is some method's default at this scale is accepted, because the settings may have been made for
    another method.

    Raises:
        InputError: naming the methods that have the term.
    """
    others = [_resolve(method, config.dataset, config.ipc, config.scale, {})[0] for method in BASES]
    usual = {key: {flattened(other)[key] for other in others} for key in WEIGHTS}
    flat = flattened(config)
    check_weights(config.method, {key: flat[key] for key in WEIGHTS if flat[key] not in usual[key]})


def _unusual(config: RunConfig) -> dict[str, Any]:
    """Settings that differ from the method's preset at its scale."""
    # runs of user-defined methods are compared too, so the name is not checked
    usual = flattened(_resolve(config.method, config.dataset, config.ipc, config.scale, {})[0])
    return {key: value for key, value in flattened(config).items() if value != usual[key]}


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Returns a copy with settings changed by dotted key; text and NumPy numbers are converted to the setting's type.

    Raises:
        InputError: for an unknown key (with a suggestion), a value of the wrong type or out of range, or the weight of
            a term that the method does not have.
    """
    changed = _changed(config, changes)
    if any(key in WEIGHTS for key in changes):
        # weights written out at the method's own defaults are no change
        check_weights(changed.method, {key: value for key, value in _unusual(changed).items() if key in changes})
    return changed


def _check_settings(config: Any) -> None:
    if not isinstance(config, RunConfig):
        raise InputError(f"settings must be a RunConfig, such as preset returns, got {type(config).__name__}")


def _changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Applies `override` without checking weights, because a scale sets weights that not every method uses."""
    _check_settings(config)
    if not isinstance(changes, Mapping):
        raise InputError(f"changes must be a mapping such as {{'match.cm': 0.02}}, got {changes!r}")
    known = settings()
    groups: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        if key not in known:
            raise InputError(f"unknown setting {key!r}{suggest(str(key), known)}")
        group, _, name = key.rpartition(".")
        groups.setdefault(group, {})[name] = value
    top = groups.pop("", {})
    for group, values in groups.items():
        top[group] = attrs.evolve(getattr(config, group), **values)
    return attrs.evolve(config, **top)


Source = Literal["default", "argument", Origin, "change"]
"""Origin of a value: the classes, an argument of `preset`, one of the tables of `recipes`, or ``changes``."""


@attrs.frozen
class Setting:
    """A setting of a resolved configuration."""

    key: str
    """Dotted name."""
    value: Any
    """Resolved value."""
    source: Source
    """Origin of the value."""

    @property
    def text(self) -> str:
        """The value as text that `override` reads."""
        return _text(self.value)


def _resolve(
    method: str, dataset: str, ipc: int, scale: str, changes: Mapping[str, Any]
) -> tuple[RunConfig, dict[str, Source]]:
    """Returns the settings and the origin of each value that is not a class's default."""
    named: dict[str, Any] = {"method": method, "dataset": dataset, "ipc": ipc, "scale": scale}
    start = _changed(RunConfig(), named)
    method, dataset, ipc, scale = start.method, start.dataset, start.ipc, start.scale
    applied: list[tuple[Source, Mapping[str, Any]]] = [
        ("argument", named),
        *layers(method, dataset, ipc, scale).items(),
        ("change", changes),
    ]
    if not isinstance(changes, Mapping):
        raise InputError(f"changes must be a mapping such as {{'match.cm': 0.02}}, got {changes!r}")
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for source, given in applied:
        values |= given
        sources |= dict.fromkeys(given, source)
    config = _changed(RunConfig(), values)
    given = flattened(config)
    check_weights(config.method, {key: given[key] for key in changes})
    return config, sources


def _check_method(method: str) -> None:
    check_text("method", method)
    known = (*BASES, *BASELINES)
    if method not in known:
        raise InputError(f"unknown method {method!r}{suggest(method, known)}")


def resolved(
    method: str = "iid-dm",
    dataset: str = "cifar10-mini",
    ipc: int = 10,
    scale: str = "tour",
    changes: Mapping[str, Any] | None = None,
) -> list[Setting]:
    """Lists the settings of `preset`, each with the origin of its value.

    Raises:
        InputError: under the same conditions as `preset`.

    >>> [setting for setting in resolved("dm", scale="tour") if setting.key == "match.width"]
    [Setting(key='match.width', value=32, source='scale')]
    """
    _check_method(method)
    config, sources = _resolve(method, dataset, ipc, scale, {} if changes is None else changes)
    return [Setting(key, value, sources.get(key, "default")) for key, value in flattened(config).items()]


def preset(
    method: str = "iid-dm",
    dataset: str = "cifar10-mini",
    ipc: int = 10,
    scale: str = "tour",
    changes: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Returns the settings of a method on a dataset at a scale.

    Args:
        method: a name in `recipes.BASES` or `recipes.BASELINES`.
        dataset: a name in the data registry.
        ipc: synthetic images per class.
        scale: ``paper`` (published settings), ``laptop``, ``tour`` or ``ci``.
        changes: further settings by dotted key, as for `override`.

    Raises:
        InputError: for an unknown method, scale or setting, a value of the wrong type or out of range, or the weight of
            a term that the method does not have.

    >>> preset("dm", ipc=10, scale="paper").match.batch_real
    256
    """
    _check_method(method)
    return _resolve(method, dataset, ipc, scale, {} if changes is None else changes)[0]


def to_yaml(config: RunConfig) -> str:
    """Returns the settings as YAML text, from which `from_yaml` restores an equal config."""
    _check_settings(config)
    return yaml.safe_dump(_for_yaml(attrs.asdict(config)), sort_keys=False)


def _for_yaml(value: Any) -> Any:
    """Converts to the types of YAML: mappings, lists, text and numbers."""
    if isinstance(value, dict):
        return {key: _for_yaml(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_yaml(text: str) -> RunConfig:
    """Reads settings from YAML text; omitted settings keep the paper's values.

    Raises:
        InputError: for text that is not YAML, an unknown setting, or an invalid value.
    """
    check_text("the config", text)
    try:
        loaded = load_yaml(text)
    except ValueError as error:
        raise InputError(f"the config is not YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"the config must be a YAML mapping of settings, got {type(loaded).__name__}")
    groups = {entry.name for entry in attrs.fields(RunConfig)} - set(settings())
    flat: dict[str, Any] = {}
    for key, value in loaded.items():
        if key in groups:
            if not isinstance(value, dict):
                raise InputError(f"{key} must be a mapping of settings, got {value!r}")
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[str(key)] = value
    return _changed(RunConfig(), flat)


def fingerprint(config: RunConfig) -> str:
    """Returns twelve hex digits that identify the settings; equal for equal settings.

    Settings in ``ADDED`` count only if they differ from their default, so runs of earlier versions keep their
    fingerprint.
    """
    _check_settings(config)
    named = _for_yaml(attrs.asdict(config))
    for key, default in ADDED.items():
        *groups, name = key.split(".")
        holder = named[groups[0]] if groups else named
        if holder[name] == default:
            del holder[name]
            if not holder:  # a group whose settings were all added later
                del named[groups[0]]
    return hashlib.sha256(yaml.safe_dump(named, sort_keys=False).encode()).hexdigest()[:12]
