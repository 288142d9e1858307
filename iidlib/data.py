"""Real images on a device: labelled, normalised, drawn class by class from a seed; and the data sets by name.

A set is kept as uint8 on the device and normalised where a batch is used: CIFAR-10 takes 184 MB that way and no time is
spent moving images. Indices stay on the CPU, where the draws are made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from iidlib.folders import read_folder
from iidlib.inputs import InputError, suggest
from iidlib.sources import SHAPES, SOURCES, FileCheck, Images, PathLike, data_dir, draw_shapes

__all__ = [
    "CheckReport",
    "Dataset",
    "DatasetRow",
    "DatasetSpec",
    "RealSet",
    "Sample",
    "check",
    "data_dir",
    "datasets",
    "denormalize",
    "load_dataset",
    "normalize",
    "shapes",
]


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set without reading it."""

    name: str
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    image_size: int
    """Pixels a side."""
    channels: int
    mean: tuple[float, ...]
    """Mean of each channel, of images in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, of images in [0, 1]."""
    augmentation: str
    """The DSA operations that suit it, joined by ``_`` (no flip where a mirror image is another class)."""


_ALL_OPERATIONS = "color_crop_cutout_flip_scale_rotate"


def _cifar10_spec(name: str) -> DatasetSpec:
    # the constants of the DC line of work (DC, DSA, DM, IDM, IID); the deviation is the mean over images of the
    # deviation within each, which is why it is smaller than that of all pixels (0.247, 0.243, 0.262)
    return DatasetSpec(
        name=name,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        image_size=32,
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        augmentation=_ALL_OPERATIONS,
    )


_SPECS = {name: _cifar10_spec(name) for name in ("cifar10-mini", "cifar10")} | {
    # CIFAR-100's own constants, which DM's code has, IDM's not; class names come with the files
    "cifar100": DatasetSpec("cifar100", (), 32, 3, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), _ALL_OPERATIONS),
    "svhn": DatasetSpec(
        "svhn",
        tuple("0123456789"),
        32,
        3,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        "color_crop_cutout_scale_rotate",  # a mirrored digit is another sign
    ),
    "tinyimagenet": DatasetSpec(
        "tinyimagenet", (), 64, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _ALL_OPERATIONS
    ),
}
"""What is known of a data set without reading it; class names of the larger sets come with their files."""


