"""Triton kernels of the augmentation: each image under one of six transforms, and the gradient.

A program handles one image. It reads which transform was drawn and computes that one only, in tiles of pixels times
channels. In the gradient every input pixel collects from the output pixels that read it, in a fixed order: nothing is
added atomically, so the same inputs give the same bits. `augment` says what the transforms do, and `resampling` why the
3 x 3 output pixels around the inverse position are all that may have read an input pixel.

Positions are computed in PyTorch's order of operations, so launches must not contract products and sums. On a GPU
divisions may differ from PyTorch's in the last two bits, in the transforms and their gradients alike.

The module can be imported without Triton; the kernel is launched only by `engine.triton_launch`.
"""

# without this, the annotations would need Triton at import
from __future__ import annotations

from functools import partial
from typing import Any

from iidlib.engine.triton_kernels import jit

try:
    import triton.language as tl
except ImportError:  # macOS, Windows, torch without CUDA
    pass

__all__ = ["kernel"]


def kernel() -> Any:
    """The kernel, `transform`, which takes images, draws and constants, and writes the result."""
    return transform


@jit
def _tile(start, SIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr):
    """Pixels of a tile, [PIXELS, 1], their rows and columns, its channels, [1, WIDTH], and which values exist."""
    pixel, channel = start + tl.arange(0, PIXELS)[:, None], tl.arange(0, WIDTH)[None, :]
    return pixel // SIDE, pixel % SIDE, channel, (pixel < SIDE * SIDE) & (channel < CHANNELS)


@jit
def _offset(row, column, channel, channel_stride, pixel_stride, SIDE: tl.constexpr):
    return (row * SIDE + column) * pixel_stride + channel * channel_stride


@jit
def _taken(image, row, column, channel, wanted, channel_stride, pixel_stride, SIDE: tl.constexpr):
    """Values of an image; zero where none is wanted, and outside."""
    inside = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
    return tl.load(
        image + _offset(row, column, channel, channel_stride, pixel_stride, SIDE), mask=wanted & inside, other=0.0
    )  # fmt: skip


@jit
def _put(target, row, column, channel, values, wanted, channel_stride, pixel_stride, SIDE: tl.constexpr):
    """Writes values of an image where they are wanted."""
    tl.store(target + _offset(row, column, channel, channel_stride, pixel_stride, SIDE), values, mask=wanted)


@jit
def _position(index, SIDE: tl.constexpr):
    """Centre of a pixel in coordinates that span -1 to 1."""
    return (2 * index + 1).to(tl.float32) / SIDE - 1


@jit
def _pixel(position, SIDE: tl.constexpr):
    """Coordinates that span -1 to 1 in pixels."""
    return ((position + 1) * SIDE - 1) * 0.5


@jit
def _whole(number):
    return tl.floor(number).to(tl.int32)


