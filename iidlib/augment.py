"""Differentiable Siamese augmentation (DSA): one random transform a class, shared by its real and synthetic images.

Distribution matching compares the features of real and synthetic images. If both sides go through the *same* random
transform (Siamese), the comparison is made under that transform, and its gradient flows back through the transform to
the synthetic pixels, so knowledge of the augmentation ends up in the images. A call draws **one** of the six
operations for each class, with one set of parameters; the next call draws others.

Two forms of use:

- *Siamese*, for distillation: a group is a class. ``sample(strategy, C, generator)`` draws once a class, and ``apply``
  is called on the real and on the synthetic images with the same draws, each image naming its class in ``group``.
- *Evaluation*, for training a network: a group is an image. ``sample(strategy, B, generator, shared_op=True)`` draws
  one operation for the mini-batch and parameters for every image by itself.

All classes are transformed in one call: images are ordered by operation, each operation runs once on its images, and
the result is put back in order. A draw is an operation index and three uniform numbers, whatever the operation, so
draws have a fixed shape, live on the CPU (choosing an operation never waits for a GPU) and do not depend on the image
size; what the numbers mean is decided in ``apply``.

Source: Zhao and Bilen, *Dataset Condensation with Differentiable Siamese Augmentation*, ICML 2021 (arXiv 2102.08259),
with the constants of the released code. Departures: classes draw independently, where the released code seeds a draw
with the millisecond clock, so that classes handled within one millisecond share a transform; and a batch may hold any
number of groups, where the released code transforms one class a call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.errors import near

__all__ = ["OPERATIONS", "Draws", "apply", "apply_everywhere", "parse_strategy", "sample"]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""Names of the operations, in the order of ``Draws.op``."""

# All operations act on normalised images, where 0 is the data set's mean colour.
BRIGHTNESS = 1.0  # width of the range of the shift, in standard deviations: +-0.5
SATURATION = 2.0  # the factor's range is [0, 2)
CONTRAST = 0.5  # the factor's range is [0.5, 1.5)
CROP = 0.125  # largest shift, as a fraction of the side
CUTOUT = 0.5  # side of the square, as a fraction of the image's side
FLIP = 0.5  # probability
SCALE = 1.2  # the factor's range is [1/1.2, 1.2)
ROTATE = 15.0  # largest angle, in degrees


@dataclass(frozen=True, eq=False)
class Draws:
    """Random draws of an operation and its parameters, one a group (G groups).

    Attributes:
        op: [G] int64, indices into ``OPERATIONS``, on the CPU.
        u: [G, 3] float, uniform in [0, 1), on the CPU; an operation reads the first one, two or three columns.

    Raises:
        ValueError: if the shapes disagree, a tensor is not on the CPU, or a value is out of range.
    """

    op: Tensor
    u: Tensor

    def __post_init__(self) -> None:
        if self.op.ndim != 1 or self.op.dtype != torch.int64 or self.u.shape != (len(self.op), 3):
            raise ValueError(
                "Draws takes op [G] of int64 and u [G, 3], "
                f"got op {list(self.op.shape)} of {self.op.dtype} and u {list(self.u.shape)}"
            )
        if self.op.device.type != "cpu" or self.u.device.type != "cpu":
            raise ValueError(f"Draws are kept on the CPU, got op on {self.op.device} and u on {self.u.device}")
        if not ((self.op >= 0) & (self.op < len(OPERATIONS))).all():
            raise ValueError(f"Draws.op indexes {len(OPERATIONS)} operations, got {self.op.unique().tolist()}")
        if not ((self.u >= 0) & (self.u < 1)).all():
            raise ValueError("Draws.u must lie in [0, 1)")

    def __len__(self) -> int:
        """The number of groups G."""
        return len(self.op)


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """Splits a DSA strategy such as ``"color_crop_cutout_flip_scale_rotate"`` into names of operations.

    Raises:
        ValueError: if the strategy is empty, names an unknown operation, or names one twice.
    """
    if not strategy:
        raise ValueError(f"a DSA strategy names at least one operation, joined by '_', out of {', '.join(OPERATIONS)}")
    names = tuple(strategy.split("_"))
    for name in names:
        if name not in OPERATIONS:
            known = f"known are {', '.join(OPERATIONS)}{near(name, OPERATIONS)}"
            raise ValueError(f"unknown DSA operation {name!r} in {strategy!r}, {known}")
    if len(set(names)) < len(names):
        raise ValueError(f"the DSA strategy {strategy!r} names an operation twice; name each once")
    return names


