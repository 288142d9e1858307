"""Style of all figures: a colour for each label and panels of one size, without changing global settings."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iidlib.errors import InputError

__all__ = ["DPI", "LONGEST_NAME", "WIDTH", "colours", "log_limits", "needs_rows", "panels", "shortened", "styled"]

DPI = 100
"""Resolution for screens, which keeps notebooks small."""


WIDTH = 7.2
"""Width of a figure in inches, slightly more than the book's column."""


LONGEST_NAME = 28
"""Maximum characters of a name next to a figure; longer ones, such as folders, would leave it no room."""


_PALETTE = sns.color_palette("colorblind").as_hex()


_FIXED = {
    "real": "#6b6b6b",
    "random": "#6b6b6b",
    "loop": "#6b6b6b",
    "ours": _PALETTE[0],
    "dm": _PALETTE[0],
    "dm-cm": _PALETTE[2],
    "dm-cc": _PALETTE[4],
    "iid-dm": _PALETTE[1],
    "random-mosaic": "#a8a8a8",
    "idm": _PALETTE[9],
    "iid-idm": _PALETTE[3],
    "iid-plus": "#0b5d4b",
}


_SPARE = [_PALETTE[5], "#3b3b8f", "#5c1a1b"]  # dark enough for lines, and distinct from the palette


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, as ``#rrggbb``: fixed ones for the book's methods, spare ones for others."""
    others = [label for label in dict.fromkeys(labels) if label not in _FIXED]
    spare = {label: _SPARE[i % len(_SPARE)] for i, label in enumerate(others)}
    return {label: _FIXED.get(label) or spare[label] for label in labels}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Applies the style of all figures within the block, without changing global settings."""
    look: dict[Any, Any] = dict(sns.axes_style("ticks"))
    look |= {"font.size": 10, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False}
    with rc_context(look):
        yield


def panels(columns: int = 1, *, height: float = 3.4, width: float = WIDTH) -> list[Axes]:
    """Axes side by side in a new figure, not registered with pyplot, so that only `show` displays it.

    Args:
        columns: number of axes.
        height: height of the figure in inches.
        width: width of the figure in inches.
    """
    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        return list(figure.subplots(1, columns, squeeze=False)[0])


def shortened(name: str) -> str:
    """A name for a figure: cut in the middle if it is long, with ``$`` escaped.

    >>> shortened("Canis lupus familiaris, short-haired, brown")
    'Canis lupus fa…haired, brown'
    """
    half = LONGEST_NAME // 2
    lines = str(name).split("\n")
    lines = [line if len(line) <= LONGEST_NAME else f"{line[:half]}…{line[1 - half :]}" for line in lines]
    # text between two $ is mathematics, and a legend skips names that begin with _
    return ("" if lines[0][:1] != "_" else " ") + "\n".join(lines).replace("$", r"\$")


def needs_rows(figure: str, rows: pd.DataFrame) -> None:
    """Refuses to draw an empty figure.

    Raises:
        InputError: if there are no rows.
    """
    if rows.empty:
        raise InputError(f"{figure} needs rows, got none")


def log_limits(values: pd.Series) -> tuple[float, float]:
    """Limits of a logarithmic axis that contain all values it can show."""
    drawn = [value for value in values if 0 < value < math.inf] or [1.0]
    return 0.7 * float(min(drawn)), 1.4 * float(max(drawn))
