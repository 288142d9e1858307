"""3x3 convolutions on a CPU with four times fewer multiplications, for forward passes without gradient.

Winograd's algorithm computes a tile of 4x4 outputs from 6x6 inputs: the inputs are transformed by sums (`input_rows`,
`input_tiles`), each of the 36 transformed positions is one matrix product over channels (`products`), and sums turn the
products into outputs (`output_rows`, `output_image`). A direct convolution multiplies 144 times where this multiplies
36 times, at the price of the transforms, which pay where there are many channels. Each step is a function of its own,
because compiled in one piece they take a minute to compile instead of seconds.

The result is that of the convolution up to rounding: about 2e-6 of its norm in float32, 1e-15 in float64.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv 1509.09308), the case
F(4x4, 3x3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TILE", "TransformedWeight", "input_rows", "input_tiles", "output_image", "output_rows", "products"]

TILE = 4
"""Outputs a side of a tile; the image's side must be a multiple of it."""

_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G of the paper, 6x3."""


class TransformedWeight:
    """The weights of one convolution as Winograd's algorithm uses them, computed anew only when they have changed."""

    def __init__(self) -> None:
        self._known: tuple[int, int] | None = None
        self._value: Tensor | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """Weights [K_out, K_in, 3, 3] as [36, K_in, K_out]."""
        key = (weight.data_ptr(), weight._version)
        if self._value is None or key != self._known or self._value.dtype != weight.dtype:
            g = weight.new_tensor(_WEIGHT)
            self._value = torch.einsum("ak,oikl,bl->abio", g, weight, g).flatten(0, 1).contiguous()
            self._known = key
        return self._value


def _input_line(d: Sequence[Tensor]) -> list[Tensor]:
    """Six inputs in a line, transformed (B^T of the paper)."""
    a, b, c, e, f, g = d
    odd, even = e - 4 * b, f - 4 * c
    near, far = 2 * (e - b), f - c
    return [4 * a - 5 * c + f, even + odd, even - odd, far + near, far - near, 4 * b - 5 * e + g]


def _output_line(m: Sequence[Tensor]) -> list[Tensor]:
    """Six products in a line, as four outputs (A^T of the paper)."""
    a, b, c, e, f, g = m
    p, q, r, s = b + c, b - c, e + f, e - f
    return [a + p + r, q + 2 * s, p + 4 * r, q + 8 * s + g]


def input_rows(images: Tensor) -> Tensor:
    """The first step of the inputs' transform: the six pixels of each column of a tile, for all columns.

    Args:
        images: [B, H, H, K], H a multiple of ``TILE``; they are padded by one pixel of zeros.

    Returns:
        [6, B, H/4, H+2, K].
    """
    side = images.shape[1]
    padded = F.pad(images, (0, 0, 1, 1, 1, 1))
    return torch.stack(_input_line([padded[:, i : i + side - TILE + 1 : TILE] for i in range(6)]))


def input_tiles(rows: Tensor) -> Tensor:
    """The second step: the six columns of each tile.

    Args:
        rows: [6, B, n, 4n+2, K].

    Returns:
        [6, 6, B, n, n, K].
    """
    side = rows.shape[3] - 2
    return torch.stack(_input_line([rows[:, :, :, j : j + side - TILE + 1 : TILE] for j in range(6)]), 1)


def output_rows(products: Tensor) -> Tensor:
    """The first step of the outputs' transform: [6, 6, B, n, n, K] to [4, 6, B, n, n, K]."""
    return torch.stack(_output_line(products.unbind(0)))


def output_image(rows: Tensor) -> Tensor:
    """The second step: the convolution's outputs, from [4, 6, B, n, n, K] to [B, 4n, 4n, K]."""
    tiles = torch.stack(_output_line(rows.unbind(1)))
    _, _, batch, n, _, channels = tiles.shape
    return tiles.permute(2, 3, 1, 4, 0, 5).reshape(batch, TILE * n, TILE * n, channels)


def products(tiles: Tensor, weight: Tensor) -> Tensor:
    """The matrix product over channels at each of the 36 positions of a tile.

    Args:
        tiles: [6, 6, B, n, n, K_in].
        weight: [36, K_in, K_out], of a `TransformedWeight`.

    Returns:
        [6, 6, B, n, n, K_out].
    """
    return torch.bmm(tiles.flatten(0, 1).flatten(1, 3), weight).unflatten(1, tiles.shape[2:5]).unflatten(0, (6, 6))
