"""The settings of a run as frozen classes; what a field may hold is declared with it and checked when one is built.

Before it is checked, a value is converted to its field's type, see `iidlib.config.values`. A field without a validator
takes any value of its type: names, such as those of networks, are checked by whoever looks them up.
"""

from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen

from iidlib.config.protocols import EvalProtocol
from iidlib.config.validators import above, at_least, at_most, below, known_scale, known_start, one_of_its_choices
from iidlib.config.values import converted
from iidlib.errors import InputError
from iidlib.names import dataset_name, network_name

__all__ = [
    "CheckpointConfig",
    "ComputeConfig",
    "MatchConfig",
    "PoolConfig",
    "QueueConfig",
    "RunConfig",
    "StageConfig",
    "SynConfig",
]


@frozen(field_transformer=converted)
class MatchConfig:
    """What is matched, and how strongly (``match.*``)."""

    _prefix: ClassVar[str] = "match."

    network: str = field(default="convnet3", converter=network_name)
    """The network that gives the features; where its weights are from, ``match.source`` says."""
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
    mean: float = field(default=1.0, validator=at_least(0))
    """Weight of mean matching, the base of every method; 0 asks what the other terms do without it."""
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
    """Weight of the cross-entropy of the synthetic images (IDM), times the matching network's accuracy in percent."""
    cc_real: int = field(default=64, validator=above(0))
    """Real images a class that ``cc_scaling=relative`` measures the scatter on, at most ``batch_real``."""
    source: Literal["auto", "random", "queue", "stages"] = field(default="auto", validator=one_of_its_choices)
    """Where matching networks come from: ``random`` weights (DM), the ``queue`` of networks in training (IDM), or the
    ``stages`` of the pool's training (iid-plus); ``auto`` is the method's own."""
    cm_blocks: int = field(default=1, validator=above(0))
    """Covariance matching looks at the maps after this many of a ConvNet's last blocks; 1 is the published form."""
    mmd: float = field(default=0.0, validator=at_least(0))
    """Weight of the kernel distance between the features of real and synthetic images, which sees more than means."""
    mmd_form: Literal["gaussian", "characteristic"] = field(default="gaussian", validator=one_of_its_choices)
    """``gaussian``: the kernel's sums over all pairs of images; ``characteristic``: the same distance by random
    frequencies of the characteristic function, see ``losses.characteristic_distance``."""
    mmd_frequencies: int = field(default=256, validator=above(0))
    """Frequencies drawn in an iteration with ``mmd_form=characteristic``."""


@frozen(field_transformer=converted)
class SynConfig:
    """The synthetic images and their optimiser (``syn.*``)."""

    _prefix: ClassVar[str] = "syn."

    init: str = field(default="real", validator=known_start)
    """Start from random ``real`` images of the class, or from normal ``noise``. With a factor, ``real`` makes every
    tile of another image, downscaled, and ``crops`` cuts the tiles from one image at its full size. ``centres`` and
    ``easiest`` are real images chosen by a network of the pool, see `iidlib.features.choices`. ``set:DIGEST`` is the
    saved set that ``--init`` names."""
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
    epochs_kept: tuple[int, ...] = field(default=(), converter=lambda kept: tuple(sorted({*kept})))
    """Epochs, ascending, after which a copy of each network joins the pool as a member of its own, beside that after
    the last; 0 is the network before its training, which only ``match.source=stages`` draws."""
    stored: Literal["fp16", "fp32"] = field(default="fp16", validator=one_of_its_choices)
    """Precision of the weights on disk, to which they are rounded before they are used; computing is in fp32."""
    lr: float = field(default=0.01, validator=above(0))
    """Learning rate, constant, SGD with momentum 0.9 and weight decay 5e-4."""
    batch: int = field(default=256, validator=above(0))
    """Images a training step."""
    augmentation: str = "none"
    """DSA operations of the training joined by ``_``, ``auto`` for the dataset's own, or ``none`` (the official
    recipe)."""
    seed: int = field(default=0, validator=at_least(0))
    """Of the pool's own draws: runs with other seeds share one pool, as they share the data."""
    path: str = ""
    """A pool saved before; empty means the cache, trained when absent."""
    untrained: Literal["refuse", "warn"] = field(default="refuse", validator=one_of_its_choices)
    """What follows where a network is no better than guessing on held-out images."""

    @epochs_kept.validator
    def _kept_in_training(self, attribute: "Attribute[Any]", kept: tuple[int, ...]) -> None:
        if kept and not (min(kept) >= 0 and max(kept) <= self.epochs):
            raise InputError(
                f"pool.epochs_kept must lie in 0 to pool.epochs (now {self.epochs}), got {', '.join(map(str, kept))}"
            )


@frozen(field_transformer=converted)
class StageConfig:
    """Matching networks from the stages of the pool's training (``stages.*``), see `iidlib.features.stages`.

    The stages are the epochs at which ``pool.epochs_kept`` keeps copies, and the last.
    """

    _prefix: ClassVar[str] = "stages."

    schedule: Literal["uniform", "early", "late"] = field(default="uniform", validator=one_of_its_choices)
    """Which stages an iteration draws from: all of them; or in the course of the run the ``early`` ones first, or the
    ``late`` ones first, one more being opened at a time."""
    interpolate: Literal["off", "on"] = field(default="off", validator=one_of_its_choices)
    """Whether a network lies at a random point between two neighbouring stages, instead of at one of them."""


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
    scale: str = field(default="tour", validator=known_scale)
    """The preset that the settings started from; a number always says its scale."""
    iterations: int = field(default=20_000, validator=above(0))
    seed: int = field(default=0, validator=at_least(0))
    match: MatchConfig = field(factory=MatchConfig)
    syn: SynConfig = field(factory=SynConfig)
    pool: PoolConfig = field(factory=PoolConfig)
    stages: StageConfig = field(factory=StageConfig)
    queue: QueueConfig = field(factory=QueueConfig)
    eval: EvalProtocol = field(factory=EvalProtocol)
    checkpoint: CheckpointConfig = field(factory=CheckpointConfig)
    compute: ComputeConfig = field(factory=ComputeConfig)
