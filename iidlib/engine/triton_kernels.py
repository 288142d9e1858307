"""Triton kernels of the norm: instance norm, affine, then either ReLU and 2x2 average pooling or residual and ReLU.

The maps are channels-last, so in memory an image is a table of H*W positions times K channels. A program takes some
columns (channels of an image, or of several images if the maps are small) with all their positions. If these are one
tile, it stays in registers from the mean to the output: the map is read once and written once. Otherwise tiles are read
several times, all but the first time from a cache. Nothing is added atomically: the same inputs give the same bits.

A tile has three axes: the positions of a pooling window, the windows, the columns. Without pooling, a window is one
position. With the first axis in front, Triton keeps the positions of a window in the registers of one thread.

The module can be imported without Triton; the kernels are launched only by `engine.triton_launch`.
"""

# without this, the annotations would need Triton at import
from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows, torch without CUDA
    triton = None

__all__ = ["available", "jit"]


def available() -> bool:
    """Whether Triton is installed."""
    return triton is not None


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """The function as a Triton kernel; without Triton the function itself, which is then never called."""
    return function if triton is None else triton.jit(function, **options)


@jit
def _columns(columns, channels, COLUMNS: tl.constexpr):
    """The program's columns: image, channel, and which of them exist; each [1, 1, COLUMNS]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    # more than 2**31 elements are possible in a batch, not in an image
    return (column // channels).to(tl.int64), column % channels, column < columns


@jit
def _positions(start, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, WINDOWS: tl.constexpr):
    """Positions of a tile in the map, [POOL**2, WINDOWS, 1], which of them exist, and its windows, [1, WINDOWS, 1].

    Windows at the border of an odd side are incomplete. They count for the norm, but are not pooled.
    """
    part = tl.arange(0, POOL * POOL)[:, None, None]
    window = start + tl.arange(0, WINDOWS)[None, :, None]
    ACROSS: tl.constexpr = (WIDTH + POOL - 1) // POOL
    i, j = window // ACROSS, window % ACROSS
    row, column = i * POOL + part // POOL, j * POOL + part % POOL
    pooled = (i < HEIGHT // POOL) & (j < WIDTH // POOL)
    return row * WIDTH + column, (row < HEIGHT) & (column < WIDTH), i * (WIDTH // POOL) + j, pooled


@jit
def _load(pointer, base, position, channels, exists):
    return tl.load(pointer + (base + position * channels), mask=exists, other=0.0).to(tl.float32)


@jit
def _total(tile):
    """Sum over the positions, [1, 1, COLUMNS]; over those of a window first, which needs no communication."""
    return tl.sum(tl.sum(tile, 0), 0)[None, None, :]


@jit
def _write(
    tile, start, mean, scale, bias, residual, out, image, channel, channels, real,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    WINDOWS: tl.constexpr,
):  # fmt: skip
    """Writes the output of a tile."""
    _, _, window, pooled = _positions(start, HEIGHT, WIDTH, POOL, WINDOWS)
    base = image * ((HEIGHT // POOL) * (WIDTH // POOL) * channels) + channel
    y = (tile - mean) * scale + bias
    if RESIDUAL:
        y += _load(residual, base, window, channels, pooled & real)
    if RELU:
        y = tl.where(y <= 0, 0.0, y)  # unlike a maximum, keeps NaN
    y = tl.sum(y, 0)[None, :, :] * (1.0 / (POOL * POOL))
    tl.store(out + (base + window * channels), y.to(out.dtype.element_ty), mask=pooled & real)


@jit
def forward(
    x, weight, bias, residual, out, stats, columns, channels, eps,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    WINDOWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Output and statistics: the mean and the inverse standard deviation of each column, [2, columns].

    Args:
        x: [B, H, W, K].
        weight: [K].
        bias: [K].
        residual: as x; read only with RESIDUAL, which excludes pooling.
        out: [B, H // POOL, W // POOL, K].
        stats: [2, B * K].
        columns: B * K.
        channels: K.
        eps: added to the variance.
        HEIGHT: H.
        WIDTH: W.
        POOL: side of the pooling window, 1 or 2.
        RELU: whether to apply a ReLU; pooling needs it.
        RESIDUAL: whether to add a residual.
        WINDOWS: windows per tile, a power of two.
        COLUMNS: columns per program, a power of two.
    """
    POSITIONS: tl.constexpr = HEIGHT * WIDTH
    ALL: tl.constexpr = ((HEIGHT + POOL - 1) // POOL) * ((WIDTH + POOL - 1) // POOL)
    image, channel, real = _columns(columns, channels, COLUMNS)
    base = image * (POSITIONS * channels) + channel

    if WINDOWS >= ALL:  # the whole map in registers
        position, inside, _, _ = _positions(0, HEIGHT, WIDTH, POOL, WINDOWS)
        whole = _load(x, base, position, channels, inside & real)
        mean = _total(whole) / POSITIONS
        centred = tl.where(inside, whole - mean, 0.0)
        square = _total(centred * centred)
    else:
        mean = tl.zeros([1, 1, COLUMNS], tl.float32)
        for start in range(0, ALL, WINDOWS):
            position, inside, _, _ = _positions(start, HEIGHT, WIDTH, POOL, WINDOWS)
            mean += _total(_load(x, base, position, channels, inside & real))
        mean = mean / POSITIONS
        square = tl.zeros([1, 1, COLUMNS], tl.float32)
        for start in range(0, ALL, WINDOWS):
            position, inside, _, _ = _positions(start, HEIGHT, WIDTH, POOL, WINDOWS)
            centred = tl.where(inside, _load(x, base, position, channels, inside & real) - mean, 0.0)
            square += _total(centred * centred)
    rstd = tl.rsqrt(square / POSITIONS + eps)

    index = image * channels + channel
    tl.store(stats + index, mean, mask=real)
    tl.store(stats + (index + columns), rstd, mask=real)
    scale = rstd * tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    if WINDOWS >= ALL:
        _write(whole, 0, mean, scale, b, residual, out, image, channel, channels, real,
               HEIGHT, WIDTH, POOL, RELU, RESIDUAL, WINDOWS)  # fmt: skip
    else:
        for start in range(0, ALL, WINDOWS):
            position, inside, _, _ = _positions(start, HEIGHT, WIDTH, POOL, WINDOWS)
            tile = _load(x, base, position, channels, inside & real)
            _write(tile, start, mean, scale, b, residual, out, image, channel, channels, real,
                   HEIGHT, WIDTH, POOL, RELU, RESIDUAL, WINDOWS)  # fmt: skip


@jit
def _normalised(
    start, x, grad, out, weight, bias, mean, rstd, image, channel, channels, real,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    WINDOWS: tl.constexpr,
):  # fmt: skip
    """A tile of the normalised map and the gradient of its affine map, which is zero where nothing is pooled."""
    position, inside, window, pooled = _positions(start, HEIGHT, WIDTH, POOL, WINDOWS)
    base = image * (HEIGHT * WIDTH * channels) + channel
    tile = (_load(x, base, position, channels, inside & real) - mean) * rstd
    base = image * ((HEIGHT // POOL) * (WIDTH // POOL) * channels) + channel
    g = _load(grad, base, window, channels, pooled & real) * (1.0 / (POOL * POOL))
    if RELU:
        if RESIDUAL:  # the output has its sign, and the next layer keeps it in memory anyway
            y = _load(out, base, window, channels, pooled & real)
        else:
            y = tile * weight + bias
        g = tl.where(y <= 0, 0.0, g)
    return tile, g


@jit
def _write_gradients(
    start, tile, g, mean_g, mean_gx, scale, grad_x, grad_residual, image, channel, channels, real,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    GRAD_X: tl.constexpr, GRAD_RESIDUAL: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of a tile's inputs."""
    position, inside, _, _ = _positions(start, HEIGHT, WIDTH, POOL, WINDOWS)
    offset = image * (HEIGHT * WIDTH * channels) + channel + position * channels
    if GRAD_RESIDUAL:
        tl.store(grad_residual + offset, g.to(grad_residual.dtype.element_ty), mask=inside & real)
    if GRAD_X:
        g = (g - mean_g - tile * mean_gx) * scale
        tl.store(grad_x + offset, g.to(grad_x.dtype.element_ty), mask=inside & real)


@jit
def backward(
    grad, x, weight, bias, out, stats, grad_x, grad_residual, grad_affine, columns, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    GRAD_X: tl.constexpr, GRAD_AFFINE: tl.constexpr, GRAD_RESIDUAL: tl.constexpr,
    WINDOWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of x and the residual, and those of weight and bias for each image, [2, columns].

    Args:
        grad: gradient of the output, as out.
        x: as in `forward`, as are all sizes.
        weight: [K].
        bias: [K].
        out: output of `forward`; read only with RESIDUAL and RELU.
        stats: statistics of `forward`.
        grad_x: as x; written only with GRAD_X.
        grad_residual: as x; written only with GRAD_RESIDUAL.
        grad_affine: [2, B * K]; written only with GRAD_AFFINE.
        columns: B * K.
        channels: K.
        HEIGHT: H.
        WIDTH: W.
        POOL: side of the pooling window, 1 or 2.
        RELU: whether a ReLU was applied.
        RESIDUAL: whether a residual was added.
        GRAD_X: whether to compute the gradient of x.
        GRAD_AFFINE: whether to compute those of weight and bias.
        GRAD_RESIDUAL: whether to compute that of the residual.
        WINDOWS: windows per tile, a power of two.
        COLUMNS: columns per program, a power of two.
    """
    ALL: tl.constexpr = ((HEIGHT + POOL - 1) // POOL) * ((WIDTH + POOL - 1) // POOL)
    image, channel, real = _columns(columns, channels, COLUMNS)
    index = image * channels + channel
    mean = tl.load(stats + index, mask=real, other=0.0)
    rstd = tl.load(stats + (index + columns), mask=real, other=0.0)
    w = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)

    if WINDOWS >= ALL:  # the whole map in registers
        whole, g_whole = _normalised(0, x, grad, out, w, b, mean, rstd, image, channel, channels, real,
                                     HEIGHT, WIDTH, POOL, RELU, RESIDUAL, WINDOWS)  # fmt: skip
        sum_g, sum_gx = _total(g_whole), _total(g_whole * whole)
    else:
        sum_g, sum_gx = tl.zeros([1, 1, COLUMNS], tl.float32), tl.zeros([1, 1, COLUMNS], tl.float32)
        for start in range(0, ALL, WINDOWS):
            tile, g = _normalised(start, x, grad, out, w, b, mean, rstd, image, channel, channels, real,
                                  HEIGHT, WIDTH, POOL, RELU, RESIDUAL, WINDOWS)  # fmt: skip
            sum_g += _total(g)
            sum_gx += _total(g * tile)
    if GRAD_AFFINE:
        tl.store(grad_affine + index, sum_gx, mask=real)
        tl.store(grad_affine + (index + columns), sum_g, mask=real)

    mean_g, mean_gx, scale = sum_g / (HEIGHT * WIDTH), sum_gx / (HEIGHT * WIDTH), w * rstd
    if not (GRAD_X or GRAD_RESIDUAL):
        pass
    elif WINDOWS >= ALL:
        _write_gradients(0, whole, g_whole, mean_g, mean_gx, scale, grad_x, grad_residual, image, channel, channels,
                         real, HEIGHT, WIDTH, POOL, GRAD_X, GRAD_RESIDUAL, WINDOWS)  # fmt: skip
    else:
        for start in range(0, ALL, WINDOWS):
            tile, g = _normalised(start, x, grad, out, w, b, mean, rstd, image, channel, channels, real,
                                  HEIGHT, WIDTH, POOL, RELU, RESIDUAL, WINDOWS)  # fmt: skip
            _write_gradients(start, tile, g, mean_g, mean_gx, scale, grad_x, grad_residual, image, channel, channels,
                             real, HEIGHT, WIDTH, POOL, GRAD_X, GRAD_RESIDUAL, WINDOWS)  # fmt: skip