@jit
def _color(
    source, target, first, second, third, channel_stride, pixel_stride,
    BRIGHTNESS: tl.constexpr, SATURATION: tl.constexpr, CONTRAST: tl.constexpr,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Brightness, saturation and contrast, which are one affine map whose linear part is symmetric."""
    shift, saturation, contrast = (first - 0.5) * BRIGHTNESS, second * SATURATION, third + CONTRAST
    sums = tl.zeros([PIXELS, WIDTH], tl.float32)
    for start in range(0, SIDE * SIDE, PIXELS):
        row, column, channel, exists = _tile(start, SIDE, CHANNELS, PIXELS, WIDTH)
        sums += _taken(source, row, column, channel, exists, channel_stride, pixel_stride, SIDE)
    level = (1 - contrast) * (tl.sum(tl.sum(sums, 1), 0) / (CHANNELS * SIDE * SIDE))
    if not GRADIENT:
        level += shift
    for start in range(0, SIDE * SIDE, PIXELS):
        row, column, channel, exists = _tile(start, SIDE, CHANNELS, PIXELS, WIDTH)
        x = _taken(source, row, column, channel, exists, channel_stride, pixel_stride, SIDE)
        gray = (tl.sum(x, 1) / CHANNELS)[:, None]
        x = level + contrast * (1 - saturation) * gray + contrast * saturation * x
        _put(target, row, column, channel, x, exists, channel_stride, pixel_stride, SIDE)


@jit
def _moved(
    source, target, op, first, second, channel_stride, pixel_stride,
    SHIFT: tl.constexpr, SQUARE: tl.constexpr, FLIP: tl.constexpr,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """A shift by whole pixels (1), a square of zeros (2), or a mirror image (3)."""
    down = tl.where(op == 1, _whole(first * (2 * SHIFT + 1)) - SHIFT, 0)
    right = tl.where(op == 1, _whole(second * (2 * SHIFT + 1)) - SHIFT, 0)
    if GRADIENT:
        down, right = -down, -right
    mirrored = tl.where(op == 3, first, 1.0) < FLIP
    corners: tl.constexpr = SIDE + 1 - SQUARE % 2
    top = tl.where(op == 2, _whole(first * corners) - SQUARE // 2, SIDE)  # else beyond the image
    left = _whole(second * corners) - SQUARE // 2
    for start in range(0, SIDE * SIDE, PIXELS):
        row, column, channel, exists = _tile(start, SIDE, CHANNELS, PIXELS, WIDTH)
        from_column = tl.where(mirrored, SIDE - 1 - column, column + right)
        outside = (row < top) | (row >= top + SQUARE) | (column < left) | (column >= left + SQUARE)
        x = _taken(source, row + down, from_column, channel, exists & outside, channel_stride, pixel_stride, SIDE)
        _put(target, row, column, channel, x, exists, channel_stride, pixel_stride, SIDE)


@jit
def _matrix(op, first, second, SCALE: tl.constexpr, ANGLE: tl.constexpr):
    """The linear map from output to input positions: scaling (4) or rotation (5)."""
    lowest: tl.constexpr = 1 / SCALE
    span: tl.constexpr = SCALE - 1 / SCALE
    # Taylor series, exact in float32 for small angles; the functions for any angle may use the stack
    tl.static_assert(ANGLE < 0.5)
    angle = (first - 0.5) * 2 * ANGLE
    square = angle * angle
    sine = angle * (1 - square * (1 / 6 - square * (1 / 120 - square / 5040)))
    cosine = 1 - square * (1 / 2 - square * (1 / 24 - square * (1 / 720 - square / 40320)))
    sine = tl.where(op == 5, sine, 0.0)
    xx = tl.where(op == 5, cosine, first * span + lowest)
    yy = tl.where(op == 5, cosine, second * span + lowest)
    return xx, -sine, sine, yy


@jit
def _mapped(xx, xy, yx, yy, row, column, SIDE: tl.constexpr):
    """Column and row of the input, in fractions of pixels, that a pixel of the output is sampled at."""
    px, py = _position(column, SIDE), _position(row, SIDE)
    return _pixel(xx * px + xy * py, SIDE), _pixel(yx * px + yy * py, SIDE)


@jit
def _warped(
    source, target, op, first, second, channel_stride, pixel_stride,
    SCALE: tl.constexpr, ANGLE: tl.constexpr,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Bilinear samples at linearly mapped positions."""
    xx, xy, yx, yy = _matrix(op, first, second, SCALE, ANGLE)
    for start in range(0, SIDE * SIDE, PIXELS):
        row, column, channel, exists = _tile(start, SIDE, CHANNELS, PIXELS, WIDTH)
        x, y = _mapped(xx, xy, yx, yy, row, column, SIDE)
        left, top = tl.floor(x), tl.floor(y)
        total = tl.zeros([PIXELS, WIDTH], tl.float32)
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                weight = (1 - tl.abs(x - left - right)) * (1 - tl.abs(y - top - down))
                total += weight * _taken(
                    source, top.to(tl.int32) + down, left.to(tl.int32) + right, channel, exists,
                    channel_stride, pixel_stride, SIDE,
                )  # fmt: skip
        _put(target, row, column, channel, total, exists, channel_stride, pixel_stride, SIDE)


@jit
def _collected(
    source, target, op, first, second, channel_stride, pixel_stride,
    SCALE: tl.constexpr, ANGLE: tl.constexpr,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of `_warped`: each pixel collects from the output pixels around the one that maps to it."""
    xx, xy, yx, yy = _matrix(op, first, second, SCALE, ANGLE)
    determinant = xx * yy - xy * yx
    for start in range(0, SIDE * SIDE, PIXELS):
        row, column, channel, exists = _tile(start, SIDE, CHANNELS, PIXELS, WIDTH)
        px, py = _position(column, SIDE), _position(row, SIDE)
        nearest_column = _whole(_pixel((yy * px - xy * py) / determinant, SIDE) + 0.5)
        nearest_row = _whole(_pixel((xx * py - yx * px) / determinant, SIDE) + 0.5)
        total = tl.zeros([PIXELS, WIDTH], tl.float32)
        for down in range(-1, 2):  # unrolled, it would take half as many registers again
            for right in tl.static_range(-1, 2):
                out_column, out_row = nearest_column + right, nearest_row + down
                x, y = _mapped(xx, xy, yx, yy, out_row, out_column, SIDE)
                weight_x, weight_y = 1 - tl.abs(x - column), 1 - tl.abs(y - row)
                weight = tl.where((weight_x > 0) & (weight_y > 0), weight_x * weight_y, 0.0)
                total += weight * _taken(
                    source, out_row, out_column, channel, exists, channel_stride, pixel_stride, SIDE
                )
        _put(target, row, column, channel, total, exists, channel_stride, pixel_stride, SIDE)


# specialised on a pixel stride of 1, the gradient takes more registers
@partial(jit, do_not_specialize=["channel_stride", "pixel_stride"])
def transform(
    source, op, u, target, channel_stride, pixel_stride,
    BRIGHTNESS: tl.constexpr, SATURATION: tl.constexpr, CONTRAST: tl.constexpr, SHIFT: tl.constexpr,
    SQUARE: tl.constexpr, FLIP: tl.constexpr, SCALE: tl.constexpr, ANGLE: tl.constexpr,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Images under the transforms drawn for them or, with GRADIENT, the gradient of the images from that of the result.

    Args:
        source: images or gradient, [B, SIDE, SIDE, CHANNELS] or [B, CHANNELS, SIDE, SIDE].
        op: int64 [B], transform of each image: color, crop, cutout, flip, scale, rotate.
        u: [B, 3], uniform numbers.
        target: as source.
        channel_stride: stride between channels.
        pixel_stride: stride between pixels.
        BRIGHTNESS: width of the range of shifts.
        SATURATION: largest factor.
        CONTRAST: smallest factor.
        SHIFT: largest shift in pixels.
        SQUARE: side of the square of zeros in pixels.
        FLIP: probability of mirroring.
        SCALE: largest factor.
        ANGLE: largest angle in radians.
        SIDE: H.
        CHANNELS: K.
        PIXELS: pixels per tile, a power of two.
        WIDTH: channels per tile, a power of two, at least K.
        GRADIENT: whether to compute the gradient.
    """
    image = tl.program_id(0).to(tl.int64)  # more than 2**31 values are possible in a batch, not in an image
    source += image * (CHANNELS * SIDE * SIDE)
    target += image * (CHANNELS * SIDE * SIDE)
    drawn = tl.load(op + image)
    first, second, third = tl.load(u + 3 * image), tl.load(u + 3 * image + 1), tl.load(u + 3 * image + 2)
    if drawn == 0:
        _color(source, target, first, second, third, channel_stride, pixel_stride, BRIGHTNESS, SATURATION, CONTRAST,
               SIDE, CHANNELS, PIXELS, WIDTH, GRADIENT)  # fmt: skip
    elif drawn < 4:
        _moved(source, target, drawn, first, second, channel_stride, pixel_stride, SHIFT, SQUARE, FLIP,
               SIDE, CHANNELS, PIXELS, WIDTH, GRADIENT)  # fmt: skip
    elif GRADIENT:
        _collected(source, target, drawn, first, second, channel_stride, pixel_stride, SCALE, ANGLE,
                   SIDE, CHANNELS, PIXELS, WIDTH)  # fmt: skip
    else:
        _warped(source, target, drawn, first, second, channel_stride, pixel_stride, SCALE, ANGLE,
                SIDE, CHANNELS, PIXELS, WIDTH)  # fmt: skip
