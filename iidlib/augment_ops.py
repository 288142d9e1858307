"""The augmentation with fixed shapes, `augment.apply_everywhere`, with a Triton kernel on CUDA.

As separate operations, each transform is computed for each image. With gradients that are summed in a fixed order, that
takes most of the kernels in an iteration of DM. The kernel computes for each image only what was drawn for it, in one
launch, and the gradient in another; ``tests/test_regions.py`` counts the launches.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iidlib import augment
from iidlib.engine import triton_augment

__all__ = ["apply_drawn"]


def apply_drawn(
    images: Tensor, op: Tensor, u: Tensor, operations: Sequence[str] = augment.OPERATIONS, *, compiled: bool = True
) -> Tensor:
    """Transforms each image by the operation drawn for it, with shapes that do not depend on the draws.

    Args:
        images: [B, K, H, H], float32 or float64, normalised.
        op: int64 [B], indices into ``augment.OPERATIONS``, on the images' device.
        u: [B, 3], uniform numbers, on the images' device.
        operations: operations that may occur in `op`.
        compiled: whether compiled kernels may be used, where they can run.

    Returns:
        [B, K, H, H] with the images' memory format, equal to `augment.apply_everywhere` up to rounding; differentiable
        once, in the images, where the kernel is used.
    """
    if not (compiled and triton_augment.usable(images)):
        return augment.apply_everywhere(images, op, u, operations)
    return _Drawn.apply(images, op, u.to(images.dtype), operations)


class _Drawn(torch.autograd.Function):
    """The augmentation by the kernel, or by separate operations after a kernel has failed."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, op: Tensor, u: Tensor, operations: Sequence[str]) -> Tensor:
        ctx.save_for_backward(op, u)
        ctx.operations = operations
        out = triton_augment.transformed(images, op, u, _ranges(images))
        return augment.apply_everywhere(images, op, u, operations) if out is None else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        op, u = ctx.saved_tensors
        out = None
        if triton_augment.usable(gradient):
            out = triton_augment.transformed(gradient, op, u, _ranges(gradient), gradient=True)
        if out is None:
            with torch.enable_grad():  # the transforms are affine: their gradient does not depend on the images
                images = torch.zeros_like(gradient).requires_grad_()
                transformed = augment.apply_everywhere(images, op, u, ctx.operations)
                (out,) = torch.autograd.grad(transformed, images, gradient)
        return out, None, None, None


def _ranges(images: Tensor) -> dict[str, float]:
    """Constants of the transforms for images of a size."""
    side = images.shape[-1]
    return {
        "BRIGHTNESS": augment.BRIGHTNESS,
        "SATURATION": augment.SATURATION,
        "CONTRAST": augment.CONTRAST,
        "SHIFT": augment.largest_shift(side),
        "SQUARE": augment.cutout_side(side),
        "FLIP": augment.FLIP,
        "SCALE": augment.SCALE,
        "ANGLE": math.radians(augment.ROTATE),
    }
