"""From axes to a notebook: pictures with alt text that states the finding, and animations."""

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
"""Characters; less cannot state a finding."""


_shown: dict[str, tuple[str, int]] = {}


def show(figure: Figure | Axes | Sequence[Axes], alt: str) -> None:
    """Displays a figure in a notebook, with its finding in words, and closes it.

    The words are what a reader without the picture gets, in JupyterLab, in the HTML book and in an exported report.
    The same words for two figures are refused; running a cell once more is not.

    Args:
        figure: the figure, or axes in it.
        alt: the finding, such as "distilled images reach 37 % where random real ones reach 28 %".

    Raises:
        ValueError: for alt text that is missing, too short to state a finding, or that of another figure.
    """
    alt, place = _finding(alt, sys._getframe(1).f_code.co_filename)
    if not isinstance(figure, Figure):
        owner = (figure if isinstance(figure, Axes) else figure[0]).get_figure()
        assert isinstance(owner, Figure)
        figure = owner
    picture = io.BytesIO()
    with styled():
        figure.savefig(picture, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05, facecolor="white")
    picture = slimmed(picture)
    # a figure that came from pyplot would be displayed a second time at the end of the cell
    pyplot.close(figure)
    _display(picture.getvalue(), alt, place)


def animate(
    pictures: Mapping[str, Any], alt: str, *, columns: int | None = None, seconds: float = 0.7, rounds: int = 2
) -> None:
    """Displays images that change, as an animated PNG, with what they show in words.

    It stops on its last picture after a few rounds, so that nothing moves beside the text for long. Where animation is
    not supported, and in print, the first picture is seen.

    Args:
        pictures: what `image_grid` takes, of one shape, by the title of each moment, in order; two or more.
        alt: the finding, as for `show`.
        columns: images per row, where they are not given in rows.
        seconds: for each picture; the last one stays three times as long.
        rounds: how often it is played.

    Raises:
        ValueError: for fewer than two pictures, what `image_grid` refuses, or alt text that `show` would refuse.
    """
    if len(pictures) < 2:
        raise ValueError(f"an animation has two or more pictures, got {len(pictures)}")
    alt, place = _finding(alt, sys._getframe(1).f_code.co_filename)
    frames = []
    for title, images in pictures.items():
        drawn = io.BytesIO()
        figure = image_grid(images, columns=columns, title=title).get_figure()
        assert isinstance(figure, Figure)
        with styled():
            figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
        frames.append(Image.open(slimmed(drawn)))
    moving, milliseconds = io.BytesIO(), [round(1000 * seconds)] * len(frames)
    milliseconds[-1] *= 3
    frames[0].save(
        moving, format="png", save_all=True, append_images=frames[1:], duration=milliseconds, loop=rounds, optimize=True
    )
    _display(moving.getvalue(), alt, place)


def _finding(alt: str, code: str) -> tuple[str, tuple[str, int]]:
    """Alt text in one line, and the cell that shows it; refused where it says nothing, or is that of another figure."""
    alt = " ".join(alt.split())
    if len(alt) < SHORTEST_ALT or " " not in alt:
        raise ValueError(f"alt text must state the finding in at least {SHORTEST_ALT} characters, got {alt!r}")
    cell, execution = _place(code)
    before = _shown.get(alt)
    if before is not None and (before[0] != cell or before[1] == execution):
        raise ValueError(f"this alt text is that of another figure already: {alt!r}; say what this one shows")
    return alt, (cell, execution)


def _display(png: bytes, alt: str, place: tuple[str, int]) -> None:
    from IPython.display import display  # only notebooks have it

    content = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(content, raw=True, metadata={"image/png": {"alt": alt}})
    _shown[alt] = place


def slimmed(picture: io.BytesIO) -> io.BytesIO:
    """A PNG with six bits a channel: photographs take a third less, and no eye sees it."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    coarse = np.where(pixels > 252, 255, (pixels + 2) & 0b11111100).astype(np.uint8)
    slim = io.BytesIO()
    Image.fromarray(coarse).save(slim, format="png", optimize=True)
    return slim


def _place(code: str) -> tuple[str, int]:
    """The notebook cell that runs, and which execution it is.

    JupyterLab names the cell; elsewhere the file that the kernel makes of the cell's code stands for it.
    """
    from IPython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return code, 0
    kernel = getattr(shell, "kernel", None)
    metadata = kernel.get_parent("shell").get("metadata", {}) if kernel else {}
    return metadata.get("cellId") or code, shell.execution_count
