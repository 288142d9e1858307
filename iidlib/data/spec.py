"""Specifications of datasets, available without reading their files, and normalisation of their pixels."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from iidlib.bars import counted

__all__ = ["SPECS", "DatasetSpec", "denormalize", "normalize"]


@dataclass(frozen=True)
class DatasetSpec:
    """Specification of a dataset, available without reading its files."""

    name: str
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    image_size: int
    """Pixels per side."""
    channels: int
    mean: tuple[float, ...]
    """Mean of each channel, of images in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, of images in [0, 1]."""
    augmentation: str
    """DSA operations that suit it, joined by ``_`` (no flip if a mirror image can be another class)."""
    ranges: str = field(default="", compare=False, repr=False)
    """Black and white values of its pictures with more than 8 bits, see `data.depth.Scale.text`; empty if none."""


AT_ONCE = 1 << 20
"""Maximum pixels per channel for which the mean is computed in one piece, in double precision."""

CACHED = 1 << 18
"""Values per piece above that limit; in double precision they fit into a processor's cache."""

ALL_OPERATIONS = "color_crop_cutout_flip_scale_rotate"


def _cifar10_spec(name: str) -> DatasetSpec:
    # the constants of the DC line of work (DC, DSA, DM, IDM, IID); the deviation is the mean of the deviations within
    # each image, and therefore smaller than that of all pixels (0.247, 0.243, 0.262)
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
    # CIFAR-100's own constants, as in DM's code but not in IDM's; class names come with the files
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
    # statistics of the 28 x 28 pixels, as in the DC line of work, although the images are padded to 32: digits and
    # clothes then have the same values as there, and the black border has that of their background
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
"""Specifications by name of the dataset; class names of the larger datasets come with their files."""


def channel_constants(spec: DatasetSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation as [K, 1, 1], to broadcast over [..., K, H, W]."""
    mean, std = torch.tensor([spec.mean, spec.std], dtype=dtype, device=device).view(2, -1, 1, 1)
    return mean, std


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Computes mean and standard deviation of each channel, of images in [0, 1], in the memory of a few images.

    Args:
        images: uint8 [N, K, H, W].

    Returns:
        K means and K standard deviations (of all pixels, without Bessel's correction).
    """
    if images[:, :1].numel() <= AT_ONCE:
        # kept as it always was: rounding to four digits later can depend on the last bit
        whole = images.transpose(0, 1).flatten(1).double() / 255
        return whole.mean(1).tolist(), whole.std(1, correction=0).tolist()
    pixels = images[:, 0].numel()
    first, second = np.zeros((2, images.shape[1]))
    parts = images.split(max(1, CACHED // images[0].numel()))
    for part in counted(parts, "mean and deviation", "part"):
        values = part.cpu().numpy().astype(np.float64)  # NumPy, since torch's threads would synchronize at each part
        first += values.sum((0, 2, 3))  # exact: whole numbers below 2**53
        second += np.square(values, out=values).sum((0, 2, 3))
    totals = [(int(one), int(two)) for one, two in zip(first, second, strict=True)]
    mean = [one / (255 * pixels) for one, _ in totals]
    std = [math.sqrt((pixels * two - one**2) / (255 * pixels) ** 2) for one, two in totals]
    return mean, std


def denormalize(images: Tensor, spec: DatasetSpec) -> Tensor:
    """Returns images for display: ``x * std + mean``, clipped.

    Args:
        images: normalised, floating point [..., K, H, W].
        spec: specification with the mean and standard deviation.

    Returns:
        Images of the same shape and type, clipped to [0, 1], which learned images can exceed.
    """
    mean, std = channel_constants(spec, images.device, images.dtype)
    return (images * std + mean).clamp(0, 1)


def normalize(images: Tensor, spec: DatasetSpec) -> Tensor:
    """Normalises images for the networks, ``(x / 255 - mean) / std``: uint8 [..., K, H, W] to float32 of that shape."""
    return standardize(images, *channel_constants(spec, images.device, torch.float32))


def standardize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return images.float().div_(255).sub_(mean).div_(std)
