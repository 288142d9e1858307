"""CutMix: a rectangle of each image is taken from another image of the batch, and the loss is shared accordingly.

Source: Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features*, ICCV 2019
(arXiv 1905.04899), with one rectangle a batch whose area is uniform in [0, 1] before it is clipped at the border (a
Beta(1, 1) distribution), as in the evaluation of the IDC family. A draw has the same form whether a batch is mixed or
not, so that a recorded step can follow it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mix", "apply", "sample"]


@dataclass(frozen=True, eq=False)
class Mix:
    """What is drawn for a batch of B images.

    Attributes:
        partner: the image that each one gets its rectangle from, int64 [B], on the CPU.
        box: top, bottom, left, right of the rectangle in pixels, the ends not included, int64 [4], on the CPU; empty
            where the batch is not mixed.
        share: of the image's own pixels, in [0, 1]: the weight of its own label.
    """

    partner: Tensor
    box: Tensor
    share: float


def sample(batch: int, side: int, probability: float, generator: torch.Generator) -> Mix:
    """Draws partners and a rectangle.

    Args:
        batch: B images.
        side: of the square images, in pixels.
        probability: that the batch is mixed.
        generator: on the CPU.
    """
    coin, area, *centre = torch.rand(4, generator=generator).tolist()
    partner = torch.randperm(batch, generator=generator)
    if coin >= probability:
        return Mix(partner, torch.zeros(4, dtype=torch.int64), 1.0)
    half = int(side * area**0.5) // 2
    middle = [int(side * place) for place in centre]
    box = [max(0, min(side, edge)) for m in middle for edge in (m - half, m + half)]
    share = 1 - (box[1] - box[0]) * (box[3] - box[2]) / side**2
    return Mix(partner, torch.tensor(box), share)


def apply(images: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """Images with the rectangle of their partners.

    Nothing here waits for the device.

    Args:
        images: [B, K, H, H].
        partner: int64 [B], on the images' device.
        box: int64 [4], on the images' device.

    Returns:
        Of the same shape.
    """
    place = torch.arange(images.shape[-1], device=images.device)
    rows = (place >= box[0]) & (place < box[1])
    columns = (place >= box[2]) & (place < box[3])
    return torch.where(rows[:, None] & columns, images[partner], images)
