"""Labelled real images on a device, normalised where a batch is used, drawn class by class from a seed.

A set is kept as uint8 on the device: CIFAR-10 takes 184 MB that way and no time is spent moving images. Indices stay on
the CPU, where the draws are made.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from iidlib.data.source import Images
from iidlib.data.spec import DatasetSpec, channel_constants, standardize
from iidlib.errors import InputError

__all__ = ["Dataset", "RealSet", "Sample"]


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
        self._mean, self._std = channel_constants(spec, images.device, torch.float32)

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
            for part in tensor.split(4096):  # what lies on another device is fetched bit by bit
                digest.update(part.cpu().contiguous().view(-1).numpy().data)
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
        return standardize(images, self._mean, self._std)

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

    @classmethod
    def of(cls, spec: DatasetSpec, train: Images, test: Images, device: torch.device | str = "cpu") -> "Dataset":
        """From images uint8 [N, K, H, W] with labels int64 [N], put on a device."""
        return cls(spec.name, RealSet(*train, spec).to(device), RealSet(*test, spec).to(device), spec)
