"""Launches of the norm's Triton kernels: with which arguments and tiles.

`engine.norm_ops` makes PyTorch operators of them.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iidlib.engine import triton_launch

__all__ = ["Tile", "backward", "empty_last", "forward", "tile_for", "usable", "works"]

KERNELS = ("forward", "backward")
"""Names of the kernels."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of the maps; the kernels compute in float32."""


class Tile(NamedTuple):
    """Launch parameters of a kernel.

    Attributes:
        windows: pooling windows per tile, a power of two.
        columns: columns (channels of an image) per program, a power of two.
        warps: warps per program.
    """

    windows: int
    columns: int
    warps: int


TILE = 4096
"""Elements per tile of small maps: 32 in each of 128 threads, enough to be worth the launch of a program."""

LARGEST = 8192
"""Elements per tile of larger maps: 32 in each of 256 threads."""

SEGMENT = 32
"""Bytes of neighbouring channels that a program reads at least: a sector, the unit in which the caches transfer."""

WIDEST = 128
"""Most columns per program, for maps of few positions."""

CACHED = 2**16
"""Bytes of a program's columns that are found in the L1 cache (256 KB on an H100) when they are read again."""


@functools.cache
def tile_for(height: int, width: int, pool: int, itemsize: int, *, backward: bool = False) -> Tile:
    """Launch parameters for maps of a size, chosen for an H100: 132 multiprocessors of 65,536 registers each.

    What follows is counted from kernels compiled for one, not timed. A thread holds 32 values, in 16-byte loads that
    are all under way at once. That takes 62 to 124 registers forward and 94 to 135 backward, so a multiprocessor mostly
    has 16 to 32 warps and 64 KB of loads under way, twice what hides the latency of the memory. In float32, a tile of
    32 x 32 maps has 8 channels, and one of 16 x 16 maps 16; smaller maps get up to 128 channels. Channels are counted
    across images, so that no program is partly idle for narrow networks: 256 images of 512 channels and 4 x 4 positions
    are 1,024 programs.

    In bfloat16, a sector is 16 channels, so a map of 32 x 32 is two tiles, which are read again from the L1 cache. From
    64 x 64, where that is too small, tiles are four times as large forward. Backward, which needs twice the registers,
    a thread of several tiles holds 16 values.

    Args:
        height: H.
        width: W.
        pool: side of the pooling window, 1 or 2.
        itemsize: bytes per element of the map.
        backward: whether for the backward kernel.
    """
    area = pool * pool
    windows = triton_launch.power_of_two(-(-height // pool) * -(-width // pool))
    columns = min(WIDEST, max(SEGMENT // itemsize, TILE // (windows * area)))
    values, largest = 32, LARGEST
    if windows * area * columns > LARGEST:
        if backward:
            values, largest = 16, LARGEST // 2
        elif height * width * columns * itemsize > CACHED:
            largest = 4 * LARGEST
    windows = min(windows, max(1, largest // (columns * area)))
    return Tile(windows, columns, min(16, max(1, windows * area * columns // (32 * values))))


def usable(x: Tensor) -> bool:
    """Whether the kernels can run on a map: on its device, in its dtype, and unless one failed before.

    Imports Triton at the first call for a map on CUDA; logs one warning if that is impossible.
    """
    return triton_launch.runs_on(x) and x.dtype in DTYPES and triton_launch.available(*KERNELS)


def works(device: torch.device) -> bool:
    """Whether the kernels run on a device, found out by launching each on a small map; compiles them if necessary."""
    if not triton_launch.available(*KERNELS):
        return False
    x = torch.ones(1, 16, 2, 2, device=device)
    made = forward(x, x[0, :, 0, 0], x[0, :, 0, 0], None, 1e-5, relu=True, pool=2)
    if made is None:
        return False
    out, stats = made
    needs = True, True, False
    return backward(out, x, x[0, :, 0, 0], x[0, :, 0, 0], None, stats, relu=True, pool=2, needs=needs) is not None


def _launch(name: str, x: Tensor, arguments: tuple[Any, ...], tile: Tile, **constants: Any) -> bool:
    """Launches the kernel of a name for maps x [B, K, H, W]; returns False, with one warning, if that fails."""
    batch, channels, height, width = x.shape
    constants |= {"HEIGHT": height, "WIDTH": width, "WINDOWS": tile.windows, "COLUMNS": tile.columns}
    programs = -(-batch * channels // tile.columns)
    return triton_launch.launch(name, x, programs, arguments, constants, warps=tile.warps, contract=True)


def empty_last(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    """An uninitialised channels-last map [B, K, H, W] with the dtype and device of another."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, *, relu: bool, pool: int
) -> tuple[Tensor, Tensor] | None:
    """Norm, then residual and ReLU, or ReLU and pooling.

    Args:
        x: [B, K, H, W].
        weight: [K].
        bias: [K].
        residual: as x, or None; excludes pooling.
        eps: added to the variance.
        relu: whether to apply a ReLU; pooling needs it.
        pool: side of the pooling window, 1 or 2.

    Returns:
        The output [B, K, H // pool, W // pool], channels-last, in x's dtype; mean and inverse standard deviation of
        each map, [2, B, K], in float32. None, with one warning, if the kernel failed.
    """
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    other = x if residual is None else residual.contiguous(memory_format=torch.channels_last)
    out = empty_last((batch, channels, height // pool, width // pool), x)
    stats = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device)
    arguments = x, weight.contiguous(), bias.contiguous(), other, out, stats, batch * channels, channels, eps
    tile = tile_for(height, width, pool, x.element_size())
    constants = {"POOL": pool, "RELU": relu, "RESIDUAL": residual is not None}
    return (out, stats) if _launch("forward", x, arguments, tile, **constants) else None


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor | None,
    stats: Tensor,
    *,
    relu: bool,
    pool: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Gradients of the input, of weight and bias, and of the residual.

    Args:
        grad: gradient of the output, [B, K, H // pool, W // pool].
        x: as in `forward`.
        weight: [K].
        bias: [K].
        out: the output, if a residual was added and a ReLU applied.
        stats: the statistics from `forward`.
        relu: as in `forward`.
        pool: as in `forward`.
        needs: whether the gradient of x, those of weight and bias, and that of the residual are computed.

    Returns:
        Gradients of x [B, K, H, W], of weight and bias [2, K] in float32, and of the residual [B, K, H, W]; empty where
        not needed. The last is that of the sum, before the ReLU. None, with one warning, if the kernel failed.
    """
    batch, channels, height, width = x.shape
    x, grad = (each.contiguous(memory_format=torch.channels_last) for each in (x, grad))
    # each its own: an operator may not return a tensor twice
    grad_x, grad_residual = (empty_last(x.shape, x) if needed else x.new_empty(0) for needed in (needs[0], needs[2]))
    parts = torch.empty(2, batch if needs[1] else 0, channels, dtype=torch.float32, device=x.device)
    arguments = (
        grad, x, weight.contiguous(), bias.contiguous(), x if out is None else out, stats,
        grad_x, grad_residual, parts, batch * channels, channels,
    )  # fmt: skip
    tile = tile_for(height, width, pool, x.element_size(), backward=True)
    constants = {"POOL": pool, "RELU": relu, "RESIDUAL": out is not None}
    constants |= {"GRAD_X": needs[0], "GRAD_AFFINE": needs[1], "GRAD_RESIDUAL": needs[2]}
    if not _launch("backward", x, arguments, tile, **constants):
        return None
    # one sum per image, added in a fixed order
    return grad_x, parts.sum(1) if needs[1] else parts.new_empty(0), grad_residual
