"""How a training ended, where an accuracy does not say: networks whose outputs mean nothing, images like no picture.

A network whose weights have run away classifies everything alike, so that it stands at chance, and a table of such
networks shows a clean ``10.0 ± 0.0``. So each row of results says what its network came to.
"""

from typing import Literal

import torch
from torch import Tensor

from iidlib.data import DatasetSpec

__all__ = ["OUT_OF_RANGE", "RUN_AWAY", "Outcome", "Outputs", "range_exceeded"]

Outcome = Literal["trained", "diverged", "constant", "out of range"]
"""``diverged``: some output is not a finite number, or beyond ``RUN_AWAY``; ``constant``: all test images give the same
outputs; ``out of range``: trained, on images that are no pictures."""

OUT_OF_RANGE = 100.0
"""How many times beyond the values of any picture the images of a set lie where that is told: two orders of magnitude,
so that images which learning has merely pushed out of the range of pictures are not."""

RUN_AWAY = 1e6
"""Size of weights and outputs beyond which a network has diverged, though they are still finite: orders of magnitude
beyond the logits of any network that a softmax can train."""

_SAME = 1e-5
"""Differences of outputs, in units of the largest, that are rounding."""


class Outputs:
    """The outputs of a network on many images, seen chunk by chunk."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._count = 0

    def add(self, logits: Tensor) -> None:
        """Takes note of the outputs [b, C] of some images; does not wait for the device."""
        # what is not a number stays so in both
        low, high = logits.amin(0), logits.amax(0)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)
        self._count += len(logits)

    @property
    def outcome(self) -> Outcome:
        """What the network came to; of a single image nothing but that it diverged."""
        if self._low is None or self._high is None:
            return "trained"
        largest = float(torch.maximum(self._low.abs(), self._high.abs()).max())
        if not largest < RUN_AWAY:
            return "diverged"
        same = float((self._high - self._low).max()) <= _SAME * largest
        return "constant" if same and self._count > 1 else "trained"


def range_exceeded(images: Tensor, spec: DatasetSpec) -> tuple[float, float] | None:
    """Whether normalised images lie orders of magnitude beyond any picture.

    Args:
        images: normalised, [B, K, H, W].
        spec: says by what mean and deviation.

    Returns:
        The largest size of a value among them, and among pictures (pixels from 0 to 1); None where the former is less
        than ``OUT_OF_RANGE`` times the latter.
    """
    widest = max(max(mean, 1 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    largest = float(images.detach().abs().max()) if images.numel() else 0.0
    return (largest, widest) if not largest < OUT_OF_RANGE * widest else None
