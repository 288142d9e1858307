"""Detection of duplicate pictures: identical pixels, or nearly identical ones, as after saving a picture as a JPEG.

Two pictures count as nearly identical if they pass four tests, each done only after the previous one succeeded:

1. as grey pictures of 8 x 8 pixels they have a correlation of at least 0.98 (done for all pairs);
2. as colour pictures of 4 x 4 pixels they differ by at most 12 of 255, as a root mean square;
3. as grey pictures of 16 x 16 pixels they have a correlation of at least 0.985;
4. the differences of their neighbouring pixels, the edges, have a correlation of at least 0.94 in both directions.

This finds a picture in other sizes, formats and qualities, and with slight changes of brightness, but not mirrored,
rotated or cropped. The edges distinguish pictures that share only an outline, such as two X-ray pictures. Pictures
without contrast have no pattern to compare, and are found only if their pixels are identical.
"""

import hashlib

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

__all__ = ["identical", "nearly_identical"]

COLOUR, COARSE, FINE = 4, 8, 16
"""Pixels per side of the pictures that are compared."""

ALIKE_COARSE, ALIKE_FINE, ALIKE_EDGES = 0.98, 0.985, 0.94
"""Minimum correlations, chosen for the cases of ``tests/test_inspection.py``: pictures that were saved again are found,
and none of 5,000 distinct pictures of CIFAR-10."""

OTHER_COLOUR = 12.0
"""Maximum difference in colour, out of 255."""

FLAT = 2.0
"""Standard deviation, out of 255, up to which the coarse picture counts as without contrast."""

ROWS = 1024
"""Number of pictures compared with all others at a time."""

GREY = (0.299, 0.587, 0.114)


def identical(images: Tensor) -> list[list[int]]:
    """Returns groups of two or more pictures with identical pixels, in ascending order.

    Args:
        images: uint8 [N, 3, S, S].
    """
    groups: dict[bytes, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(hashlib.sha256(image.numpy().tobytes()).digest(), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def nearly_identical(images: Tensor) -> list[tuple[int, int]]:
    """Returns pairs of nearly identical pictures, by the tests above, in ascending order.

    Each picture is paired only with the first that it resembles, so that thousands of frames of one film do not become
    millions of pairs. Of pictures with identical pixels only the first counts.

    Args:
        images: uint8 [N, 3, S, S]; all pairs of them are compared.
    """
    again = {index for group in identical(images) for index in group[1:]}
    indices = torch.tensor([index for index in range(len(images)) if index not in again], dtype=torch.int64)
    if len(indices) < 2:
        return []
    parts = indices.split(ROWS)
    coarse = torch.cat([_grey(images[part], COARSE).flatten(1) for part in parts])  # [U, 64]
    coarse = coarse - coarse.mean(1, keepdim=True)
    contrast = coarse.std(1, correction=0) > FLAT
    indices, coarse = indices[contrast], normalize(coarse[contrast])
    found: list[tuple[int, int]] = []
    paired = torch.zeros(len(indices), dtype=torch.bool)
    for start in range(0, len(indices), ROWS):
        alike = coarse[start : start + ROWS] @ coarse[start:].T  # [ROWS, U - start]
        alike.fill_diagonal_(-1)  # excludes each picture's correlation with itself
        for row in (alike.amax(1) >= ALIKE_COARSE).nonzero()[:, 0].tolist():  # usually few
            later = start + row + 1
            near = later + ((alike[row, row + 1 :] >= ALIKE_COARSE) & ~paired[later:]).nonzero()[:, 0]
            for others in near.split(ROWS):
                same = others[_confirmed(images[indices[start + row]][None], images[indices[others]])]
                paired[same] = True
                found += [(int(indices[start + row]), other) for other in indices[same].tolist()]
    return found


def _confirmed(one: Tensor, two: Tensor) -> Tensor:
    """Returns whether pictures with a similar coarse picture also agree in colour and detail, bool [B].

    Args:
        one: uint8 [1, 3, S, S].
        two: uint8 [B, 3, S, S].
    """
    colours = _reduced(one, COLOUR) - _reduced(two, COLOUR)
    same = colours.square().mean((1, 2, 3)).sqrt() <= OTHER_COLOUR
    first, second = (_grey(images, FINE) for images in (one, two))
    means = (first.mean((1, 2), keepdim=True), second.mean((1, 2), keepdim=True))
    same &= _correlation(first - means[0], second - means[1]) >= ALIKE_FINE
    for axis in (1, 2):
        same &= _correlation(first.diff(dim=axis), second.diff(dim=axis)) >= ALIKE_EDGES
    return same


def _correlation(one: Tensor, two: Tensor) -> Tensor:
    return (normalize(one.flatten(1)) * normalize(two.flatten(1))).sum(1)


def _reduced(images: Tensor, side: int) -> Tensor:
    """Averages pictures down to float32 [B, 3, side, side]; smaller ones keep their size."""
    values = images.float()
    return values if images.shape[-1] <= side else adaptive_avg_pool2d(values, side)


def _grey(images: Tensor, side: int) -> Tensor:
    """Returns grey pictures, float32 [B, side, side]."""
    return (_reduced(images, side) * torch.tensor(GREY).view(3, 1, 1)).sum(1)
