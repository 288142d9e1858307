"""CutMix: a rectangle of each image is replaced by that of another image of the batch; the loss is split accordingly.

Source: Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features*, ICCV 2019
(arXiv 1905.04899), with one rectangle per batch whose area is uniform in [0, 1] (a Beta(1, 1) distribution) before it
is clipped at the border, as in the evaluation of the IDC family. A draw has the same shapes whether a batch is mixed or
not, so that a recorded step can replay it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mix", "apply", "sample"]


@dataclass(frozen=True, eq=False)
class Mix:
    """Random draw for a batch of B images.

    Attributes:
        partner: index of the image that each rectangle comes from, int64 [B], on the CPU.
        box: top, bottom, left, right of the rectangle in pixels, ends exclusive, int64 [4], on the CPU; all zero if the
            batch is not mixed.
        share: share of an image's own pixels, in [0, 1]: the weight of its own label.
    """

    partner: Tensor
    box: Tensor
    share: float


def sample(batch: int, side: int, probability: float, generator: torch.Generator) -> Mix:
    """Draws partners and a rectangle.

    Args:
        batch: number of images, B.
        side: side of the square images, in pixels.
        probability: probability that the batch is mixed.
        generator: random source, on the CPU.
    """
    coin, area, *centre = torch.rand(4, generator=generator).tolist()
    partner = torch.randperm(batch, generator=generator)
    if coin >= probability:
        return Mix(partner, torch.zeros(4, dtype=torch.int64), 1.0)
    half = int(side * area**0.5) // 2
    middle = [int(side * coordinate) for coordinate in centre]
    box = [max(0, min(side, edge)) for m in middle for edge in (m - half, m + half)]
    share = 1 - (box[1] - box[0]) * (box[3] - box[2]) / side**2
    return Mix(partner, torch.tensor(box), share)


def apply(images: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """Replaces each image's rectangle by its partner's; does not wait for the device.

    Args:
        images: [B, K, H, H].
        partner: int64 [B], on the images' device.
        box: int64 [4], on the images' device.

    Returns:
        The mixed images, [B, K, H, H].
    """
    position = torch.arange(images.shape[-1], device=images.device)
    rows = (position >= box[0]) & (position < box[1])
    columns = (position >= box[2]) & (position < box[3])
    return torch.where(rows[:, None] & columns, images[partner], images)
