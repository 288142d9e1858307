"""Bilinear resampling whose gradient has the same bits each time, on a GPU as well.

In the backward pass of ``grid_sample`` and of bilinear ``interpolate``, PyTorch's CUDA kernels let each output pixel
add to the input pixels that it read, in whatever order the threads arrive (``atomicAdd``). The rounding of a sum
depends on its order, so two runs with one seed differ. Here the forward pass is PyTorch's, and on CUDA the backward
pass works the other way round: each input pixel collects from all output pixels that may have read it, in a fixed
order.

- `warp`: an affine map takes a square of 2 x 2 pixels, within which an input pixel is read, to a parallelogram of
  bounded size. For the maps of the augmentation (shifts, rotations by up to 15 degrees, factors of 1/1.2 to 1.2) the
  output pixels in it are among the 3 x 3 around the position that maps to the input pixel. Each of the nine gets the
  weight that it had in the forward pass, computed from the same grid; most get zero.
- `enlarge`: the weights are the same for all images and separate into rows and columns, so the backward pass is a
  weighted sum over the outputs of a pixel along one axis, then along the other.

The alternative, products with matrices of weights, is as exact, but a rotation does not separate: at 64 x 64 its matrix
takes 64 MiB per image. And a matrix product may be rounded to TF32. Both functions here use elementwise products and
sums only, in the precision of their input. Shapes do not depend on values and nothing waits for the device, so the
operations can be recorded in a CUDA graph.

On a CPU, PyTorch's backward pass has a fixed order, and is used.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["enlarge", "warp"]

Matrix = Sequence[Sequence[Tensor]]
"""Affine maps of B images, from output to input positions: 2 x 3 tensors [B], in rows x and y."""


def warp(images: Tensor, matrix: Matrix, mode: str) -> Tensor:
    """Samples the images at affinely mapped positions, zeros outside; differentiable once, in the images.

    Equivalent to ``affine_grid`` with ``align_corners=False`` and ``grid_sample``, except that the grid is not computed
    by a matrix product, which a GPU may round to TF32 (an error of hundredths of a pixel).

    Args:
        images: [B, K, H, H], floating point.
        matrix: the maps, in coordinates that span -1 to 1 across the side. On CUDA the gradient is complete if the
            inverse of the map's linear part has rows with absolute sums of at most 1.5 (a shrinking by up to 1.5, or a
            rotation by up to 30 degrees without any).
        mode: ``bilinear`` or ``nearest``; the latter for shifts by whole pixels, which it makes exact.

    Returns:
        [B, K, H, H].
    """
    position = _positions(images)  # [H]
    (xx, xy, x0), (yx, yy, y0) = ([entry[:, None, None] for entry in row] for row in matrix)  # [B, 1, 1] each
    columns, rows = position, position[:, None]  # [H], [H, 1]
    grid = torch.stack([xx * columns + xy * rows + x0, yx * columns + yy * rows + y0], -1)  # [B, H, H, 2]
    if _collects(images):
        return _Warp.apply(images, grid, matrix, mode)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)  # [B, K, H, H]


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Enlarges images by a whole factor, bilinear with ``align_corners=False``; differentiable once.

    Args:
        images: [B, K, h, w], floating point.
        factor: ratio of the new sides to the old, at least 1.

    Returns:
        [B, K, h * factor, w * factor].
    """
    if _collects(images):
        return _Enlarge.apply(images, factor)
    return _interpolate(images, factor)


def _collects(images: Tensor) -> bool:
    """Whether PyTorch's own backward pass has no fixed order on the images' device."""
    return images.device.type == "cuda"


def _positions(images: Tensor) -> Tensor:
    """Centres of the pixels along a side, in coordinates that span -1 to 1, [H]."""
    side = images.shape[-1]
    return (2 * torch.arange(side, dtype=images.dtype, device=images.device) + 1) / side - 1  # [H]


def _to_pixels(position: Tensor, side: int) -> Tensor:
    """Coordinates that span -1 to 1 in pixels, by the formula of ``grid_sample``."""
    return ((position + 1) * side - 1) / 2


