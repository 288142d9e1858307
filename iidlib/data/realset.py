"""Labelled real images on a device, normalised batch by batch and sampled class by class from a seed.

A set is stored as uint8 on the device: CIFAR-10 then takes 184 MB, and no time is spent moving images. Indices stay on
the CPU, where samples are drawn.
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
    """Indices of B images drawn from C classes, sorted by class; all tensors are on the CPU."""

    index: Tensor
    """Indices into the set, int64 [B]."""
    group: Tensor
    """Class of each image, int64 [B]."""
    counts: Tensor
    """Images of each class, int64 [C]."""


class RealSet:
    """Labelled real images on one device.

    Attributes:
        images: uint8 [N, K, H, W], on the device.
        labels: int64 [N], on the device.
        spec: specification of their dataset.
        counts: images of each class, int64 [C], on the CPU.
        class_index: indices of each class's images in ascending order, int64 [C, Nmax], on the CPU; rows of smaller
            classes are padded with -1.
    """

    def __init__(self, images: Tensor, labels: Tensor, spec: DatasetSpec) -> None:
        """Uses the tensors without copying them.

        Raises:
            ValueError: if shapes or types differ from those of the attributes, or a label is not a class of `spec`.
        """
        shape = (spec.channels, spec.image_size, spec.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            raise ValueError(f"images of {spec.name} must be uint8 [N, {shape}], got {_describe(images)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 [{len(images)}], one per image, got {_describe(labels)}")
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
        """Device of the images."""
        return self.images.device

    @property
    def num_classes(self) -> int:
        """Number of classes of the dataset, including those without images in this set."""
        return len(self.spec.classes)

    @cached_property
    def fingerprint(self) -> str:
        """First sixteen hex digits of the SHA-256 of shape, images and labels; equal for equal sets on any device."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            for part in tensor.split(4096):  # copied from the device in pieces
                digest.update(part.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> "RealSet":
        """Returns the set on another device."""
        return RealSet(self.images.to(device), self.labels.to(device), self.spec)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalises images for the networks: ``(x / 255 - mean) / std``.

        Args:
            images: uint8 [..., K, H, W] on the set's device.

        Returns:
            float32 of the same shape.

        Raises:
            ValueError: for another type, because images in [0, 1] would go unnoticed otherwise.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"normalize takes uint8 images (0 to 255), got {_describe(images)}")
        return standardize(images, self._mean, self._std)

    def images_of(self, index: Tensor) -> Tensor:
        """Returns the normalised images at `index`, int64 [B] on any device, as float32 [B, K, H, W]."""
        return self.normalize(self.images[index.to(self.device)])

    def of_class(self, label: int) -> Tensor:
        """Returns the indices of a class's images in ascending order, int64 [N_c], on the CPU."""
        return self.class_index[label, : self.counts[label]]

    def sample(self, per_class: int, generator: torch.Generator) -> Sample:
        """Draws images of every class without replacement.

        Args:
            per_class: images per class; smaller classes give all their images.
            generator: a CPU generator, so that a seed draws the same images on every device.

        Raises:
            InputError: if `per_class` is below 1.
        """
        if per_class < 1:
            raise InputError(f"images drawn per class must be at least 1, got {per_class}")
        drawn = [self.of_class(c)[order[:per_class]] for c, order in enumerate(self._orders(generator))]
        counts = self.counts.clamp(max=per_class)
        return Sample(torch.cat(drawn), torch.arange(self.num_classes).repeat_interleave(counts), counts)

    def subset(self, index: Tensor) -> "RealSet":
        """Returns the images at `index`, int64 [B], in that order; classes keep their labels."""
        index = index.to(self.device)
        return RealSet(self.images[index], self.labels[index], self.spec)

    def split(self, fraction: float, generator: torch.Generator) -> tuple["RealSet", "RealSet"]:
        """Splits every class into two parts by the same fraction; the images keep their order.

        Args:
            fraction: share of every class in the first set, rounded to whole images. A class of two or more images is
                in both sets; a single image goes to the first.
            generator: a CPU generator.

        Returns:
            Two disjoint sets that together hold all images.

        Raises:
            InputError: if `fraction` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise InputError(f"the fraction of a split must lie between 0 and 1, got {fraction}")
        first = torch.zeros(len(self), dtype=torch.bool)
        for c, order in enumerate(self._orders(generator)):
            share = max(1, min(round(fraction * len(order)), len(order) - 1))
            first[self.of_class(c)[order[:share]]] = True
        return self.subset(first.nonzero()[:, 0]), self.subset((~first).nonzero()[:, 0])

    def _orders(self, generator: torch.Generator) -> list[Tensor]:
        """Draws a random order of each class's images."""
        return [torch.randperm(count, generator=generator) for count in self.counts.tolist()]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@dataclass(frozen=True)
class Dataset:
    """A dataset: images for training and distillation, and images for evaluation."""

    name: str
    train: RealSet
    test: RealSet
    spec: DatasetSpec

    @classmethod
    def of(cls, spec: DatasetSpec, train: Images, test: Images, device: torch.device | str = "cpu") -> "Dataset":
        """Builds a dataset from images uint8 [N, K, H, W] with labels int64 [N], moved to a device."""
        return cls(spec.name, RealSet(*train, spec).to(device), RealSet(*test, spec).to(device), spec)
