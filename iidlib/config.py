"""Settings of a run: frozen dataclasses, their validation, presets, and YAML both ways.

A preset is a row of differences from the paper's settings, so that what a scale changes can be read in one place.
"""

import dataclasses
import hashlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from iidlib import presets
from iidlib.errors import InputError, suggest
from iidlib.files import load_yaml

__all__ = [
    "SCALES",
    "CheckpointConfig",
    "ComputeConfig",
    "Drop",
    "EvalProtocol",
    "MatchConfig",
    "PoolConfig",
    "QueueConfig",
    "RunConfig",
    "SynConfig",
    "differing",
    "fingerprint",
    "from_yaml",
    "override",
    "preset",
    "settings",
    "to_yaml",
]


@dataclass(frozen=True)
class MatchConfig:
    """What is matched, and how strongly (``match.*``)."""

    network: str = "convnet3"
    """The network with random weights that gives the features."""
    width: int = 128
    """Its channels a layer."""
    batch_real: int = 256
    """Real images a class and iteration; classes with fewer give all they have."""
    augmentation: str = "auto"
    """DSA operations joined by ``_``, ``none``, or ``auto`` for the data set's own."""
    statistics: Literal["fresh", "cached"] = "fresh"
    """``fresh``: a network, an augmentation and real images drawn at every iteration, the method; ``cached``: a fixed
    number of networks and augmentations with the statistics of all real images under them, see
    `iidlib.features.cached`."""
    cached_pairs: int = 50
    """How many networks and augmentations there are with ``statistics=cached``."""
    cm: float = 0.01
    """Weight of covariance matching."""
    cc: float = 0.05
    """Weight of class centralization."""
    cc_scaling: Literal["released", "per_image", "relative"] = "released"
    """``released``: the sum over images as published; ``per_image``: times 10/ipc, so equal to it at IPC 10;
    ``relative``: the mean over images, with distances in units of that of real images under the same network and
    augmentation (with the exp form choose ``cc_alpha`` near 1)."""
    cc_form: Literal["linear", "exp"] = "linear"
    """See ``losses.class_centralization``."""
    cc_alpha: float = 0.02
    """Scale of the exponent (exp form)."""
    cc_beta: float = 0.0
    """What an image may cost before it is pulled (exp form)."""
    ce: float = 0.5
    """Weight of IDM's cross-entropy, times the matching network's accuracy in percent."""
    cc_real: int = 64
    """Real images a class that ``cc_scaling=relative`` measures the scatter on, at most ``batch_real``."""


@dataclass(frozen=True)
class SynConfig:
    """The synthetic images and their optimiser (``syn.*``)."""

    init: Literal["real", "crops", "noise"] = "real"
    """Start from random real images of the class, or from normal noise. With a factor, ``real`` makes every tile of
    another image, downscaled, and ``crops`` cuts the tiles from one image at its full size."""
    factor: int = 1
    """Each image is a mosaic of factor x factor tiles, which are enlarged before they are used, see
    `synthetic.expand`."""
    lr: float = 1.0
    """Learning rate of SGD on the pixels."""
    momentum: float = 0.5
    """Its momentum."""


@dataclass(frozen=True)
class PoolConfig:
    """The pool of trained networks behind class centralization (``pool.*``).

    The official recipe, ``count=1000`` and ``epochs=40``, costs 6.7e15 operations a ResNet18 on CIFAR-10 (3.3e9 an
    image and step), where a whole distillation with IID-DM at IPC 10 takes 1.0e16 (20,000 iterations of 5.0e11, as
    ``iid bench`` counts). The defaults train two for 20 passes each, two thirds of that distillation; for more classes,
    more images a class, or larger images the share is smaller, and with one image a class no pool is needed.
    """

    network: str = "resnet18"
    """Architecture of the trained networks."""
    width: int = 128
    """Channels a layer where the network is a ConvNet."""
    count: int = 2
    """Networks that are trained; the official recipe trains 1000."""
    epochs: int = 20
    """Passes over the training set for each; 40 in the official recipe."""
    epochs_kept: tuple[int, ...] = ()
    """Passes after which a copy of each network joins the pool as a member of its own, beside that after the last."""
    stored: Literal["fp16", "fp32"] = "fp16"
    """Precision of the weights on disk, to which they are rounded before they are used; computing is in fp32."""
    lr: float = 0.01
    """Learning rate, constant, SGD with momentum 0.9 and weight decay 5e-4."""
    batch: int = 256
    """Images a training step."""
    seed: int = 0
    """Of the pool's own draws: runs with other seeds share one pool, as they share the data."""
    path: str = ""
    """A pool saved before; empty means the cache, trained when absent."""