def _channel_constants(spec: DatasetSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and deviation as [K, 1, 1], to broadcast over [..., K, H, W]."""
    mean, std = torch.tensor([spec.mean, spec.std], dtype=dtype, device=device).view(2, -1, 1, 1)
    return mean, std


def denormalize(images: Tensor, spec: DatasetSpec) -> Tensor:
    """Images as they look: ``x * std + mean``, clipped.

    Args:
        images: normalised, floating point [..., K, H, W].
        spec: where the mean and deviation come from.

    Returns:
        Of the same shape and type, in [0, 1]. Learned images leave that range and are clipped to it.
    """
    mean, std = _channel_constants(spec, images.device, images.dtype)
    return (images * std + mean).clamp(0, 1)


def normalize(images: Tensor, spec: DatasetSpec) -> Tensor:
    """``(x / 255 - mean) / std``, as every network here sees images: uint8 [..., K, H, W] to float32 of that shape."""
    return _scaled(images, *_channel_constants(spec, images.device, torch.float32))


def _scaled(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return images.float().div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Sample:
    """Images drawn from each class, sorted by class; all on the CPU, B of them in C classes."""

    index: Tensor
    """Where they are in the set, int64 [B]."""
    group: Tensor
    """The class of each, int64 [B]."""
    counts: Tensor
    """How many of each class, int64 [C]."""


class RealSet:
    """Labelled real images on one device.

    Attributes:
        images: uint8 [N, K, H, W], on the device.
        labels: int64 [N], on the device.
        spec: the data set that they come from.
        counts: images of each class, int64 [C], on the CPU.
        class_index: indices of each class's images in ascending order, int64 [C, Nmax], on the CPU; rows of smaller
            classes are filled up with -1.
    """

    def __init__(self, images: Tensor, labels: Tensor, spec: DatasetSpec) -> None:
        """Takes the tensors as they are, without a copy.

        Raises:
            ValueError: when shapes or types differ from what is said above, or a label is not a class of `spec`.
        """
        shape = (spec.channels, spec.image_size, spec.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            raise ValueError(f"images of {spec.name} must be uint8 [N, {shape}], got {_describe(images)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 [{len(images)}], one an image, got {_describe(labels)}")
        self.images, self.labels, self.spec = images, labels, spec
        order = labels.cpu()
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < self.num_classes:
            raise ValueError(f"labels must lie in 0 to {self.num_classes - 1}, got {order.min()} to {order.max()}")
        self.counts = torch.bincount(order, minlength=self.num_classes)
        by_class = list(torch.split(torch.argsort(order, stable=True), self.counts.tolist()))
        self.class_index = torch.nn.utils.rnn.pad_sequence(by_class, batch_first=True, padding_value=-1)
        self._mean, self._std = _channel_constants(spec, images.device, torch.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = self.spec.image_size
        return f"RealSet({self.spec.name}: {len(self)} images {size}x{size}, {self.num_classes} classes, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    @property
    def num_classes(self) -> int:
        """Classes of the data set, those without images in this set included."""
        return len(self.spec.classes)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of shape, images and labels; equal for equal sets on any device."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> "RealSet":
        """The set on another device."""
        return RealSet(self.images.to(device), self.labels.to(device), self.spec)

    def normalize(self, images: Tensor) -> Tensor:
        """``(x / 255 - mean) / std``, as every network here sees images.

        Args:
            images: uint8 [..., K, H, W] on the set's device.

        Returns:
            float32 of the same shape.

        Raises:
            ValueError: for another type; images in [0, 1] would pass unnoticed otherwise.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"normalize takes uint8 images (0 to 255), got {_describe(images)}")
        return _scaled(images, self._mean, self._std)

    def images_of(self, index: Tensor) -> Tensor:
        """Images by index int64 [B] (on any device), normalised: float32 [B, K, H, W]."""
        return self.normalize(self.images[index.to(self.device)])

    def of_class(self, label: int) -> Tensor:
        """Indices of a class's images in ascending order, int64 [N_c], on the CPU."""
        return self.class_index[label, : self.counts[label]]

    def sample(self, per_class: int, generator: torch.Generator) -> Sample:
        """Draws images of every class without replacement.

        Args:
            per_class: images a class; a smaller class gives all it has, an empty one none.
            generator: a CPU generator, so that a seed draws the same images whatever the device.

        Raises:
            InputError: when `per_class` is below 1.
        """
        if per_class < 1:
            raise InputError(f"images drawn a class must be at least 1, got {per_class}")
        drawn = [self.of_class(c)[order[:per_class]] for c, order in enumerate(self._orders(generator))]
        counts = self.counts.clamp(max=per_class)
        return Sample(torch.cat(drawn), torch.arange(self.num_classes).repeat_interleave(counts), counts)

    def subset(self, index: Tensor) -> "RealSet":
        """The images at `index`, int64 [B], in that order; classes keep their labels."""
        index = index.to(self.device)
        return RealSet(self.images[index], self.labels[index], self.spec)

    def split(self, fraction: float, generator: torch.Generator) -> tuple["RealSet", "RealSet"]:
        """Two disjoint sets that together are this one, each class divided alike; the images keep their order.

        Args:
            fraction: the share of every class that the first set gets, rounded to whole images. A class of two or more
                images is in both sets; a single image goes to the first.
            generator: a CPU generator.

        Raises:
            InputError: when `fraction` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise InputError(f"the fraction of a split must lie between 0 and 1, got {fraction}")
        first = torch.zeros(len(self), dtype=torch.bool)
        for c, order in enumerate(self._orders(generator)):
            share = max(1, min(round(fraction * len(order)), len(order) - 1))
            first[self.of_class(c)[order[:share]]] = True
        return self.subset(first.nonzero()[:, 0]), self.subset((~first).nonzero()[:, 0])

    def _orders(self, generator: torch.Generator) -> list[Tensor]:
        """A random order of each class's images."""
        return [torch.randperm(count, generator=generator) for count in self.counts.tolist()]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@dataclass(frozen=True)
class Dataset:
    """A data set: what it is trained or distilled from, and what it is judged on."""

    name: str
    train: RealSet
    test: RealSet
    spec: DatasetSpec


def shapes(num_classes: int = 4, per_class: int | Sequence[int] = 40, image_size: int = 32, seed: int = 0) -> Dataset:
    """Coloured shapes drawn from a seed, for tests: learned in seconds, with classes of any sizes.

    Args:
        num_classes: how many classes.
        per_class: training images a class, or one number for each class. The test set has 20 a class.
        image_size: pixels a side.
        seed: another seed draws other images of the same classes.

    Raises:
        InputError: when the sizes given are not one for each class, or a number is below 1.
    """
    counts = [per_class] * num_classes if isinstance(per_class, int) else list(per_class)
    if len(counts) != num_classes or min([num_classes, image_size, *counts]) < 1:
        raise InputError(
            f"shapes needs a size of 1 or more for each class, got num_classes={num_classes}, per_class={per_class}, "
            f"image_size={image_size}"
        )
    kinds = list(SHAPES)
    spec = DatasetSpec(
        name="shapes",
        classes=tuple(kinds[c % len(kinds)] + (f"-{c // len(kinds)}" * (c >= len(kinds))) for c in range(num_classes)),
        image_size=image_size,
        channels=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        augmentation=_ALL_OPERATIONS,
    )
    generator = torch.Generator().manual_seed(seed)
    train = draw_shapes(counts, image_size, generator)
    return _dataset(spec, train, draw_shapes([20] * num_classes, image_size, generator), "cpu")


