"""Differentiable Siamese augmentation (DSA): one random transform per class for its real and synthetic images.

Distribution matching compares the features of real and synthetic images. If both sides go through the *same* random
transform (Siamese), they are compared under that transform, and the gradient flows through it to the synthetic pixels,
so the images adapt to the augmentation. Each call draws **one** of the six operations for each class, with one set of
parameters.

Two modes of use:

- *Siamese*, for distillation: a group is a class. ``sample(strategy, C, generator)`` draws once per class, and
  ``apply`` is called on the real and on the synthetic images with the same draws; ``group`` holds the class of each
  image.
- *Evaluation*, for training a network: a group is an image. ``sample(strategy, B, generator, shared_op=True)`` draws
  one operation for the mini-batch and separate parameters for each image.

All classes are transformed in one call: images are sorted by operation, each operation runs once on its images, and
the original order is restored. A draw is an operation index and three uniform numbers, whatever the operation. So
draws have a fixed shape, live on the CPU (choosing an operation never waits for a GPU) and do not depend on the image
size; ``apply`` interprets the numbers.

Source: Zhao and Bilen, *Dataset Condensation with Differentiable Siamese Augmentation*, ICML 2021 (arXiv 2102.08259),
with the constants of the released code. Two differences: classes draw independently, while the released code seeds each
draw with the millisecond clock, so that classes handled within one millisecond share a transform; and a batch may hold
any number of groups, while the released code transforms one class per call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iidlib.errors import near
from iidlib.resampling import warp

__all__ = [
    "OPERATIONS",
    "Draws",
    "apply",
    "apply_everywhere",
    "cutout_side",
    "largest_shift",
    "parse_strategy",
    "sample",
]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""Names of the operations, in the order of ``Draws.op``."""

# All operations act on normalised images, where 0 is the dataset's mean colour.
BRIGHTNESS = 1.0  # width of the shift's range in standard deviations: +-0.5
SATURATION = 2.0  # the factor's range is [0, 2)
CONTRAST = 0.5  # the factor's range is [0.5, 1.5)
CROP = 0.125  # largest shift, as a fraction of the side
CUTOUT = 0.5  # side of the square, as a fraction of the image's side
FLIP = 0.5  # probability
SCALE = 1.2  # the factor's range is [1/1.2, 1.2)
ROTATE = 15.0  # largest angle, in degrees