@dataclass(frozen=True)
class QueueConfig:
    """IDM's queue of networks in training (``queue.*``), see `iidlib.features.network_queue`."""

    size: int = 100
    """Networks at most; then the oldest leaves when a fresh one comes."""
    start: int = 3
    """Networks before the first iteration."""
    every: int = 30
    """Iterations between fresh networks; the first comes at once."""
    train: int = 2
    """Networks trained in an iteration; while there are fewer, all."""
    steps: int = 10
    """Training steps that each of them takes."""
    batch: int = 256
    """Real images a step, from all classes."""
    lr: float = 0.01
    """Learning rate, constant, SGD with momentum 0.9 and weight decay 5e-4."""
    meter_reset: Literal["interval", "evaluations"] = "interval"
    """When the accuracy meters start anew: every ``meter_interval`` iterations, or where IID's released script
    evaluates (before iterations 2000, 5000, 10000 and 20000)."""
    meter_interval: int = 100
    """Iterations between resets with ``meter_reset=interval``."""


@dataclass(frozen=True)
class Drop:
    """A change of the learning rate in training."""

    before: int
    """Index (from 0) of the pass that is the first at the new rate."""
    lr: float
    """The new rate."""
    restart: bool = False
    """Whether the momentum starts from nothing."""


WHOLE_SET_EPOCHS = 60
"""Epochs over the whole training set, where a set of a few images takes many more."""


