"""Launches of the augmentation's Triton kernel.

`augment_ops` makes a differentiable function of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from iidlib.engine import triton_launch

__all__ = ["RANGES", "tile_for", "transformed", "usable", "works"]

RANGES = ("BRIGHTNESS", "SATURATION", "CONTRAST", "SHIFT", "SQUARE", "FLIP", "SCALE", "ANGLE")
"""Constants of the transforms, explained at the kernel; all must be given."""

TILE = 2048
"""Largest number of values per tile, ``VALUES`` in each thread: with three channels, 512 pixels in 8 warps.

Compiled for an H100, that takes 48 to 80 registers, and 64 to 115 for the gradient, depending on Triton's version, so a
multiprocessor has 16 warps or more (12 for grey images; ``test_augment_ops.py::test_the_kernel_fits_an_h100``).
"""

VALUES = 8

MOST_CHANNELS = 16


def usable(images: Tensor) -> bool:
    """Whether the kernel can transform images: on their device, in float32, and unless a kernel failed before."""
    return (
        triton_launch.runs_on(images)
        and images.dtype == torch.float32
        and images.shape[1] <= MOST_CHANNELS
        and triton_launch.available("transform")
    )


def tile_for(side: int, channels: int) -> tuple[int, int, int]:
    """Pixels and channels of a tile, powers of two, and warps per program, for images of a size."""
    width = triton_launch.power_of_two(channels)
    pixels = min(TILE // width, triton_launch.power_of_two(side * side))
    return pixels, width, max(1, pixels * width // (32 * VALUES))


def works(device: torch.device) -> bool:
    """Whether the kernel runs on a device, found out by launching it; compiles it if necessary."""
    if not triton_launch.available("transform"):
        return False
    images, op = torch.ones(1, 3, 8, 8, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    ranges = dict.fromkeys(RANGES, 1) | {"ANGLE": 0.1}
    return all(
        transformed(images, op, images[0, 0, :1, :3], ranges, gradient=gradient) is not None
        for gradient in (False, True)
    )


def transformed(
    images: Tensor, op: Tensor, u: Tensor, ranges: Mapping[str, float], *, gradient: bool = False
) -> Tensor | None:
    """Images, each under the transform that was drawn for it, or the gradient of the images.

    Args:
        images: the images or, for the gradient, that of the result, [B, K, H, H] in float32.
        op: int64 [B], numbers of the transforms.
        u: [B, 3], uniform numbers, in float32.
        ranges: ``RANGES`` by name.
        gradient: whether to compute the gradient.

    Returns:
        [B, K, H, H] with the images' memory format. None, with one warning, if the kernel failed.
    """
    batch, channels, side = images.shape[:3]
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    images = images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    out = torch.empty_like(images)
    channel_stride, pixel_stride = (1, channels) if last else (side * side, 1)
    pixels, width, warps = tile_for(side, channels)
    constants = {name: ranges[name] for name in RANGES}
    constants |= {"SIDE": side, "CHANNELS": channels, "PIXELS": pixels, "WIDTH": width, "GRADIENT": gradient}
    arguments = images, op.contiguous(), u.contiguous(), out, channel_stride, pixel_stride
    # contracted, positions would round differently from PyTorch's
    done = triton_launch.launch("transform", images, batch, arguments, constants, warps=warps, contract=False)
    return out if done else None
