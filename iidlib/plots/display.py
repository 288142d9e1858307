"""Display of figures in a notebook, with alt text that states the finding, and animations."""

import base64
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from iidlib.plots.images import image_grid
from iidlib.plots.style import DPI, styled

__all__ = ["SHORTEST_ALT", "animate", "show"]

SHORTEST_ALT = 15
"""Characters of the shortest alt text that can state a finding."""


_shown: dict[str, tuple[str, int]] = {}


def show(figure: Figure | Axes | Sequence[Axes], alt: str) -> None:
    """Displays a figure in a notebook, with alt text, and closes it.

    Readers who do not see the picture get the alt text, in JupyterLab, in the HTML book and in an exported report. Two
    figures must not have the same alt text; running a cell again is allowed.

    Args:
        figure: the figure, or axes in it.
        alt: the finding, such as "distilled images reach 37 % and random real ones 28 %".

    Raises:
        ValueError: if the alt text is missing, too short to state a finding, or used by another figure.
    """
    alt, cell = _finding(alt, sys._getframe(1).f_code.co_filename)
    if not isinstance(figure, Figure):
        owner = (figure if isinstance(figure, Axes) else figure[0]).get_figure()
        assert isinstance(owner, Figure)
        figure = owner
    picture = io.BytesIO()
    with styled():
        figure.savefig(picture, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05, facecolor="white")
    picture = slimmed(picture)
    # a figure of pyplot would be displayed again at the end of the cell
    pyplot.close(figure)
    _display(picture.getvalue(), alt, cell)


def animate(
    pictures: Mapping[str, Any], alt: str, *, columns: int | None = None, seconds: float = 0.7, rounds: int = 2
) -> None:
    """Displays images as an animated PNG, with alt text.

    It stops on the last picture after a few rounds, so that it does not distract from the text for long. In print, and
    where animation is not supported, the first picture is shown.

    Args:
        pictures: inputs of `image_grid` of equal shape by their titles, in order; two or more.
        alt: the finding, as for `show`.
        columns: images per row, for flat lists of images.
        seconds: duration of each picture; the last one stays three times as long.
        rounds: number of repetitions.

    Raises:
        ValueError: if there are fewer than two pictures, or `image_grid` or `show` would reject the arguments.
    """
    if len(pictures) < 2:
        raise ValueError(f"an animation needs two or more pictures, got {len(pictures)}")
    alt, cell = _finding(alt, sys._getframe(1).f_code.co_filename)
    frames = []
    for title, images in pictures.items():
        picture = io.BytesIO()
        figure = image_grid(images, columns=columns, title=title).get_figure()
        assert isinstance(figure, Figure)
        with styled():
            figure.savefig(picture, format="png", dpi=DPI, facecolor="white")
        frames.append(Image.open(slimmed(picture)))
    moving, milliseconds = io.BytesIO(), [round(1000 * seconds)] * len(frames)
    milliseconds[-1] *= 3
    frames[0].save(
        moving, format="png", save_all=True, append_images=frames[1:], duration=milliseconds, loop=rounds, optimize=True
    )
    _display(moving.getvalue(), alt, cell)


def _finding(alt: str, code: str) -> tuple[str, tuple[str, int]]:
    """Alt text on one line and the cell that shows it; refuses text that is too short or used by another figure."""
    alt = " ".join(alt.split())
    if len(alt) < SHORTEST_ALT or " " not in alt:
        raise ValueError(f"alt text must state the finding in at least {SHORTEST_ALT} characters, got {alt!r}")
    cell, execution = _running_cell(code)
    before = _shown.get(alt)
    if before is not None and (before[0] != cell or before[1] == execution):
        raise ValueError(f"this alt text is already that of another figure: {alt!r}; describe what this one shows")
    return alt, (cell, execution)


def _display(png: bytes, alt: str, cell: tuple[str, int]) -> None:
    from IPython.display import display  # available in notebooks only

    content = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(content, raw=True, metadata={"image/png": {"alt": alt}})
    _shown[alt] = cell


def slimmed(picture: io.BytesIO) -> io.BytesIO:
    """A PNG with six bits per channel: photographs shrink by a third, without a visible difference."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    coarse = np.where(pixels > 252, 255, (pixels + 2) & 0b11111100).astype(np.uint8)
    slim = io.BytesIO()
    Image.fromarray(coarse).save(slim, format="png", optimize=True)
    return slim


def _running_cell(code: str) -> tuple[str, int]:
    """The running notebook cell and the number of its execution.

    JupyterLab identifies the cell; elsewhere the file that the kernel creates for the cell's code does.
    """
    from IPython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return code, 0
    kernel = getattr(shell, "kernel", None)
    metadata = kernel.get_parent("shell").get("metadata", {}) if kernel else {}
    return metadata.get("cellId") or code, shell.execution_count
