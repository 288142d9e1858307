"""Cached statistics of the real images: a departure from the method that trades fresh draws for time.

Distribution matching meets a new network, a new augmentation and a new batch of real images at every iteration, and
spends nearly all its time on the real ones. With ``match.statistics=cached`` a run has a fixed number of pairs of a
network and an augmentation; the mean features and local covariances of *all* real images of each class under a pair are
computed when it is first met, and every later iteration with that pair touches synthetic images only.

What is lost is variety: the images see the same few networks again and again. What is gained beside time is that the
real side has no sampling noise.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from iidlib import losses
from iidlib.data import RealSet
from iidlib.networks import Network
from iidlib.rng import stream

__all__ = ["CachedStatistics", "ClassStatistics", "measure_classes"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class ClassStatistics:
    """What is known of the real images of every class under one network and one augmentation.

    Attributes:
        mean: mean feature vectors, [C, D].
        covariance: local covariances, [C, K, K].
    """

    mean: Tensor
    covariance: Tensor


class CachedStatistics:
    """The statistics of a run's pairs, each computed when first asked for.

    A pair is named by a number from 0, and is what the iteration of that number draws in a run without a cache.
    Iterations go through all pairs in a random order, then through all in another order.

    Attributes:
        pairs: how many there are.
        seconds: spent on computing so far.
    """

    def __init__(self, pairs: int, seed: int) -> None:
        self.pairs, self.seconds = pairs, 0.0
        self._seed = seed
        self._known: dict[int, ClassStatistics] = {}
        self._scatter: dict[int, Tensor] = {}

    def pair(self, iteration: int) -> int:
        """The pair of an iteration."""
        round_, place = divmod(iteration, self.pairs)
        order = torch.randperm(self.pairs, generator=stream(self._seed, round_, "cached pairs"))
        return int(order[place])

    def of(self, pair: int, measure: Callable[[], ClassStatistics]) -> ClassStatistics:
        """A pair's statistics: known, or measured now."""
        return self._kept(self._known, pair, measure)

    def scatter(self, pair: int, measure: Callable[[], Tensor]) -> Tensor:
        """A pair's scatter of real features under its pretrained network, [C]: known, or measured now."""
        return self._kept(self._scatter, pair, measure)

    def _kept(self, known: dict[int, _T], pair: int, measure: Callable[[], _T]) -> _T:
        if pair not in known:
            begun = time.perf_counter()
            known[pair] = measure()
            self.seconds += time.perf_counter() - begun
        return known[pair]

    @property
    def mebibytes(self) -> float:
        """Memory that the statistics take, in MiB."""
        held = [tensor for one in self._known.values() for tensor in (one.mean, one.covariance)]
        return sum(tensor.nbytes for tensor in (*held, *self._scatter.values())) / 2**20


@torch.no_grad()
def measure_classes(
    real: RealSet,
    network: Network,
    augmented: Callable[[Tensor, int], Tensor],
    forward: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
) -> ClassStatistics:
    """Mean features and local covariances of all real images, a class at a time.

    Args:
        real: the images.
        network: gives the features.
        augmented: the images of a class [N, K, H, H] and its label, to the images under the class's augmentation.
        forward: applies a function to a batch in chunks that fit the device.
    """
    means, covariances = [], []
    for label in range(real.num_classes):
        images = augmented(real.images_of(real.of_class(label)), label)
        maps = forward(network.feature_map, images)
        means.append(losses.class_mean(network.head(maps)[None])[0])
        covariances.append(losses.local_covariance(maps.flatten(2)[None])[0])
    return ClassStatistics(torch.stack(means), torch.stack(covariances))