@dataclass(frozen=True, eq=False)
class Draws:
    """Random operations and their parameters, one draw per group (G groups).

    Attributes:
        op: [G] int64, indices into ``OPERATIONS``, on the CPU.
        u: [G, 3] float, uniform in [0, 1), on the CPU; an operation uses the first one, two or three columns.

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
        """Number of groups, G."""
        return len(self.op)


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """Splits a DSA strategy such as ``"color_crop_cutout_flip_scale_rotate"`` into operation names.

    Raises:
        ValueError: if the strategy is empty, names an unknown operation, or names one twice.
    """
    if not strategy:
        raise ValueError(
            f"a DSA strategy needs at least one operation out of {', '.join(OPERATIONS)}, joined by '_'; it is empty"
        )
    names = tuple(strategy.split("_"))
    for name in names:
        if name not in OPERATIONS:
            known = f"known are {', '.join(OPERATIONS)}{near(name, OPERATIONS)}"
            raise ValueError(f"unknown DSA operation {name!r} in {strategy!r}, {known}")
    if len(set(names)) < len(names):
        raise ValueError(f"the DSA strategy {strategy!r} names an operation twice; name each once")
    return names


def sample(strategy: str | Sequence[str], groups: int, generator: torch.Generator, *, shared_op: bool = False) -> Draws:
    """Draws one of the strategy's operations (uniformly) and its parameters for every group.

    Args:
        strategy: operation names, as a sequence or joined by ``_``.
        groups: number G of classes (Siamese mode) or of images (evaluation mode).
        generator: random generator on the CPU.
        shared_op: draw one operation for all groups, with independent parameters (evaluation mode).

    Returns:
        Draws of G groups.

    Raises:
        ValueError: if the strategy is invalid, groups is below 1, or the generator is not on the CPU.
    """
    names = parse_strategy(strategy if isinstance(strategy, str) else "_".join(strategy))
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if generator.device.type != "cpu":
        raise ValueError(f"DSA draws on the CPU, got a generator on {generator.device}; pass torch.Generator('cpu')")
    choice = torch.randint(len(names), (1 if shared_op else groups,), generator=generator)  # [1] or [G]
    op = torch.tensor([OPERATIONS.index(name) for name in names])[choice]  # [1] or [G]
    return Draws(op.repeat(groups) if shared_op else op, torch.rand(groups, 3, generator=generator))


def apply(images: Tensor, draws: Draws, group: Tensor | None = None) -> Tensor:
    """Transforms each image by the draw of its group; differentiable with respect to the images.

    Explained in chapter 02.

    Args:
        images: [B, K, H, H], floating point, normalised (0 is the mean colour). Half precision is computed in float32.
        draws: one draw per group.
        group: [B] int64, the group of each image, best kept on the CPU (a GPU tensor forces a synchronisation);
            None if image b uses draw b.

    Returns:
        [B, K, H, H] with the images' dtype, device and memory format.

    Raises:
        ValueError: if the images are empty, not square or not floating point, or `group` does not match them.
    """
    group = None if group is None else group.cpu()
    _check(images, draws, group)
    keep = torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    work = images.to(torch.promote_types(images.dtype, torch.float32))  # [B, K, H, H]
    op, u = (draws.op, draws.u) if group is None else (draws.op[group], draws.u[group])  # [B], [B, 3]

    order = op.argsort(stable=True)  # [B], groups the images by operation
    counts = op.bincount(minlength=len(OPERATIONS)).tolist()
    present = [index for index, count in enumerate(counts) if count]
    if len(present) == 1:
        out = _TRANSFORMS[present[0]](work, _to_device(u.to(work.dtype), images.device))  # [B, K, H, H]
    else:
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))  # [B]
        order_and_inverse = _to_device(torch.stack([order, inverse]), images.device)  # [2, B]
        uniforms = _to_device(u[order].to(work.dtype), images.device).split(counts)  # [B_i, 3] each
        parts = _take(work, order_and_inverse[0]).split(counts)  # [B_i, K, H, H] each
        transformed = [_TRANSFORMS[i](parts[i], uniforms[i]).contiguous(memory_format=keep) for i in present]
        out = _take(torch.cat(transformed), order_and_inverse[1])  # [B, K, H, H]
    return out.to(images.dtype).contiguous(memory_format=keep)


def apply_everywhere(images: Tensor, op: Tensor, u: Tensor, operations: Sequence[str] = OPERATIONS) -> Tensor:
    """Computes `apply` with shapes that do not depend on the draws and without waiting for the device.

    Every operation transforms every image, and each image keeps the result of the operation drawn for it. This costs
    more arithmetic, but the sequence of kernels is fixed and can be recorded as a CUDA graph.

    Args:
        images: [B, K, H, H], float32 or float64, normalised.
        op: int64 [B], indices into ``OPERATIONS``, on the images' device.
        u: [B, 3], on the images' device.
        operations: operations that may occur in `op`.

    Returns:
        [B, K, H, H] with the images' memory format.
    """
    keep = torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    out, u = images, u.to(images.dtype)
    for name in operations:
        index = OPERATIONS.index(name)
        out = torch.where((op == index)[:, None, None, None], _TRANSFORMS[index](images, u), out)  # [B, K, H, H]
    return out.contiguous(memory_format=keep)


def _check(images: Tensor, draws: Draws, group: Tensor | None) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3] or not images.numel():
        raise ValueError(f"DSA transforms at least one square image, [B, K, H, H], got {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"DSA transforms normalised floating-point images, got {images.dtype}; normalise them first")
    if group is None:
        if len(images) != len(draws):
            raise ValueError(f"{len(images)} images but {len(draws)} draws; pass group, the index of each image's draw")
    elif group.shape != images.shape[:1] or group.dtype != torch.int64:
        raise ValueError(
            f"group must be int64 [{len(images)}], one entry per image, got {list(group.shape)} of {group.dtype}"
        )
    elif group.min() < 0 or group.max() >= len(draws):
        raise ValueError(
            f"group must lie in [0, {len(draws)}), an index of a draw, got {group.min().item()} to {group.max().item()}"
        )


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # CUDA stages small copies before it returns, so this does not wait for queued work.
    return tensor.to(device, non_blocking=device.type == "cuda")


def _take(images: Tensor, index: Tensor) -> Tensor:
    """``images.index_select(0, index)`` that keeps the memory format, which index_select does not.

    `index` must be a permutation. The gradient of index_select adds atomically on CUDA, but with a permutation each
    element is added once, to zero, so no order affects its bits.
    """
    if _is_channels_last(images):
        return _take(images.permute(0, 2, 3, 1), index).permute(0, 3, 1, 2)
    return images.flatten(1).index_select(0, index).unflatten(1, images.shape[1:])  # [B, K, H, H]


def largest_shift(side: int) -> int:
    """Largest shift of ``crop`` in pixels, for images of a side."""
    return int(CROP * side + 0.5)


def cutout_side(side: int) -> int:
    """Side in pixels of the square that ``cutout`` sets to zero, for images of a side."""
    return int(CUTOUT * side + 0.5)


def _color(images: Tensor, u: Tensor) -> Tensor:
    """Changes brightness, then saturation, then contrast, as one map per pixel (equal up to rounding).

    Let x be the input, m its mean over channels at each pixel, M the mean of the image, b the shift, and s and c the
    factors. Brightness gives x + b. Saturation about the mean over channels gives s (x - m) + m + b and leaves the
    image's mean at M + b. Contrast about that mean gives c s x + c (1 - s) m + (1 - c) M + b.
    """
    shift, saturation, contrast = u[:, :, None, None, None].unbind(1)  # [B, 1, 1, 1] each
    shift, saturation, contrast = (shift - 0.5) * BRIGHTNESS, saturation * SATURATION, contrast + CONTRAST
    gray = images.mean(1, keepdim=True)  # [B, 1, H, H]
    level = (1 - contrast) * gray.mean((2, 3), keepdim=True) + shift  # [B, 1, 1, 1]
    level = torch.addcmul(level, contrast * (1 - saturation), gray)  # [B, 1, H, H]
    return torch.addcmul(level, contrast * saturation, images)  # [B, K, H, H]


def _crop(images: Tensor, u: Tensor) -> Tensor:
    """Shifts by whole pixels and fills with zeros: out[i, j] = images[i + dy, j + dx]."""
    side = images.shape[-1]
    largest = largest_shift(side)
    dy, dx = ((u[:, :2] * (2 * largest + 1)).floor() - largest).unbind(1)  # [B] each
    one, zero = torch.ones_like(dx), torch.zeros_like(dx)  # [B] each
    # Affine coordinates span 2 across the side. Nearest-pixel sampling makes shifts by whole pixels exact.
    return warp(images, [[one, zero, dx * (2 / side)], [zero, one, dy * (2 / side)]], mode="nearest")


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    """Sets a square to 0; its centre lies anywhere in the image, and the square is clipped at the edges."""
    side = images.shape[-1]
    size = cutout_side(side)
    # A square of even size is centred on a corner of a pixel; each axis has one corner more than pixels.
    first = (u[:, :2] * (side + 1 - size % 2)).floor() - size // 2  # [B, 2]
    offset = torch.arange(side, dtype=u.dtype, device=u.device) - first[:, :, None]  # [B, 2, H]
    rows, columns = ((offset >= 0) & (offset < size)).unbind(1)  # [B, H] each
    return images * ~(rows[:, :, None] & columns[:, None, :])[:, None]  # [B, K, H, H]


def _flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirrors left and right with probability 1/2."""
    return torch.where(u[:, :1, None, None] < FLIP, images.flip(3), images)  # [B, K, H, H]


def _scale(images: Tensor, u: Tensor) -> Tensor:
    """Scales width (first number) and height (second number) independently; a factor above 1 shrinks."""
    sx, sy = (u[:, :2] * (SCALE - 1 / SCALE) + 1 / SCALE).unbind(1)  # [B] each
    zero = torch.zeros_like(sx)  # [B]
    return warp(images, [[sx, zero, zero], [zero, sy, zero]], mode="bilinear")


def _rotate(images: Tensor, u: Tensor) -> Tensor:
    """Rotates about the centre."""
    angle = (u[:, 0] - 0.5) * 2 * math.radians(ROTATE)  # [B]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)  # [B] each
    return warp(images, [[cos, -sin, zero], [sin, cos, zero]], mode="bilinear")


_TRANSFORMS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_color, _crop, _cutout, _flip, _scale, _rotate)
