"""How training ended, where the accuracy does not show it: networks with meaningless outputs, images far out of range.

A network that has diverged assigns all images to one class and scores at chance, so that a table of such networks shows
a clean ``10.0 ± 0.0``. Each row of results therefore records its network's outcome.
"""

from typing import Literal

import torch
from torch import Tensor

from iidlib.data import DatasetSpec

__all__ = ["OUT_OF_RANGE", "RUN_AWAY", "Outcome", "Outputs", "outcome_of", "range_exceeded"]

Outcome = Literal["trained", "diverged", "constant", "out of range"]
"""``diverged``: some output is not finite, or exceeds ``RUN_AWAY``; ``constant``: all test images give the same
outputs; ``out of range``: trained, on images far outside the range of pictures."""

OUT_OF_RANGE = 100.0
"""Factor by which a set's images must exceed the values of any picture to be reported: two orders of magnitude, so that
images which learning has merely pushed out of the range of pictures are not."""

RUN_AWAY = 1e6
"""Magnitude of weights and outputs above which a network counts as diverged, even if they are finite: orders of
magnitude beyond the logits of any network that a softmax can train."""

_SAME = 1e-5
"""Relative difference of outputs up to which they count as equal: rounding."""


class Outputs:
    """Running summary of a network's outputs on many images, added chunk by chunk."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._count = 0

    def add(self, logits: Tensor) -> None:
        """Adds the outputs [b, C] of some images; does not wait for the device."""
        # a NaN propagates into both
        low, high = logits.amin(0), logits.amax(0)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)
        self._count += len(logits)

    @property
    def outcome(self) -> Outcome:
        """Outcome of the training; a single image can only show that the network diverged."""
        if self._low is None or self._high is None:
            return "trained"
        return outcome_of(self._low, self._high, self._count)


def outcome_of(low: Tensor, high: Tensor, images: int) -> Outcome:
    """Outcome of the training of a network, from the range of its outputs.

    Args:
        low: smallest output of each class over the images, [C]; NaN if one is NaN.
        high: largest output of each class, [C]; likewise.
        images: number of images; a single one can only show that the network diverged.
    """
    largest = float(torch.maximum(low.abs(), high.abs()).max())
    if not largest < RUN_AWAY:
        return "diverged"
    same = float((high - low).max()) <= _SAME * largest
    return "constant" if same and images > 1 else "trained"


def range_exceeded(images: Tensor, spec: DatasetSpec) -> tuple[float, float] | None:
    """Checks whether normalised images lie orders of magnitude beyond any picture.

    Args:
        images: normalised, [B, K, H, W].
        spec: gives the mean and standard deviation.

    Returns:
        The largest magnitude among their values, and among those of pictures (pixels from 0 to 1); None if the former
        is less than ``OUT_OF_RANGE`` times the latter.
    """
    widest = max(max(mean, 1 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    largest = float(images.detach().abs().max()) if images.numel() else 0.0
    return (largest, widest) if not largest < OUT_OF_RANGE * widest else None
