"""Images in a grid, each in its own pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from iidlib.plots.style import WIDTH, panels, styled

__all__ = ["PIXELS_PER_INCH", "image_grid"]

PIXELS_PER_INCH = 60
"""Of images in a grid, at most: two thirds larger than their pixels on a screen."""


def image_grid(
    images: Any,
    *,
    columns: int,
    row_labels: Sequence[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Images in rows and columns, in the order in which they come.

    Args:
        images: [B, K, H, W] with K of 1 or 3, array or tensor: uint8, or floating point in [0, 1].
        columns: images a row; the last row may be shorter.
        row_labels: names of the rows, written at their left.
        title: above the grid.
        ax: where to draw.

    Raises:
        ValueError: for another shape, values out of range (normalised images must be denormalised first), or more
            labels than rows.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not len(pixels):
        raise ValueError(f"image_grid takes images [B, 1 or 3, H, W], at least one, got {list(pixels.shape)}")
    if pixels.dtype != np.uint8:
        if not (np.issubdtype(pixels.dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"image_grid takes uint8 or [0, 1], got {pixels.dtype} from {pixels.min():.3g} to {pixels.max():.3g}; "
                "denormalise the images first"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    rows = -(-len(pixels) // columns)
    if len(row_labels) > rows:
        raise ValueError(f"{len(row_labels)} labels for {rows} rows of images")
    gap, (height, width) = 2, pixels.shape[2:]
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    with styled():
        if ax is None:
            high, wide = (side / max(PIXELS_PER_INCH, canvas.shape[1] / WIDTH) for side in canvas.shape[:2])
            ax = panels(width=min(WIDTH, wide + 1), height=high)[0]
        ax.imshow(canvas)
        ax.set_xticks([])
        ax.set_yticks([row * (height + gap) + height / 2 for row in range(len(row_labels))], row_labels)
        ax.tick_params(length=0)
        sns.despine(ax=ax, left=True, bottom=True)
        ax.set_title(title)
    return ax
