"""The settings of a run as frozen classes; each field declares its valid values, which are checked on construction.

A value is converted to its field's type before it is checked, see `iidlib.config.values`. A field without a validator
takes any value of its type: names, such as those of networks, are checked where they are looked up.
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
    """Matching terms, their weights, and the networks that give the features (``match.*``)."""

    _prefix: ClassVar[str] = "match."

    network: str = field(default="convnet3", converter=network_name)
    """Network that gives the features; its weights come from ``match.source``."""
    width: int = field(default=128, validator=above(0))
    """Channels per layer of the network."""
    batch_real: int = field(default=256, validator=above(0))
    """Real images per class and iteration; smaller classes give all their images."""
    augmentation: str = "auto"
    """DSA operations joined by ``_``, ``none``, or ``auto`` for the dataset's default."""
    statistics: Literal["fresh", "cached"] = field(default="fresh", validator=one_of_its_choices)
    """``fresh``, as in the paper: a network, an augmentation and real images drawn at every iteration; ``cached``: a
    fixed number of networks and augmentations with the statistics of all real images under them, see
    `iidlib.features.cached`."""
    cached_pairs: int = field(default=50, validator=above(0))
    """Pairs of network and augmentation with ``statistics=cached``."""
    mean: float = field(default=1.0, validator=at_least(0))
    """Weight of mean matching, the base of every method; 0 leaves only the other terms."""
    cm: float = field(default=0.01, validator=at_least(0))
    """Weight of covariance matching."""
    cc: float = field(default=0.05, validator=at_least(0))
    """Weight of class centralization."""
    cc_scaling: Literal["released", "per_image", "relative"] = field(default="released", validator=one_of_its_choices)
    """``released``: the sum over images, as published; ``per_image``: that sum times 10/ipc, the same at IPC 10;
    ``relative``: the mean over images, with distances relative to those of real images under the same network and
    augmentation (with the exp form, choose ``cc_alpha`` near 1)."""
    cc_form: Literal["linear", "exp"] = field(default="linear", validator=one_of_its_choices)
    """Form of class centralization, see ``losses.class_centralization``."""
    cc_alpha: float = field(default=0.02, validator=at_least(0))
    """Scale of the exponent (exp form)."""
    cc_beta: float = field(default=0.0, validator=at_least(0))
    """Cost below which an image is not pulled to its centre (exp form)."""
    ce: float = field(default=0.5, validator=at_least(0))
    """Weight of the synthetic images' cross-entropy (IDM), multiplied by the matching network's accuracy in percent."""
    cc_real: int = field(default=64, validator=above(0))
    """Real images per class for the scatter that ``cc_scaling=relative`` measures, at most ``batch_real``."""
    source: Literal["auto", "random", "queue", "stages"] = field(default="auto", validator=one_of_its_choices)
    """Source of the matching networks: ``random`` weights (DM), the ``queue`` of networks in training (IDM), or the
    ``stages`` of the pool's training (iid-plus); ``auto`` is the method's default."""
    cm_blocks: int = field(default=1, validator=above(0))
    """Last blocks of a ConvNet whose output maps covariance matching compares; 1 is the published form."""
    mmd: float = field(default=0.0, validator=at_least(0))
    """Weight of the kernel distance between the features of real and synthetic images, which compares more than
    their means."""
    mmd_form: Literal["gaussian", "characteristic"] = field(default="gaussian", validator=one_of_its_choices)
    """``gaussian``: the kernel's sums over all pairs of images; ``characteristic``: the same distance, estimated with
    random frequencies of the characteristic function, see ``losses.characteristic_distance``."""
    mmd_frequencies: int = field(default=256, validator=above(0))
    """Frequencies drawn per iteration with ``mmd_form=characteristic``."""


