"""What is known of a dataset without reading it, and how its pixels are normalised."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from iidlib.bars import counted

__all__ = ["SPECS", "DatasetSpec", "denormalize", "normalize"]


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
    ranges: str = field(default="", compare=False, repr=False)
    """What was black and white in its pictures of more than 8 bits, see `data.depth.Scale.text`; empty without such."""


AT_ONCE = 1 << 20
"""Pixels of a channel whose mean is taken in one piece, in double precision."""

CACHED = 1 << 18
"""Values of a piece of more than that; in double precision they fit into a processor's cache."""

ALL_OPERATIONS = "color_crop_cutout_flip_scale_rotate"


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
        augmentation=ALL_OPERATIONS,
    )


SPECS = {name: _cifar10_spec(name) for name in ("cifar10-mini", "cifar10")} | {
    # CIFAR-100's own constants, which DM's code has, IDM's not; class names come with the files
    "cifar100": DatasetSpec("cifar100", (), 32, 3, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), ALL_OPERATIONS),
    "svhn": DatasetSpec(
        "svhn",
        tuple("0123456789"),
        32,
        3,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        "color_crop_cutout_scale_rotate",  # a mirrored digit is another sign
    ),
    # of the 28 x 28 pixels, as in the DC line of work, although the images are padded to 32: the digits and clothes
    # then have the values that they have there, and the black border that of their background
    "mnist": DatasetSpec("mnist", tuple("0123456789"), 32, 1, (0.1307,), (0.3081,), "color_crop_cutout_scale_rotate"),
    "fashionmnist": DatasetSpec(
        "fashionmnist",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        32,
        1,
        (0.2861,),
        (0.3530,),
        ALL_OPERATIONS,
    ),
    "tinyimagenet": DatasetSpec(
        "tinyimagenet", (), 64, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ALL_OPERATIONS
    ),
}
"""What is known of a data set without reading it; class names of the larger sets come with their files."""


def channel_constants(spec: DatasetSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and deviation as [K, 1, 1], to broadcast over [..., K, H, W]."""
    mean, std = torch.tensor([spec.mean, spec.std], dtype=dtype, device=device).view(2, -1, 1, 1)
    return mean, std


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of images in [0, 1], in the memory of few images.

    Args:
        images: uint8 [N, K, H, W].

    Returns:
        K means and K deviations (of all pixels, not corrected).
    """
    if images[:, :1].numel() <= AT_ONCE:
        # as it was always computed: what is rounded to four digits later can hinge on the last bit
        whole = images.transpose(0, 1).flatten(1).double() / 255
        return whole.mean(1).tolist(), whole.std(1, correction=0).tolist()
    pixels = images[:, 0].numel()
    first, second = np.zeros((2, images.shape[1]))
    parts = images.split(max(1, CACHED // images[0].numel()))
    for part in counted(parts, "mean and deviation", "part"):
        values = part.cpu().numpy().astype(np.float64)  # torch's threads would wait for each other at each part
        first += values.sum((0, 2, 3))  # whole numbers below 2**53, and so exact
        second += np.square(values, out=values).sum((0, 2, 3))
    totals = [(int(one), int(two)) for one, two in zip(first, second, strict=True)]
    mean = [one / (255 * pixels) for one, _ in totals]
    std = [math.sqrt((pixels * two - one**2) / (255 * pixels) ** 2) for one, two in totals]
    return mean, std


def denormalize(images: Tensor, spec: DatasetSpec) -> Tensor:
    """Images as they look: ``x * std + mean``, clipped.

    Args:
        images: normalised, floating point [..., K, H, W].
        spec: where the mean and deviation come from.

    Returns:
        Of the same shape and type, in [0, 1]. Learned images leave that range and are clipped to it.
    """
    mean, std = channel_constants(spec, images.device, images.dtype)
    return (images * std + mean).clamp(0, 1)


def normalize(images: Tensor, spec: DatasetSpec) -> Tensor:
    """``(x / 255 - mean) / std``, as every network here sees images: uint8 [..., K, H, W] to float32 of that shape."""
    return standardize(images, *channel_constants(spec, images.device, torch.float32))


def standardize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return images.float().div_(255).sub_(mean).div_(std)
