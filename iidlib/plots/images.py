"""Grids of images at their own resolution, given row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from numpy.typing import NDArray

from iidlib.errors import InputError
from iidlib.plots.style import WIDTH, panels, shortened, styled

__all__ = ["PIXELS_PER_INCH", "TALLEST", "as_array", "image_grid"]

PIXELS_PER_INCH = 60
"""Maximum resolution of images in a grid: two thirds larger than their pixels on a screen."""

TALLEST = 100
"""Maximum height of a grid in inches: with a thousand classes the images shrink, so that the figure can be saved."""


def image_grid(
    images: Any,
    *,
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Images in rows and columns.

    Images can be given row by row, such as those of each class, so that a name is next to its images even if classes
    have different numbers of them; shorter rows end in blanks. A flat [B, K, H, W] fills the rows in order; such a grid
    has no names.

    Args:
        images: a sequence of [n, K, H, W], one per row; or rows of equal length as [R, N, K, H, W]; or a flat
            [B, K, H, W]. Arrays or tensors on any device, K is 1 or 3: uint8, or floating point in [0, 1].
        columns: images per row of a flat [B, K, H, W]; the last row may be shorter.
        row_labels: names at the left of the rows, one per row, or none.
        title: title above the grid.
        ax: axes to draw on.

    Raises:
        InputError: if the shape is wrong, values are NaN or out of range (denormalise normalised images first), names
            are given for a flat list of images, or their number is not that of the rows.
    """
    rows = _rows(images, columns, row_labels)
    gap, (height, width) = 2, next(row.shape[2:] for row in rows if len(row))
    longest = max(map(len, rows))
    canvas = np.full((len(rows) * (height + gap) - gap, longest * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    with styled():
        if ax is None:
            scale = max(PIXELS_PER_INCH, canvas.shape[1] / WIDTH, canvas.shape[0] / TALLEST)
            high, wide = (side / scale for side in canvas.shape[:2])
            names = max(1, 0.08 * max((len(shortened(label)) for label in row_labels), default=0) - 0.3)
            # the minimum height leaves room for a single row of small images below its title
            ax = panels(width=min(WIDTH, wide + names), height=max(high, 0.5))[0]
        ax.imshow(canvas)
        ax.set_xticks([])
        middles = [row * (height + gap) + height / 2 for row in range(len(row_labels))]
        ax.set_yticks(middles, [shortened(label) for label in row_labels])
        ax.tick_params(length=0)
        sns.despine(ax=ax, left=True, bottom=True)
        ax.set_title(title)
    return ax


def _rows(images: Any, columns: int | None, labels: Sequence[str]) -> list[NDArray[np.uint8]]:
    """The images of each row, uint8 [n, K, H, W]; rows may be empty, but not all of them."""
    if not hasattr(images, "__len__"):
        raise InputError(f"image_grid takes images [n, 1 or 3, H, W], one array per row, got {images!r}")
    if not len(images):
        raise InputError("image_grid takes at least one image, got none")
    axes = images.ndim if hasattr(images, "ndim") else 1 + np.ndim(images[0])
    if axes == 4:  # a flat [B, K, H, W], or a list of images
        if labels:
            raise InputError(
                f"row_labels need the images of each row: give image_grid a list with one [n, K, H, W] for each of "
                f"the {len(labels)} labels, not a flat list of images"
            )
        if columns is None or columns < 1:
            raise InputError(f"a flat list of {len(images)} images needs columns, at least 1, got {columns}")
        pixels = _pixels(images)
        return [pixels[start : start + columns] for start in range(0, len(pixels), columns)]
    if columns is not None and axes == 5:
        raise InputError(f"columns are for a flat [B, K, H, W]; these are rows of images, got columns={columns}")
    rows = [_pixels(row) for row in images]
    shapes = sorted({row.shape[1:] for row in rows if len(row)})
    if not shapes:
        raise InputError(f"image_grid takes at least one image, got {len(rows)} empty rows")
    if len({shape[1:] for shape in shapes}) > 1:
        raise InputError(f"images of a grid must have one size, got {', '.join(str(list(shape)) for shape in shapes)}")
    if labels and len(labels) != len(rows):
        raise InputError(f"{len(labels)} labels for {len(rows)} rows of images")
    return rows


def _pixels(images: Any) -> NDArray[np.uint8]:
    """Images as uint8 [n, K, H, W] on the CPU."""
    if isinstance(images, list | tuple):
        parts = [as_array(image) for image in images]
        if shapes := sorted({part.shape for part in parts})[1:]:
            raise InputError(f"images of a grid must have one size, got {list(parts[0].shape)} and {list(shapes[0])}")
        images = np.stack(parts) if parts else np.zeros((0, 3, 1, 1), np.uint8)
    pixels = as_array(images)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape[2:]:
        raise InputError(f"image_grid takes images [B, 1 or 3, H, W], at least one, got {list(pixels.shape)}")
    if pixels.dtype == np.uint8 or not len(pixels):
        return pixels.astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"image_grid takes uint8 or floating point in [0, 1], got {pixels.dtype}")
    if not np.isfinite(pixels).all():
        raise InputError("image_grid takes finite values, got NaN or infinity: the run that made the images diverged")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise InputError(
            f"image_grid takes uint8 or [0, 1], got {pixels.dtype} from {low:.3g} to {high:.3g}; "
            "denormalise the images first"
        )
    return np.asarray((pixels * 255).round().astype(np.uint8))


def as_array(values: Any) -> NDArray[Any]:
    """Converts an array, or a tensor of any device, dtype and gradient, to an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # numpy has no bfloat16
    return np.asarray(values)
