"""Pictures of more than 8 bits: the values shown as black and white, determined once per dataset.

A file with 16 bits per pixel does not record how many of them a camera used, and one with floating-point numbers
records no range at all. With a range per picture, the same value would be dark in one and bright in the next. The range
is therefore derived from the values in all files of a dataset, or given by the user.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Found", "Scale", "ValueRange", "rows_of", "to_bytes", "wide"]

ValueRange = tuple[float, float]
"""Values shown as black and white."""

BITS = (8, 10, 12, 14, 16)
"""Bit depths of cameras and scanners."""

AT_ONCE = 1 << 20
"""Pixels that are converted at a time, in double precision."""


@dataclass(frozen=True)
class Found:
    """Range and kind of the values in a picture of more than 8 bits."""

    floating: bool
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """Values of black and white in the pictures of a dataset with more than 8 bits.

    Whole numbers and floating-point numbers have separate scales, even if a dataset has both.
    """

    whole: ValueRange | None = None
    floating: ValueRange | None = None

    @classmethod
    def of(cls, found: list[Found], given: ValueRange | None = None) -> "Scale":
        """Returns the scale for pictures with these values, or the range that the user gave for all of them."""
        return cls(
            *(_range_of([one for one in found if one.floating is floating], given) for floating in (False, True))
        )

    def range_for(self, found: Found) -> ValueRange:
        """Returns the values of black and white for a picture.

        Raises:
            ValueError: if the scale was determined without pictures of its kind.
        """
        values = self.floating if found.floating else self.whole
        if values is None:
            raise ValueError("no range for values of this kind")
        return values

    @property
    def text(self) -> str:
        """The ranges in the format of ``range=``, such as ``0,4095`` or ``0,1 (floating point)``; empty for none."""
        both = {"": self.whole, " (floating point)": self.floating}
        return " and ".join(f"{values[0]:.9g},{values[1]:.9g}{kind}" for kind, values in both.items() if values)

    def __str__(self) -> str:
        both = {"": self.whole, " (floating point)": self.floating}
        return " and ".join(
            f"{values[0]:.9g} is black and {values[1]:.9g} is white{kind}" for kind, values in both.items() if values
        )


def wide(mode: str) -> bool:
    """Whether pictures of this Pillow mode have one channel with more than 8 bits per pixel."""
    return mode.startswith("I") or mode == "F"


def _range_of(found: list[Found], given: ValueRange | None) -> ValueRange | None:
    if not found or given is not None:
        return given if found else None
    low, high = min(one.low for one in found), max(one.high for one in found)
    guess = _floating_range(low, high) if found[0].floating else _whole_range(low, high)
    return guess if guess[0] < guess[1] else (guess[0], guess[0] + 1)  # all pictures are of one value


def _whole_range(low: float, high: float) -> ValueRange:
    """Returns the range of the smallest standard depth that fits; signed and larger values have no standard range."""
    if low >= 0:
        for bits in BITS:
            if high < 1 << bits:
                return 0.0, float((1 << bits) - 1)
    return min(low, 0.0), high


def _floating_range(low: float, high: float) -> ValueRange:
    """Returns a conventional range that the values fit, up to a tenth of overshoot by interpolation, or their own."""
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
    """Returns slices of rows that together cover an array [H, W], each with a limited number of pixels."""
    step = max(1, AT_ONCE // max(1, values.shape[1]))
    return (slice(start, start + step) for start in range(0, len(values), step))


def to_bytes(values: np.ndarray, scale: ValueRange) -> np.ndarray:
    """Converts values [H, W] of any type to uint8 [H, W], with black as 0 and white as 255; clips the rest."""
    (black, white), shown = scale, np.empty(values.shape, np.uint8)
    for rows in rows_of(values):
        shown[rows] = ((values[rows].astype(np.float64) - black) / (white - black) * 255).clip(0, 255).round()
    return shown