def sample(strategy: str | Sequence[str], groups: int, generator: torch.Generator, *, shared_op: bool = False) -> Draws:
    """Draws an operation, uniformly out of the strategy's, and its parameters for every group.

    Args:
        strategy: names of operations, as a tuple or joined by ``_``.
        groups: G, the number of classes (Siamese form) or of images (evaluation form).
        generator: the source of randomness, on the CPU.
        shared_op: draw one operation for all groups, while parameters stay independent: the evaluation form.

    Returns:
        Draws of G groups.

    Raises:
        ValueError: for a wrong strategy, fewer than one group, or a generator on another device.
    """
    names = parse_strategy(strategy if isinstance(strategy, str) else "_".join(strategy))
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if generator.device.type != "cpu":
        raise ValueError(f"DSA draws on the CPU, got a generator on {generator.device}; pass torch.Generator('cpu')")
    choice = torch.randint(len(names), (1 if shared_op else groups,), generator=generator)
    op = torch.tensor([OPERATIONS.index(name) for name in names])[choice]
    return Draws(op.repeat(groups) if shared_op else op, torch.rand(groups, 3, generator=generator))


def apply(images: Tensor, draws: Draws, group: Tensor | None = None) -> Tensor:
    """Transforms every image by the draw of its group; differentiable in the images.

    Args:
        images: [B, K, H, H], floating point, normalised (0 is the mean colour). Half precision is computed in float32.
        draws: one draw a group.
        group: [B] int64, the group of each image, kept on the CPU (a GPU tensor costs a wait for the GPU);
            ``None`` where image b has draw b.

    Returns:
        [B, K, H, H] in the images' dtype, device and memory format.

    Raises:
        ValueError: if the images are not square, not floating point or none, or ``group`` does not fit.
    """
    group = None if group is None else group.cpu()
    _check(images, draws, group)
    keep = torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    work = images.to(torch.promote_types(images.dtype, torch.float32))
    op, u = (draws.op, draws.u) if group is None else (draws.op[group], draws.u[group])  # [B], [B, 3]

    order = op.argsort(stable=True)  # [B], images of one operation beside each other
    counts = op.bincount(minlength=len(OPERATIONS)).tolist()
    present = [index for index, count in enumerate(counts) if count]
    if len(present) == 1:
        out = _TRANSFORMS[present[0]](work, _to_device(u.to(work.dtype), images.device))
    else:
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))  # [B]
        order_and_inverse = _to_device(torch.stack([order, inverse]), images.device)  # [2, B]
        uniforms = _to_device(u[order].to(work.dtype), images.device).split(counts)  # [B_i, 3] each
        parts = _take(work, order_and_inverse[0]).split(counts)  # [B_i, K, H, H] each
        done = [_TRANSFORMS[i](parts[i], uniforms[i]).contiguous(memory_format=keep) for i in present]
        out = _take(torch.cat(done), order_and_inverse[1])  # [B, K, H, H]
    return out.to(images.dtype).contiguous(memory_format=keep)


def apply_everywhere(images: Tensor, op: Tensor, u: Tensor, operations: Sequence[str] = OPERATIONS) -> Tensor:
    """The same as `apply`, with shapes that do not depend on the draws and no wait for the device.

    Every operation transforms every image, and each image takes the one that was drawn for it: more arithmetic, but a
    sequence of kernels that can be recorded once and replayed (a CUDA graph).

    Args:
        images: [B, K, H, H], float32 or float64, normalised.
        op: int64 [B], indices into ``OPERATIONS``, on the images' device.
        u: [B, 3], on the images' device.
        operations: those that can be drawn.

    Returns:
        [B, K, H, H] in the images' memory format.
    """
    keep = torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    out, u = images, u.to(images.dtype)
    for name in operations:
        index = OPERATIONS.index(name)
        out = torch.where((op == index)[:, None, None, None], _TRANSFORMS[index](images, u), out)
    return out.contiguous(memory_format=keep)