@dataclass(frozen=True)
class EvalProtocol:
    """How a set is judged (``eval.*``): networks trained on it from scratch and tested on real images.

    The defaults are the paper's: 1001 passes, SGD at 0.01 with momentum 0.9 and weight decay 5e-4, a new optimiser at a
    tenth of the rate after pass ``(epochs - 1) // 2 + 1``, DSA on every batch, the last pass counts.
    """

    networks: tuple[str, ...] = ("convnet3",)
    """Architectures, each trained ``num_eval`` times."""
    width: int = 128
    """Channels a layer where the network is a ConvNet."""
    num_eval: int = 5
    """Networks of each architecture."""
    epochs: int = 1001
    """Passes over the set (the official argument 1000 means 1001)."""
    lr: float = 0.01
    """Learning rate before the drop."""
    batch: int = 256
    """Images a step; the last, smaller batch of a pass is kept."""
    augmentation: str = "auto"
    """DSA operations joined by ``_``, of which one is drawn a batch; stages of such draws joined by ``>``; ``none``; or
    ``auto`` for the data set's own."""
    cutmix: float = 0.0
    """Share of the batches that are mixed by CutMix, see `iidlib.training.cutmix`."""
    schedule: Literal["restart", "milestones"] = "restart"
    """How the learning rate falls: to a tenth half way **with a new optimiser**, whose momentum starts from nothing
    (DC, DM, IDM, IID); or by a factor of 0.2 after two thirds and after five sixths of the passes (the IDC family)."""

    @property
    def drops(self) -> "tuple[Drop, ...]":
        """Before which passes the learning rate changes."""
        if self.schedule == "restart":
            return (Drop((self.epochs - 1) // 2 + 2, self.lr / 10, restart=True),)
        first, second = 2 * self.epochs // 3, 5 * self.epochs // 6
        return (Drop(first, 0.2 * self.lr), Drop(second, 0.04 * self.lr))

    def for_whole_set(self) -> "EvalProtocol":
        """The protocol for the whole training set: the same, with 60 epochs at most.

        1001 epochs over 50,000 images would cost more than everything else together; a row that uses this says so.
        """
        return dataclasses.replace(self, epochs=min(WHOLE_SET_EPOCHS, self.epochs))

    @property
    def name(self) -> str:
        """``dm``, ``idc``, or ``own`` for another combination of what the two differ in."""
        same = {
            name: all(getattr(self, key.removeprefix("eval.")) == value for key, value in changes.items())
            for name, changes in presets.PROTOCOLS.items()
        }
        return next((name for name, is_this in same.items() if is_this), "own")


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved (``checkpoint.*``)."""

    every: int = 1000
    """Iterations between checkpoints."""
    seconds: float = 600.0
    """Seconds after which one is written in any case; 0 for never."""


@dataclass(frozen=True)
class ComputeConfig:
    """How the hardware is used (``compute.*``)."""

    precision: Literal["fp32", "tf32", "bf16"] = "tf32"
    """On CUDA: float32, matrix products in TF32, or a distillation's maps in bfloat16 as well; elsewhere float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compiled kernels: where a compiler is found, always, or never."""
    chunk: int = 0
    """Most images in one forward pass; 0 lets the device decide."""
    graph: Literal["auto", "off"] = "auto"
    """Record the step as a CUDA graph, where there is a GPU and the step's shapes are fixed."""
    together: int = 0
    """Networks trained at once, of a pool or in evaluation; 0 lets the device decide, 1 is one after the other without
    CUDA graphs. Changes rounding only."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a distillation and of its evaluation."""

    method: str = "iid-dm"
    dataset: str = "cifar10-mini"
    ipc: int = 10
    """Synthetic images a class."""
    scale: str = "tour"
    """The preset that the settings started from; a number always says its scale."""
    iterations: int = 20_000
    seed: int = 0
    match: MatchConfig = field(default_factory=MatchConfig)
    syn: SynConfig = field(default_factory=SynConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    eval: EvalProtocol = field(default_factory=EvalProtocol)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


SCALES: dict[str, dict[str, Any]] = {
    "paper": {},
    "laptop": {
        "iterations": 1200,
        "match.width": 64,
        "match.batch_real": 128,
        "match.cc": 1.0,  # of 0, 1, 3 and 10 the best on held-out images
        "match.cc_scaling": "relative",
        "pool.network": "convnet3",
        "pool.width": 64,
        "pool.count": 2,
        "pool.epochs": 3,
        "eval.width": 64,
        "eval.num_eval": 3,
        "eval.epochs": 400,
        "checkpoint.every": 200,
    },
    "tour": {
        "iterations": 200,
        "match.width": 32,
        "match.batch_real": 64,
        "match.cc": 0.3,
        "match.cc_scaling": "relative",
        "pool.network": "convnet3",
        "pool.width": 32,
        "pool.count": 2,
        "pool.epochs": 10,
        "eval.width": 32,
        "eval.num_eval": 3,
        "eval.epochs": 300,
        "checkpoint.every": 50,
    },
    "ci": {
        "iterations": 4,
        "match.width": 8,
        "match.batch_real": 8,
        "match.cc": 0.3,
        "match.cc_scaling": "relative",
        "pool.network": "convnet3",
        "pool.width": 16,
        "pool.count": 1,
        "pool.epochs": 3,
        "eval.width": 8,
        "eval.num_eval": 2,
        "eval.epochs": 4,
        "checkpoint.every": 2,
        "compute.compile": "off",
    },
}
"""What each scale changes in the paper's settings, which are the defaults.

The pools of small ConvNets stand in for the paper's ResNet18s where there is no GPU; class centralization is then
scaled by the scatter of real images, because a weight tuned for ResNet18 features means nothing for theirs.
"""

_POSITIVE = {
    "ipc", "iterations", "match.width", "match.batch_real", "match.cached_pairs", "match.cc_real", "syn.lr",
    "pool.width", "pool.count",
    "pool.epochs", "pool.lr", "pool.batch", "eval.width", "eval.num_eval", "eval.epochs", "eval.lr", "eval.batch",
    "checkpoint.every", "syn.factor", "queue.size", "queue.start", "queue.every", "queue.train", "queue.steps",
    "queue.batch", "queue.lr", "queue.meter_interval",
}  # fmt: skip
_NOT_NEGATIVE = {
    "seed", "pool.seed", "match.cm", "match.cc", "match.ce", "match.cc_alpha", "match.cc_beta", "syn.momentum",
    "compute.chunk", "compute.together", "checkpoint.seconds", "eval.cutmix",
}  # fmt: skip


def settings(kind: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key, with its type; groups such as ``match`` are not settings themselves."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint):
            found |= settings(typing.cast(type, hint), f"{prefix}{entry.name}.")
        else:
            found[prefix + entry.name] = hint
    return found


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """The value in its setting's type; text such as ``5e-4`` becomes a number (YAML reads it as text)."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        # YAML reads the bare words on and off as booleans
        if isinstance(value, bool) and {"on", "off"} <= set(choices):
            return "on" if value else "off"
        raise InputError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
    if origin is tuple and int in typing.get_args(hint):
        items = [item for item in value.split(",") if item.strip()] if isinstance(value, str) else value
        if isinstance(items, bool) or not isinstance(items, list | tuple | int):
            raise InputError(f"{key} must be whole numbers separated by commas, got {value!r}")
        return tuple(_coerce(key, item, int) for item in (items if isinstance(items, list | tuple) else [items]))
    if origin is tuple:
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if (
            not isinstance(items, list | tuple)
            or not items
            or not all(isinstance(item, str) and item for item in items)
        ):
            raise InputError(f"{key} must be names separated by commas, got {value!r}")
        return tuple(items)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{key} must be {_KINDS[hint]}, got {value!r}")
    if hint is str:
        return str(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"{key} must be {_KINDS[hint]}, got {value!r}") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise InputError(f"{key} must be {_KINDS[hint]}, got {value!r}")
    if hint is float:
        return number
    if number != int(number):
        raise InputError(f"{key} must be {_KINDS[int]}, got {value!r}")
    # large whole numbers (seeds) are read as such, not through a float
    return int(value) if not isinstance(value, str) or value.strip().lstrip("+-").isdigit() else int(number)


_KINDS = types.MappingProxyType({int: "a whole number", float: "a number", str: "text"})


def _validate(config: RunConfig) -> RunConfig:
    flat = _flatten(config)
    for key in _POSITIVE:
        if not flat[key] > 0:
            raise InputError(f"{key} must be above 0, got {flat[key]!r}")
    for key in _NOT_NEGATIVE:
        if not flat[key] >= 0:
            raise InputError(f"{key} must not be negative, got {flat[key]!r}")
    if config.syn.momentum >= 1:
        raise InputError(f"syn.momentum must be below 1, got {config.syn.momentum!r}")
    if config.eval.cutmix > 1:
        raise InputError(f"eval.cutmix is a share of the batches, at most 1, got {config.eval.cutmix!r}")
    kept, epochs = config.pool.epochs_kept, config.pool.epochs
    if kept and not (min(kept) >= 1 and max(kept) <= epochs):
        raise InputError(
            f"pool.epochs_kept must lie in 1 to pool.epochs (now {epochs}), got {', '.join(map(str, kept))}"
        )
    if config.scale not in SCALES:
        raise InputError(f"unknown scale {config.scale!r}{suggest(config.scale, SCALES)}")
    return config


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            flat |= _flatten(value, f"{prefix}{entry.name}.")
        else:
            flat[prefix + entry.name] = value
    return flat


_OF_NO_SET = ("method", "dataset", "ipc", "scale", "seed", "iterations", "pool.path")
"""Settings that have a place of their own in what is recorded of a set."""


def differing(config: RunConfig) -> dict[str, str]:
    """The settings of a distilled set that are not its scale's own, as texts that `override` reads.

    Left out are those that are recorded by themselves (seed, iterations and so on), and what shapes no image: the
    evaluation, checkpoints, chunks and compilation.
    """
    usual = _flatten(preset(config.method, config.dataset, config.ipc, config.scale))
    return {
        key: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for key, value in _flatten(config).items()
        if value != usual[key]
        and key not in _OF_NO_SET
        and (key == "compute.precision" or not key.startswith(("eval.", "checkpoint.", "compute.")))
    }


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A copy with settings changed by dotted key, text coerced to each setting's type.

    Raises:
        InputError: for an unknown key (with a suggestion), a value of the wrong type, or out of range.
    """
    known = settings()
    groups: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            raise InputError(f"unknown setting {key!r}{suggest(key, known)}")
        coerced = _coerce(key, value, known[key])
        group, _, name = key.rpartition(".")
        if group:
            groups.setdefault(group, {})[name] = coerced
        else:
            top[name] = coerced
    for group, values in groups.items():
        top[group] = dataclasses.replace(getattr(config, group), **values)
    return _validate(dataclasses.replace(config, **top))


def preset(
    method: str = "iid-dm",
    dataset: str = "cifar10-mini",
    ipc: int = 10,
    scale: str = "tour",
    changes: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The settings of a method on a data set at a scale.

    Args:
        method: a name of ``methods.METHODS``.
        dataset: a name of the data registry.
        ipc: synthetic images a class.
        scale: ``paper`` (published settings), ``laptop``, ``tour`` or ``ci``.
        changes: further settings by dotted key, as for `override`.

    Raises:
        InputError: for an unknown scale or setting, or a value out of range.

    >>> preset("dm", ipc=10, scale="paper").match.batch_real
    256
    """
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}{suggest(scale, SCALES)}")
    named = {"method": method, "dataset": dataset, "ipc": ipc, "scale": scale}
    own = presets.differences(method, dataset, ipc, scale)
    return override(RunConfig(), named | presets.common(method) | SCALES[scale] | own | dict(changes or {}))


def to_yaml(config: RunConfig) -> str:
    """The settings as YAML text that `from_yaml` reads back to an equal config."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)


def from_yaml(text: str) -> RunConfig:
    """Settings from YAML text; settings that it leaves out keep the paper's values.

    Raises:
        InputError: for text that is not YAML, an unknown setting, or a wrong value.
    """
    try:
        loaded = load_yaml(text)
    except ValueError as error:
        raise InputError(f"the config is not YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"the config must be a YAML mapping of settings, got {type(loaded).__name__}")
    groups = {entry.name for entry in dataclasses.fields(RunConfig) if f"{entry.name}" not in settings()}
    flat: dict[str, Any] = {}
    for key, value in loaded.items():
        if key in groups:
            if not isinstance(value, dict):
                raise InputError(f"{key} must be a mapping of settings, got {value!r}")
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[str(key)] = value
    return override(RunConfig(), flat)


def fingerprint(config: RunConfig) -> str:
    """Twelve hex digits that name the settings; equal for equal settings."""
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()[:12]