class _Warp(torch.autograd.Function):
    """``grid_sample`` on the grid of an affine map, with a backward pass in a fixed order."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor, matrix: Matrix, mode: str) -> Tensor:
        ctx.save_for_backward(grid, *(entry for row in matrix for entry in row))
        ctx.nearest = mode == "nearest"
        return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        grid, *entries = ctx.saved_tensors
        channels, side = gradient.shape[1:3]
        read = _to_pixels(grid, side)  # [B, H, H, 2], position that each output pixel read
        if ctx.nearest:
            read = read.round()  # ties to even, as in grid_sample
        read = read.permute(0, 3, 1, 2).flatten(2)  # [B, 2, H*H]
        # output pixels around the position that maps to each input pixel
        offset = torch.arange(-1, 2, device=gradient.device)  # [3]
        offsets = torch.stack(torch.meshgrid(offset, offset, indexing="xy")).view(2, 9, 1, 1)
        place = _inverted(gradient, entries)[:, :, None] + offsets  # [B, 2, 9, H, H]
        inner = place.clamp(0, side - 1)  # [B, 2, 9, H, H]
        x, y = inner.unbind(1)  # [B, 9, H, H] each
        index = (y * side + x).flatten(2)  # [B, 9, H*H]
        # what they took of the input pixel along each axis
        taken = read.gather(2, index.flatten(1)[:, None].expand(-1, 2, -1)).view_as(place)  # [B, 2, 9, H, H]
        pixel = torch.arange(side, device=gradient.device)  # [H]
        own = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"))[:, None]  # [2, 1, H, H]
        along_x, along_y = (1 - (taken - own).abs()).clamp_min(0).unbind(1)  # [B, 9, H, H] each
        weights = (along_x * along_y * (place == inner).all(1)).flatten(2)  # [B, 9, H*H]
        flat = gradient.flatten(2)  # [B, K, H*H]
        collected = torch.zeros_like(flat)
        for where, weight in zip(index.unbind(1), weights.unbind(1), strict=True):  # in turn, to save memory
            collected.addcmul_(flat.gather(2, where[:, None].expand(-1, channels, -1)), weight[:, None])
        return collected.view_as(gradient), None, None, None


def _inverted(gradient: Tensor, entries: Sequence[Tensor]) -> Tensor:
    """Column and row of the output pixel nearest to the position that maps to each input pixel, int64 [B, 2, H, H].

    They may lie outside the image. Which of two equally near ones is taken, by rounding, does not matter: the pixels
    around either include all that count.
    """
    xx, xy, x0, yx, yy, y0 = (entry[:, None, None] for entry in entries)  # [B, 1, 1] each
    position = _positions(gradient)  # [H]
    x, y, determinant = position - x0, position[:, None] - y0, xx * yy - xy * yx  # [B, 1, H], [B, H, 1], [B, 1, 1]
    inverse = torch.stack([yy * x - xy * y, xx * y - yx * x], 1) / determinant[:, None]  # [B, 2, H, H]
    return _to_pixels(inverse, gradient.shape[-1]).round().long()


def _interpolate(images: Tensor, factor: int) -> Tensor:
    size = [factor * side for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)  # [B, K, h*f, w*f]


class _Enlarge(torch.autograd.Function):
    """Bilinear ``interpolate`` by a whole factor, with a backward pass in a fixed order."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return _interpolate(images, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        by_columns = _collected(gradient, ctx.factor)  # [B, K, h*f, w]
        return _collected(by_columns.mT, ctx.factor).mT, None  # [B, K, h, w]


def _collected(gradient: Tensor, factor: int) -> Tensor:
    """What the f outputs of each pixel along the last axis pass back, [..., n * f] to [..., n].

    Output r of a pixel lies s = (r + 1/2) / f - 1/2 pixels to its right, so it takes 1 - abs(s) of the pixel and abs(s)
    of the neighbour on that side; beyond the border, of the pixel at the border.
    """
    shift = (torch.arange(factor, dtype=gradient.dtype, device=gradient.device) + 0.5) / factor - 0.5  # [f]
    outputs = gradient.unflatten(-1, (-1, factor))  # [..., n, f]
    collected = (outputs * (1 - shift.abs())).sum(-1)  # [..., n]
    left, right = ((outputs * taken.clamp_min(0)).sum(-1) for taken in (-shift, shift))  # [..., n] each
    collected[..., :-1].add_(left[..., 1:])
    collected[..., 0].add_(left[..., 0])
    collected[..., 1:].add_(right[..., :-1])
    collected[..., -1].add_(right[..., -1])
    return collected