def _check(images: Tensor, draws: Draws, group: Tensor | None) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3] or not images.numel():
        raise ValueError(f"DSA transforms square images [B, K, H, H], at least one, got {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"DSA transforms normalised floating-point images, got {images.dtype}; normalise them first")
    if group is None:
        if len(images) != len(draws):
            raise ValueError(f"{len(images)} images but {len(draws)} draws; pass group, the draw of each image")
    elif group.shape != images.shape[:1] or group.dtype != torch.int64:
        raise ValueError(
            f"group must be int64 [{len(images)}], one entry an image, got {list(group.shape)} of {group.dtype}"
        )
    elif group.min() < 0 or group.max() >= len(draws):
        raise ValueError(
            f"group must lie in [0, {len(draws)}), one of the draws, got {group.min().item()} to {group.max().item()}"
        )


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # CUDA stages a small copy before it returns, so that it need not wait for the work that is queued.
    return tensor.to(device, non_blocking=device.type == "cuda")


def _take(images: Tensor, index: Tensor) -> Tensor:
    """``images.index_select(0, index)``, copying whole images, in either memory format (index_select loses it)."""
    if _is_channels_last(images):
        return _take(images.permute(0, 2, 3, 1), index).permute(0, 3, 1, 2)
    return images.flatten(1).index_select(0, index).unflatten(1, images.shape[1:])


def _color(images: Tensor, u: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast, folded into one map a pixel (equal up to rounding).

    With shift b, factors s and c, and of the input x the mean m over channels at each pixel and the mean M of the
    image: brightness gives x + b; saturation about the mean over channels gives s (x - m) + m + b, which leaves the
    mean of the image at M + b; contrast about that gives c s x + c (1 - s) m + (1 - c) M + b.
    """
    shift, saturation, contrast = u[:, :, None, None, None].unbind(1)  # [B, 1, 1, 1] each
    shift, saturation, contrast = (shift - 0.5) * BRIGHTNESS, saturation * SATURATION, contrast + CONTRAST
    gray = images.mean(1, keepdim=True)  # [B, 1, H, H]
    level = (1 - contrast) * gray.mean((2, 3), keepdim=True) + shift  # [B, 1, 1, 1]
    return torch.addcmul(torch.addcmul(level, contrast * (1 - saturation), gray), contrast * saturation, images)


def _crop(images: Tensor, u: Tensor) -> Tensor:
    """Shifts by whole pixels, zeros from outside: out[i, j] = images[i + dy, j + dx]."""
    side = images.shape[-1]
    largest = int(CROP * side + 0.5)
    dy, dx = ((u[:, :2] * (2 * largest + 1)).floor() - largest).unbind(1)
    one, zero = torch.ones_like(dx), torch.zeros_like(dx)
    # Affine coordinates run over 2 across the side. Nearest-pixel sampling makes whole shifts exact.
    return _warp(images, [[one, zero, dx * (2 / side)], [zero, one, dy * (2 / side)]], mode="nearest")


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    """Sets a square to 0; its centre lies anywhere in the image, and what sticks out is cut off."""
    side = images.shape[-1]
    size = int(CUTOUT * side + 0.5)
    # An even square has its centre on a corner between pixels, of which there is one more than pixels.
    first = (u[:, :2] * (side + 1 - size % 2)).floor() - size // 2
    offset = torch.arange(side, dtype=u.dtype, device=u.device) - first[:, :, None]  # [B, 2, H]
    rows, columns = ((offset >= 0) & (offset < size)).unbind(1)  # [B, H] each
    return images * ~(rows[:, :, None] & columns[:, None, :])[:, None]


def _flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirrors left and right with probability 1/2."""
    return torch.where(u[:, :1, None, None] < FLIP, images.flip(3), images)


def _scale(images: Tensor, u: Tensor) -> Tensor:
    """Scales width (by the first number) and height (by the second) independently; a factor above 1 shrinks."""
    sx, sy = (u[:, :2] * (SCALE - 1 / SCALE) + 1 / SCALE).unbind(1)
    zero = torch.zeros_like(sx)
    return _warp(images, [[sx, zero, zero], [zero, sy, zero]], mode="bilinear")


def _rotate(images: Tensor, u: Tensor) -> Tensor:
    """Rotates about the centre."""
    angle = (u[:, 0] - 0.5) * 2 * math.radians(ROTATE)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warp(images, [[cos, -sin, zero], [sin, cos, zero]], mode="bilinear")


def _warp(images: Tensor, matrix: list[list[Tensor]], mode: str) -> Tensor:
    """Samples the images at affinely mapped positions; zeros outside. ``matrix`` is 2 x 3 of [B] each.

    The same as ``affine_grid`` with ``align_corners=False`` and ``grid_sample``, but for the grid not being a matrix
    product, which a GPU may round to TF32 (an error of hundredths of a pixel).
    """
    side = images.shape[-1]
    position = (2 * torch.arange(side, dtype=images.dtype, device=images.device) + 1) / side - 1
    (xx, xy, x0), (yx, yy, y0) = ([entry[:, None, None] for entry in row] for row in matrix)
    columns, rows = position, position[:, None]
    grid = torch.stack([xx * columns + xy * rows + x0, yx * columns + yy * rows + y0], -1)  # [B, H, H, 2]
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


_TRANSFORMS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_color, _crop, _cutout, _flip, _scale, _rotate)
