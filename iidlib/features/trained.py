"""Whether a network has learned anything, judged by how many held-out images it names right."""

import functools
import math
from dataclasses import dataclass

from iidlib.data import RealSet

__all__ = ["LEVEL", "HeldOut"]

LEVEL = 0.05
"""How often a network that only guesses may pass for one that has learned something."""


@dataclass(frozen=True)
class HeldOut:
    """What can be told from the right answers on a number of held-out images.

    A network that has learned nothing names one class for every image, or any class at random; at best it is right for
    the share of the most frequent class. That share is chance here. A network is better than chance if guessing would
    be right as often in fewer than ``LEVEL`` of all cases (a one-sided binomial test, so that a few images prove less
    than many). The test takes images for independent: where those of a class look alike, a network that has not been
    trained may be right for a whole class by luck.
    """

    images: int
    """Held-out images."""
    classes: int
    """Classes of the dataset."""
    chance: float
    """Share of the most frequent class among the images, in 0 to 1."""

    @classmethod
    def of(cls, test: RealSet) -> "HeldOut":
        """The held-out images of a dataset."""
        return cls(len(test), test.num_classes, int(test.counts.max()) / len(test))

    def right(self, accuracy: float) -> int:
        """How many images an accuracy in percent stands for."""
        return round(accuracy / 100 * self.images)

    @functools.cached_property
    def better_than_chance(self) -> int | None:
        """The fewest right answers that guessing hardly gives; None if even all right would prove nothing."""
        from scipy.stats import binom  # type: ignore[import-untyped]

        needed = int(binom.isf(LEVEL, self.images, self.chance)) + 1
        return needed if needed <= self.images else None

    @property
    def well_trained(self) -> int:
        """The right answers that a network with useful features usually reaches.

        Twice chance among as many equal classes; where that is out of reach, or nearly (two or three classes), a third
        of the way from chance to all right.
        """
        guessed = 1 / self.classes
        return math.ceil(min(2 * guessed, (1 + 2 * guessed) / 3) * self.images - 1e-9)