@frozen(field_transformer=converted)
class SynConfig:
    """The synthetic images and their optimiser (``syn.*``)."""

    _prefix: ClassVar[str] = "syn."

    init: str = field(default="real", validator=known_start)
    """Initial images: random ``real`` images of the class, or normal ``noise``. With a factor above 1, ``real``
    downscales a different image for every tile, and ``crops`` cuts all tiles from one image at full size. ``centres``
    and ``easiest`` are real images chosen by a network of the pool, see `iidlib.features.choices`. ``set:DIGEST`` is
    the saved set that ``--init`` names."""
    factor: int = field(default=1, validator=above(0))
    """Mosaic factor: each image holds factor x factor tiles, which are enlarged before use, see `synthetic.expand`."""
    lr: float = field(default=1.0, validator=above(0))
    """Learning rate of SGD on the pixels."""
    momentum: float = field(default=0.5, validator=[at_least(0), below(1)])
    """Momentum of SGD on the pixels."""


@frozen(field_transformer=converted)
class PoolConfig:
    """The pool of pretrained networks for class centralization (``pool.*``).

    The official recipe, ``count=1000`` and ``epochs=40``, costs 6.7e15 operations per ResNet18 on CIFAR-10 (3.3e9 per
    image and step). A complete distillation with IID-DM at IPC 10 takes 1.0e16 (20,000 iterations of 5.0e11, as
    counted by ``iid bench``). The defaults train two networks for 20 epochs each, at two thirds of the cost of that
    distillation. The share is smaller for more classes, more images per class, or larger images, and with one image
    per class no pool is needed.
    """

    _prefix: ClassVar[str] = "pool."

    network: str = field(default="resnet18", converter=network_name)
    """Architecture of the pretrained networks."""
    width: int = field(default=128, validator=above(0))
    """Channels per layer if the network is a ConvNet."""
    count: int = field(default=2, validator=[above(0), at_most(10**6, "a number of networks")])
    """Number of networks to train; 1000 in the official recipe."""
    epochs: int = field(default=20, validator=above(0))
    """Training epochs of each network; 40 in the official recipe."""
    epochs_kept: tuple[int, ...] = field(default=(), converter=lambda kept: tuple(sorted({*kept})))
    """Epochs, ascending, after which a copy of each network joins the pool as a separate member, in addition to the
    one after the last epoch; 0 is the network before training, which only ``match.source=stages`` draws."""
    stored: Literal["fp16", "fp32"] = field(default="fp16", validator=one_of_its_choices)
    """Precision of the weights on disk. They are rounded to it before use; computation is in fp32."""
    lr: float = field(default=0.01, validator=above(0))
    """Constant learning rate of SGD with momentum 0.9 and weight decay 5e-4."""
    batch: int = field(default=256, validator=above(0))
    """Images per training step."""
    augmentation: str = "none"
    """DSA operations in training joined by ``_``, ``auto`` for the dataset's default, or ``none`` (the official
    recipe)."""
    seed: int = field(default=0, validator=at_least(0))
    """Random seed of the pool. Runs with different seeds share one pool, as they share the data."""
    path: str = ""
    """Path of a saved pool; empty for the cached pool, which is trained if it does not exist."""
    untrained: Literal["refuse", "warn"] = field(default="refuse", validator=one_of_its_choices)
    """Response to a network that is no better than chance on held-out images."""

    @epochs_kept.validator
    def _kept_in_training(self, attribute: "Attribute[Any]", kept: tuple[int, ...]) -> None:
        if kept and not (min(kept) >= 0 and max(kept) <= self.epochs):
            raise InputError(
                f"pool.epochs_kept must lie in 0 to pool.epochs (now {self.epochs}), got {', '.join(map(str, kept))}"
            )


@frozen(field_transformer=converted)
class StageConfig:
    """Matching networks from the stages of the pool's training (``stages.*``), see `iidlib.features.stages`.

    The stages are the epochs in ``pool.epochs_kept`` and the last epoch.
    """

    _prefix: ClassVar[str] = "stages."

    schedule: Literal["uniform", "early", "late"] = field(default="uniform", validator=one_of_its_choices)
    """Stages that an iteration draws from: all of them, or a set that grows by one stage at a time during the run,
    starting with the ``early`` or the ``late`` ones."""
    interpolate: Literal["off", "on"] = field(default="off", validator=one_of_its_choices)
    """Whether a network's weights are interpolated at a random point between two neighbouring stages."""


