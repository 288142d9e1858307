"""Mosaics: f x f smaller images stored as one, and their expansion to full size.

With a partition factor f (IDM, Zhao et al., CVPR 2023) a stored image is a mosaic of f x f smaller ones. A network sees
these, each enlarged to full size: the same number of stored values, f^2 times as many training images.
"""

import torch.nn.functional as F
from torch import Tensor

from iidlib.errors import InputError
from iidlib.resampling import enlarge

__all__ = ["expand", "mosaics"]


def expand(images: Tensor, factor: int) -> Tensor:
    """Cuts each image into factor x factor tiles and resizes each tile to the image's size; differentiable.

    Bilinear, ``align_corners=False``, as in IDM's released code. That code orders the tiles by position; here the tiles
    of an image stay together, row by row, so that images sorted by class stay sorted. Explained in chapter 06.

    Args:
        images: floating point [B, K, H, W].
        factor: number of tiles along a side; 1 returns the images unchanged.

    Returns:
        The tiles at full size, [B * factor^2, K, H, W].

    Raises:
        InputError: if the factor does not divide the image's sides.
    """
    if factor == 1:
        return images
    height, width = images.shape[2:]
    if factor < 1 or height % factor or width % factor:
        raise InputError(
            f"syn.factor must divide the side of the images, {height}, into whole tiles, got {factor}; "
            f"it can be {', '.join(str(f) for f in range(1, height + 1) if height % f == 0)}"
        )
    rows = images.unflatten(2, (factor, height // factor)).unflatten(4, (factor, width // factor))  # [B, K, f, h, f, w]
    tiles = rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # [B*f*f, K, h, w]
    return enlarge(tiles, factor)  # [B*f*f, K, H, W]


def mosaics(images: Tensor, factor: int) -> Tensor:
    """Combines every factor^2 consecutive images, downscaled by averaging, into one: the reverse of `expand`.

    With factor 2, averaging equals the released code's bilinear downscaling.
    """
    tiles = F.avg_pool2d(images, factor).unflatten(0, (-1, factor, factor))  # [B, f, f, K, h, w]
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [B, K, H, W]
