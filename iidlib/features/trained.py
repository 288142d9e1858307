"""Test whether a network has learned anything, from its number of correct predictions on held-out images."""

import functools
import math
from dataclasses import dataclass

from iidlib.data import RealSet

__all__ = ["LEVEL", "HeldOut"]

LEVEL = 0.05
"""Significance level: probability that a network that only guesses is taken for one that has learned something."""


@dataclass(frozen=True)
class HeldOut:
    """Thresholds for the number of correct predictions on held-out images.

    A network that has learned nothing predicts the same class for every image, or a random one; at best it reaches the
    share of the most frequent class, which is called chance here. A network is better than chance if guessing would be
    correct as often with a probability below ``LEVEL`` (a one-sided binomial test, so few images prove less than many).
    The test assumes independent images: if those of a class look alike, an untrained network may be correct for a whole
    class by luck.
    """

    images: int
    """Number of held-out images."""
    classes: int
    """Number of classes of the dataset."""
    chance: float
    """Share of the most frequent class among the images, in 0 to 1."""

    @classmethod
    def of(cls, test: RealSet) -> "HeldOut":
        """Thresholds for the held-out images of a dataset."""
        return cls(len(test), test.num_classes, int(test.counts.max()) / len(test))

    def right(self, accuracy: float) -> int:
        """Number of correct predictions that an accuracy in percent corresponds to."""
        return round(accuracy / 100 * self.images)

    @functools.cached_property
    def better_than_chance(self) -> int | None:
        """Smallest number of correct predictions that beats chance; None if even all correct would not."""
        from scipy.stats import binom  # type: ignore[import-untyped]

        needed = int(binom.isf(LEVEL, self.images, self.chance)) + 1
        return needed if needed <= self.images else None

    @property
    def well_trained(self) -> int:
        """Number of correct predictions that a network with useful features usually reaches.

        That is twice chance for equally frequent classes; with two or three classes, where twice chance is all or
        nearly all images, a third of the way from chance to all.
        """
        guessed = 1 / self.classes
        return math.ceil(min(2 * guessed, (1 + 2 * guessed) / 3) * self.images - 1e-9)