def _dataset(spec: DatasetSpec, train: Images, test: Images, device: torch.device | str) -> Dataset:
    return Dataset(spec.name, RealSet(*train, spec).to(device), RealSet(*test, spec).to(device), spec)


_VALIDATION = "validation:"


def _held_out(dataset: Dataset) -> Dataset:
    """Nine tenths of the training images, and the last tenth in place of the test images, which stay unseen."""
    train, held_out = dataset.train.split(0.9, torch.Generator().manual_seed(0))
    spec = replace(dataset.spec, name=_VALIDATION + dataset.name)
    train, held_out = (RealSet(part.images, part.labels, spec) for part in (train, held_out))
    return Dataset(spec.name, train, held_out, spec)


def load_dataset(
    name: str = "cifar10-mini",
    *,
    data_root: PathLike | None = None,
    device: torch.device | str = "cpu",
    download: bool = False,
) -> Dataset:
    """A data set by name, its files verified.

    Args:
        name: ``cifar10-mini`` (comes with the library), ``cifar10``, ``cifar100``, ``svhn`` (torchvision's files),
            ``tinyimagenet`` (the original folder), ``shapes`` (drawn), or ``folder:PATH`` (see `iidlib.folders`); or
            one of them after ``validation:``, which holds out a tenth of each class's training images, always the same
            ones, to be judged on in place of the test images: settings are chosen on it.
        data_root: the folder that holds the data set's folder; the one in ``IID_DATA`` when not given. What comes with
            the library is found without either.
        device: where the images are put.
        download: fetch what is missing into the data root, with a progress bar.

    Raises:
        InputError: for an unknown name, and for missing or damaged files: which, where looked, how to get them.
    """
    if name.startswith(_VALIDATION):
        whole = load_dataset(name.removeprefix(_VALIDATION), data_root=data_root, device=device, download=download)
        return _held_out(whole)
    if name.startswith("folder:"):
        return _of_folder(name, device)
    _known(name)
    if name == "shapes":
        drawn = shapes()
        return Dataset(name, drawn.train.to(device), drawn.test.to(device), drawn.spec)
    source, spec = SOURCES[name], _SPECS[name]
    train, test = source.load(data_root, download=download)
    if source.classes:
        spec = replace(spec, classes=source.classes(source.locate(data_root)))
    return _dataset(spec, train, test, device)


def _of_folder(name: str, device: torch.device | str) -> Dataset:
    """A folder's images, with the mean and deviation of its own training pixels."""
    found = read_folder(name)
    pixels = found.train[0].transpose(0, 1).flatten(1).double() / 255
    spec = DatasetSpec(
        name=name,
        classes=found.classes,
        image_size=found.train[0].shape[-1],
        channels=3,
        mean=tuple(round(float(value), 4) for value in pixels.mean(1)),
        std=tuple(round(max(float(value), 1 / 255), 4) for value in pixels.std(1, correction=0)),
        augmentation=_ALL_OPERATIONS,
    )
    return _dataset(spec, found.train, found.test, device)


def _known(name: str) -> None:
    names = [*SOURCES, "shapes"]
    if name not in names:
        raise InputError(f"unknown data set {name!r}{suggest(name, names)}")


@dataclass(frozen=True)
class DatasetRow:
    """A line of the list of data sets."""

    name: str
    found: str | None
    """Where it is, or None."""
    train_images: int
    test_images: int
    get: str
    """How to get it."""


def datasets(data_root: PathLike | None = None) -> list[DatasetRow]:
    """Every data set that `load_dataset` knows, and where it was found; files are not read."""
    rows = []
    for source in SOURCES.values():
        folder = source.find(data_root)
        get = "comes with iidlib" if source.embedded else source.get
        rows.append(DatasetRow(source.name, str(folder) if folder else None, *source.images, get))
    drawn = shapes()
    return [*rows, DatasetRow("shapes", "drawn when asked for", len(drawn.train), len(drawn.test), "comes with iidlib")]


@dataclass(frozen=True)
class CheckReport:
    """What a check of a data set's files found."""

    name: str
    folder: Path | None
    """Where they are; None for a data set without files."""
    files: tuple[FileCheck, ...]
    get: str
    """How to get what is missing or damaged."""
    problems: tuple[str, ...] = ()
    """What is missing or too much, in words, where there are no checksums."""

    @property
    def ok(self) -> bool:
        """Whether every file is there and whole."""
        return not self.problems and all(file.state == "ok" for file in self.files)


def check(name: str, data_root: PathLike | None = None) -> CheckReport:
    """Compares every file of a data set with its checksum.

    Raises:
        InputError: for an unknown name, or when the data set's folder is nowhere.
    """
    _known(name)
    if name == "shapes":
        return CheckReport(name, None, (), "comes with iidlib")
    source = SOURCES[name]
    folder = source.locate(data_root)
    told = source.problems(folder) if source.problems else []
    return CheckReport(name, folder, tuple(source.check(folder)), source.get, tuple(told))
