"""Pictures of more than 8 bits: which of their values is shown black and which white, decided once for a dataset.

A file with 16 bits per pixel does not say how many of them a camera filled, and one with floating-point numbers says
nothing at all. Decided per picture, the same value would be dark in one and bright in the next; so the values found in
all files of a dataset decide together, or the user does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Found", "Scale", "ValueRange", "rows_of", "to_bytes", "wide"]

ValueRange = tuple[float, float]
"""The values that are shown black and white."""

BITS = (8, 10, 12, 14, 16)
"""Depths of cameras and scanners."""

AT_ONCE = 1 << 20
"""Pixels that are converted at a time, in double precision."""


@dataclass(frozen=True)
class Found:
    """What values a picture of more than 8 bits holds."""

    floating: bool
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """What is black and what is white in the pictures of a dataset that have more than 8 bits.

    Whole numbers and floating-point numbers are different scales, also where a dataset has both.
    """

    whole: ValueRange | None = None
    floating: ValueRange | None = None

    @classmethod
    def of(cls, found: list[Found], given: ValueRange | None = None) -> "Scale":
        """The scale for pictures with these values; `given` is what the user says and holds for all of them."""
        return cls(
            *(_range_of([one for one in found if one.floating is floating], given) for floating in (False, True))
        )

    def range_for(self, found: Found) -> ValueRange:
        """Black and white of a picture.

        Raises:
            ValueError: if the scale was decided without pictures of its kind.
        """
        values = self.floating if found.floating else self.whole
        if values is None:
            raise ValueError("no range for values of this kind")
        return values

    @property
    def text(self) -> str:
        """The ranges as ``range=`` takes them: ``0,4095``, or ``0,1 (floating point)``, or both; empty for none."""
        both = {"": self.whole, " (floating point)": self.floating}
        return " and ".join(f"{values[0]:.9g},{values[1]:.9g}{kind}" for kind, values in both.items() if values)

    def __str__(self) -> str:
        both = {"": self.whole, " (floating point)": self.floating}
        return " and ".join(
            f"{values[0]:.9g} is black and {values[1]:.9g} is white{kind}" for kind, values in both.items() if values
        )


def wide(mode: str) -> bool:
    """Whether a picture of this mode of Pillow's has more than 8 bits per pixel and one channel."""
    return mode.startswith("I") or mode == "F"


def _range_of(found: list[Found], given: ValueRange | None) -> ValueRange | None:
    if not found or given is not None:
        return given if found else None
    low, high = min(one.low for one in found), max(one.high for one in found)
    guess = _floating_range(low, high) if found[0].floating else _whole_range(low, high)
    return guess if guess[0] < guess[1] else (guess[0], guess[0] + 1)  # all pictures are of one value


def _whole_range(low: float, high: float) -> ValueRange:
    """That of the smallest usual depth; signed numbers and larger ones (tomography, sums) have no usual range."""
    if low >= 0:
        for bits in BITS:
            if high < 1 << bits:
                return 0.0, float((1 << bits) - 1)
    return min(low, 0.0), high


def _floating_range(low: float, high: float) -> ValueRange:
    """That of a convention that the values fit, with a tenth to spare as interpolation overshoots; else their own."""
    for black, white in ((0.0, 1.0), (-1.0, 1.0)):
        spare = (white - black) / 10
        if black - spare <= low and high <= white + spare:
            return black, white
    for bits in BITS:
        white = float((1 << bits) - 1)
        if -white / 50 <= low and white / 2 < high <= white * 1.02:
            return 0.0, white
    return low, high


def rows_of(values: np.ndarray) -> Iterator[slice]:
    """Slices of rows that together make up an array [H, W], each of a bearable number of pixels."""
    step = max(1, AT_ONCE // max(1, values.shape[1]))
    return (slice(start, start + step) for start in range(0, len(values), step))


def to_bytes(values: np.ndarray, scale: ValueRange) -> np.ndarray:
    """Values [H, W] of any type as uint8 [H, W]: black is 0 and white is 255; what lies beyond is cut off."""
    (black, white), shown = scale, np.empty(values.shape, np.uint8)
    for rows in rows_of(values):
        shown[rows] = ((values[rows].astype(np.float64) - black) / (white - black) * 255).clip(0, 255).round()
    return shown
