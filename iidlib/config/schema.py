"""The settings of a run as frozen classes; what a field may hold is declared with it and checked when one is built.

Before it is checked, a value is converted to its field's type, see `iidlib.config.values`. A field without a validator
takes any value of its type: names, such as those of networks, are checked by whoever looks them up.
"""

import re
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from attrs import Attribute, evolve, field, frozen

from iidlib.config.recipes import PROTOCOLS, SCALES
from iidlib.config.values import converted, key_of
from iidlib.errors import InputError, suggest
from iidlib.names import dataset_name, network_name, network_names

__all__ = [
    "WHOLE_SET_EPOCHS",
    "CheckpointConfig",
    "ComputeConfig",
    "Drop",
    "EvalProtocol",
    "MatchConfig",
    "PoolConfig",
    "QueueConfig",
    "RunConfig",
    "SynConfig",
]

_Validator = Callable[[Any, "Attribute[Any]", Any], None]
"""Called with the settings, the field's declaration and its value."""


def _bound(holds: Callable[[Any], bool], text: str) -> _Validator:
    """Refuses numbers that do not satisfy `holds`."""

    def check(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if not holds(value):
            raise InputError(f"{key_of(settings, attribute)} {text}, got {value!r}")

    return check


def above(bound: float) -> _Validator:
    """Numbers greater than `bound`."""
    return _bound(lambda value: value > bound, f"must be above {bound}")


def at_least(bound: float) -> _Validator:
    """Numbers from `bound` on."""
    return _bound(lambda value: value >= bound, f"must be at least {bound}" if bound else "must not be negative")


def below(bound: float) -> _Validator:
    """Numbers less than `bound`."""
    return _bound(lambda value: value < bound, f"must be below {bound}")


def at_most(bound: float, what: str) -> _Validator:
    """Numbers up to `bound`; the message says what the number is."""
    return _bound(lambda value: value <= bound, f"is {what}, at most {bound}")


def one_of_its_choices(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """The choices that the field's ``Literal`` type names."""
    choices = typing.get_args(attribute.type)
    if value not in choices:
        raise InputError(f"{key_of(settings, attribute)} must be one of {', '.join(choices)}, got {value!r}")


def _each_once(settings: Any, attribute: "Attribute[Any]", value: tuple[str, ...]) -> None:
    """After names are those of the library: ``ConvNet`` and ``convnet3`` are one network."""
    if len(set(value)) < len(value):
        raise InputError(
            f"{key_of(settings, attribute)} must be names separated by commas, each once, got {','.join(value)!r}"
        )


def _known_scale(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in SCALES:
        raise InputError(f"unknown scale {value!r}{suggest(value, SCALES)}")


def _known_start(settings: Any, attribute: "Attribute[Any]", value: Any) -> None:
    choices = ("real", "crops", "noise")
    if value not in choices and not (isinstance(value, str) and re.fullmatch("set:[0-9a-f]{12}", value)):
        raise InputError(f"{key_of(settings, attribute)} must be one of {', '.join(choices)}, got {value!r}")


@frozen(field_transformer=converted)
class MatchConfig:
    """What is matched, and how strongly (``match.*``)."""

    _prefix: ClassVar[str] = "match."

    network: str = field(default="convnet3", converter=network_name)
    """The network with random weights that gives the features."""
    width: int = field(default=128, validator=above(0))
    """Its channels a layer."""
    batch_real: int = field(default=256, validator=above(0))
    """Real images a class and iteration; classes with fewer give all they have."""
    augmentation: str = "auto"
    """DSA operations joined by ``_``, ``none``, or ``auto`` for the data set's own."""
    statistics: Literal["fresh", "cached"] = field(default="fresh", validator=one_of_its_choices)
    """``fresh``: a network, an augmentation and real images drawn at every iteration, the method; ``cached``: a fixed
    number of networks and augmentations with the statistics of all real images under them, see
    `iidlib.features.cached`."""
    cached_pairs: int = field(default=50, validator=above(0))
    """How many networks and augmentations there are with ``statistics=cached``."""
    cm: float = field(default=0.01, validator=at_least(0))
    """Weight of covariance matching."""
    cc: float = field(default=0.05, validator=at_least(0))
    """Weight of class centralization."""
    cc_scaling: Literal["released", "per_image", "relative"] = field(default="released", validator=one_of_its_choices)
    """``released``: the sum over images as published; ``per_image``: times 10/ipc, so equal to it at IPC 10;
    ``relative``: the mean over images, with distances in units of that of real images under the same network and
    augmentation (with the exp form choose ``cc_alpha`` near 1)."""
    cc_form: Literal["linear", "exp"] = field(default="linear", validator=one_of_its_choices)
    """See ``losses.class_centralization``."""
    cc_alpha: float = field(default=0.02, validator=at_least(0))
    """Scale of the exponent (exp form)."""
    cc_beta: float = field(default=0.0, validator=at_least(0))
    """What an image may cost before it is pulled (exp form)."""
    ce: float = field(default=0.5, validator=at_least(0))
    """Weight of IDM's cross-entropy, times the matching network's accuracy in percent."""
    cc_real: int = field(default=64, validator=above(0))
    """Real images a class that ``cc_scaling=relative`` measures the scatter on, at most ``batch_real``."""


@frozen(field_transformer=converted)
class SynConfig:
    """The synthetic images and their optimiser (``syn.*``)."""

    _prefix: ClassVar[str] = "syn."

    init: str = field(default="real", validator=_known_start)
    """Start from random ``real`` images of the class, or from normal ``noise``. With a factor, ``real`` makes every
    tile of another image, downscaled, and ``crops`` cuts the tiles from one image at its full size. ``set:DIGEST`` is
    the saved set that ``--init`` names."""
    factor: int = field(default=1, validator=above(0))
    """Each image is a mosaic of factor x factor tiles, which are enlarged before they are used, see
    `synthetic.expand`."""
    lr: float = field(default=1.0, validator=above(0))
    """Learning rate of SGD on the pixels."""
    momentum: float = field(default=0.5, validator=[at_least(0), below(1)])
    """Its momentum."""


@frozen(field_transformer=converted)
class PoolConfig:
    """The pool of trained networks behind class centralization (``pool.*``).

    The official recipe, ``count=1000`` and ``epochs=40``, costs 6.7e15 operations a ResNet18 on CIFAR-10 (3.3e9 an
    image and step), where a whole distillation with IID-DM at IPC 10 takes 1.0e16 (20,000 iterations of 5.0e11, as
    ``iid bench`` counts). The defaults train two for 20 passes each, two thirds of that distillation; for more classes,
    more images a class, or larger images the share is smaller, and with one image a class no pool is needed.
    """

    _prefix: ClassVar[str] = "pool."

    network: str = field(default="resnet18", converter=network_name)
    """Architecture of the trained networks."""
    width: int = field(default=128, validator=above(0))
    """Channels a layer where the network is a ConvNet."""
    count: int = field(default=2, validator=[above(0), at_most(10**6, "a number of networks")])
    """Networks that are trained; the official recipe trains 1000."""
    epochs: int = field(default=20, validator=above(0))
    """Passes over the training set for each; 40 in the official recipe."""
    epochs_kept: tuple[int, ...] = field(default=())
    """Passes after which a copy of each network joins the pool as a member of its own, beside that after the last."""
    stored: Literal["fp16", "fp32"] = field(default="fp16", validator=one_of_its_choices)
    """Precision of the weights on disk, to which they are rounded before they are used; computing is in fp32."""
    lr: float = field(default=0.01, validator=above(0))
    """Learning rate, constant, SGD with momentum 0.9 and weight decay 5e-4."""
    batch: int = field(default=256, validator=above(0))
    """Images a training step."""
    seed: int = field(default=0, validator=at_least(0))
    """Of the pool's own draws: runs with other seeds share one pool, as they share the data."""
    path: str = ""
    """A pool saved before; empty means the cache, trained when absent."""
    untrained: Literal["refuse", "warn"] = field(default="refuse", validator=one_of_its_choices)
    """What follows where a network is no better than guessing on held-out images."""

    @epochs_kept.validator
    def _kept_in_training(self, attribute: "Attribute[Any]", kept: tuple[int, ...]) -> None:
        if kept and not (min(kept) >= 1 and max(kept) <= self.epochs):
            raise InputError(
                f"pool.epochs_kept must lie in 1 to pool.epochs (now {self.epochs}), got {', '.join(map(str, kept))}"
            )


@frozen(field_transformer=converted)
class QueueConfig:
    """IDM's queue of networks in training (``queue.*``), see `iidlib.features.network_queue`."""

    _prefix: ClassVar[str] = "queue."

    size: int = field(default=100, validator=above(0))
    """Networks at most; then the oldest leaves when a fresh one comes."""
    start: int = field(default=3, validator=above(0))
    """Networks before the first iteration."""
    every: int = field(default=30, validator=above(0))
    """Iterations between fresh networks; the first comes at once."""
    train: int = field(default=2, validator=above(0))
    """Networks trained in an iteration; while there are fewer, all."""
    steps: int = field(default=10, validator=above(0))
    """Training steps that each of them takes."""
    batch: int = field(default=256, validator=above(0))
    """Real images a step, from all classes."""
    lr: float = field(default=0.01, validator=above(0))
    """Learning rate, constant, SGD with momentum 0.9 and weight decay 5e-4."""
    meter_reset: Literal["interval", "evaluations"] = field(default="interval", validator=one_of_its_choices)
    """When the accuracy meters start anew: every ``meter_interval`` iterations, or where IID's released script
    evaluates (before iterations 2000, 5000, 10000 and 20000)."""
    meter_interval: int = field(default=100, validator=above(0))
    """Iterations between resets with ``meter_reset=interval``."""


@frozen
class Drop:
    """A change of the learning rate in training."""

    before: int
    """Index (from 0) of the pass that is the first at the new rate."""
    lr: float
    """The new rate."""
    restart: bool = False
    """Whether the momentum starts from nothing."""


WHOLE_SET_EPOCHS = 60
"""Epochs of a network that is trained on the whole training set."""


@frozen(field_transformer=converted)
class EvalProtocol:
    """How a set is judged (``eval.*``): networks trained on it from scratch and tested on real images.

    The defaults are the paper's: 1001 passes, SGD at 0.01 with momentum 0.9 and weight decay 5e-4, a new optimiser at a
    tenth of the rate after pass ``(epochs - 1) // 2 + 1``, DSA on every batch, the last pass counts.
    """

    _prefix: ClassVar[str] = "eval."

    networks: tuple[str, ...] = field(default=("convnet3",), converter=network_names, validator=_each_once)
    """Architectures, each trained ``num_eval`` times."""
    width: int = field(default=128, validator=above(0))
    """Channels a layer where the network is a ConvNet."""
    num_eval: int = field(default=5, validator=above(0))
    """Networks of each architecture."""
    epochs: int = field(default=1001, validator=above(0))
    """Passes over the set (the official argument 1000 means 1001)."""
    lr: float = field(default=0.01, validator=above(0))
    """Learning rate before the drop."""
    batch: int = field(default=256, validator=above(0))
    """Images a step; the last, smaller batch of a pass is kept."""
    augmentation: str = "auto"
    """DSA operations joined by ``_``, of which one is drawn a batch; stages of such draws joined by ``>``; ``none``; or
    ``auto`` for the data set's own."""
    cutmix: float = field(default=0.0, validator=[at_least(0), at_most(1, "a share of the batches")])
    """Share of the batches that are mixed by CutMix, see `iidlib.training.cutmix`."""
    schedule: Literal["restart", "milestones"] = field(default="restart", validator=one_of_its_choices)
    """How the learning rate falls: to a tenth half way **with a new optimiser**, whose momentum starts from nothing
    (DC, DM, IDM, IID); or by a factor of 0.2 after two thirds and after five sixths of the passes (the IDC family)."""

    @property
    def all_epochs(self) -> int:
        """Passes of all networks together."""
        return len(self.networks) * self.num_eval * self.epochs

    @property
    def drops(self) -> tuple[Drop, ...]:
        """Before which passes the learning rate changes."""
        if self.schedule == "restart":
            return (Drop((self.epochs - 1) // 2 + 2, self.lr / 10, restart=True),)
        first, second = 2 * self.epochs // 3, 5 * self.epochs // 6
        return (Drop(first, 0.2 * self.lr), Drop(second, 0.04 * self.lr))

    @property
    def name(self) -> str:
        """``dm``, ``idc``, or ``own`` for another combination of what the two differ in."""
        same = {
            name: all(getattr(self, key.removeprefix("eval.")) == value for key, value in changes.items())
            for name, changes in PROTOCOLS.items()
        }
        return next((name for name, is_this in same.items() if is_this), "own")

    def for_whole_set(self) -> "EvalProtocol":
        """The protocol for the whole training set: the same, with 60 epochs at most.

        1001 epochs over 50,000 images would cost more than everything else together; a row that uses this says so.
        """
        return evolve(self, epochs=min(WHOLE_SET_EPOCHS, self.epochs))


@frozen(field_transformer=converted)
class CheckpointConfig:
    """When a run is saved (``checkpoint.*``)."""

    _prefix: ClassVar[str] = "checkpoint."

    every: int = field(default=1000, validator=above(0))
    """Iterations between checkpoints."""
    seconds: float = field(default=600.0, validator=at_least(0))
    """Seconds after which one is written in any case; 0 for never."""


@frozen(field_transformer=converted)
class ComputeConfig:
    """How the hardware is used (``compute.*``)."""

    _prefix: ClassVar[str] = "compute."

    precision: Literal["fp32", "tf32", "bf16"] = field(default="tf32", validator=one_of_its_choices)
    """On CUDA: float32, matrix products in TF32, or a distillation's maps in bfloat16 as well; elsewhere float32."""
    compile: Literal["auto", "on", "off"] = field(default="auto", validator=one_of_its_choices)
    """Compiled kernels: where a compiler is found, always, or never."""
    chunk: int = field(default=0, validator=at_least(0))
    """Most images in one forward pass; 0 lets the device decide."""
    graph: Literal["auto", "off"] = field(default="auto", validator=one_of_its_choices)
    """Record the step as a CUDA graph, where there is a GPU and the step's shapes are fixed."""
    together: int = field(default=0, validator=at_least(0))
    """Networks trained at once, of a pool or in evaluation; 0 lets the device decide, 1 is one after the other without
    CUDA graphs. Changes rounding only."""


@frozen(field_transformer=converted)
class RunConfig:
    """All settings of a distillation and of its evaluation."""

    _prefix: ClassVar[str] = ""

    method: str = "iid-dm"
    dataset: str = field(default="cifar10-mini", converter=dataset_name)
    ipc: int = field(default=10, validator=above(0))
    """Synthetic images a class."""
    scale: str = field(default="tour", validator=_known_scale)
    """The preset that the settings started from; a number always says its scale."""
    iterations: int = field(default=20_000, validator=above(0))
    seed: int = field(default=0, validator=at_least(0))
    match: MatchConfig = field(factory=MatchConfig)
    syn: SynConfig = field(factory=SynConfig)
    pool: PoolConfig = field(factory=PoolConfig)
    queue: QueueConfig = field(factory=QueueConfig)
    eval: EvalProtocol = field(factory=EvalProtocol)
    checkpoint: CheckpointConfig = field(factory=CheckpointConfig)
    compute: ComputeConfig = field(factory=ComputeConfig)
