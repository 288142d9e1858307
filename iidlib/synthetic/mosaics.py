"""Mosaics: f x f smaller images stored as one, and what a network sees of them.

With a partition factor f (IDM, Zhao et al., CVPR 2023) a stored image is a mosaic of f x f smaller ones, and what a
network sees are these, each enlarged to full size: as many numbers stored, f^2 times as many images to learn from.
"""

import torch.nn.functional as F
from torch import Tensor

from iidlib.errors import InputError

__all__ = ["expand", "mosaics"]


def expand(images: Tensor, factor: int) -> Tensor:
    """Cuts each image into factor x factor tiles and enlarges each tile to the image's size; differentiable.

    Bilinear, ``align_corners=False``, as in the released code of IDM. There the tiles of one place follow those of
    another; here the tiles of an image stay together, row by row, so that images sorted by class stay sorted.
    Explained in chapter 06.

    Args:
        images: floating point [B, K, H, W].
        factor: tiles along a side; 1 gives the images as they are.

    Returns:
        [B * factor^2, K, H, W].

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
    return F.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)  # [B*f*f, K, H, W]


def mosaics(images: Tensor, factor: int) -> Tensor:
    """Each factor^2 images in a row, downscaled by averaging, as the tiles of one image: the reverse of `expand`.

    With factor 2 averaging is what the released code's bilinear downscaling computes.
    """
    tiles = F.avg_pool2d(images, factor).unflatten(0, (-1, factor, factor))  # [B, f, f, K, h, w]
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [B, K, H, W]