@frozen(field_transformer=converted)
class QueueConfig:
    """IDM's queue of networks in training (``queue.*``), see `iidlib.features.network_queue`."""

    _prefix: ClassVar[str] = "queue."

    size: int = field(default=100, validator=above(0))
    """Maximum number of networks; the oldest is dropped when a fresh one joins a full queue."""
    start: int = field(default=3, validator=above(0))
    """Networks in the queue before the first iteration."""
    every: int = field(default=30, validator=above(0))
    """Iterations between fresh networks; the first joins at once."""
    train: int = field(default=2, validator=above(0))
    """Networks trained per iteration, or all of them while there are fewer."""
    steps: int = field(default=10, validator=above(0))
    """Training steps of each of these networks."""
    batch: int = field(default=256, validator=above(0))
    """Real images per step, from all classes."""
    lr: float = field(default=0.01, validator=above(0))
    """Constant learning rate of SGD with momentum 0.9 and weight decay 5e-4."""
    meter_reset: Literal["interval", "evaluations"] = field(default="interval", validator=one_of_its_choices)
    """Time at which the accuracy meters are reset: every ``meter_interval`` iterations, or where IID's released script
    evaluates (before iterations 2000, 5000, 10000 and 20000)."""
    meter_interval: int = field(default=100, validator=above(0))
    """Iterations between resets with ``meter_reset=interval``."""


@frozen(field_transformer=converted)
class CheckpointConfig:
    """Intervals at which a run is saved (``checkpoint.*``)."""

    _prefix: ClassVar[str] = "checkpoint."

    every: int = field(default=1000, validator=above(0))
    """Iterations between checkpoints."""
    seconds: float = field(default=600.0, validator=at_least(0))
    """Maximum seconds between checkpoints; 0 for no limit."""
    queue: Literal["full", "half", "none"] = field(default="full", validator=one_of_its_choices)
    """How a checkpoint holds the networks of IDM's queue: in float32 (256 MB at the paper's sizes), in half precision,
    or not at all, so that they start again from their initial weights. Only ``full`` resumes exactly."""


@frozen(field_transformer=converted)
class ComputeConfig:
    """Use of the hardware (``compute.*``)."""

    _prefix: ClassVar[str] = "compute."

    precision: Literal["fp32", "tf32", "bf16"] = field(default="tf32", validator=one_of_its_choices)
    """Precision on CUDA: float32, convolutions in TF32, or the feature maps of a distillation in bfloat16 as well.
    Matrix products, and what is computed from features, stay in float32; so does everything on other devices."""
    compile: Literal["auto", "on", "off"] = field(default="auto", validator=one_of_its_choices)
    """Compiled kernels: if a compiler is found, always, or never."""
    chunk: int = field(default=0, validator=at_least(0))
    """Maximum number of images in one forward pass; 0 lets the device decide."""
    classes: int = field(default=0, validator=at_least(0))
    """Maximum number of classes in one backward pass of a distillation; 0 lets the device's memory decide. Changes only
    rounding."""
    graph: Literal["auto", "off"] = field(default="auto", validator=one_of_its_choices)
    """Whether steps are captured as CUDA graphs on a GPU: of a distillation if its shapes are fixed, and of networks of
    a pool or an evaluation that train together."""
    together: int = field(default=0, validator=at_least(0))
    """Networks of a pool or an evaluation trained together; 0 lets the device decide (by its total memory), 1 trains
    one after the other without CUDA graphs. Changes only rounding."""
    ensemble: Literal["auto", "at_once", "in_turn"] = field(default="auto", validator=one_of_its_choices)
    """How a step of networks that train together computes their gradients: with one call for all (``at_once``) or
    network by network (``in_turn``). ``auto`` is ``in_turn`` for networks with convolutions, see
    `iidlib.training.together.default_form`. Changes only rounding."""

    @property
    def compiled(self) -> bool:
        """Whether compiled kernels may be used."""
        return self.compile != "off"


@frozen(field_transformer=converted)
class RunConfig:
    """All settings of a distillation and of its evaluation."""

    _prefix: ClassVar[str] = ""

    method: str = "iid-dm"
    dataset: str = field(default="cifar10-mini", converter=dataset_name)
    ipc: int = field(default=10, validator=above(0))
    """Synthetic images per class."""
    scale: str = field(default="tour", validator=known_scale)
    """Preset that the settings started from; every reported number states its scale."""
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
