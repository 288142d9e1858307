"""Cached statistics of the real images: a departure from the method that trades fresh draws for time.

Distribution matching draws a new network, a new augmentation and a new batch of real images at every iteration, and
spends nearly all its time on the real images. With ``match.statistics=cached`` a run has a fixed number of pairs of a
network and an augmentation. The mean features and local covariances of *all* real images of each class under a pair are
computed the first time the pair is used; every later iteration with that pair touches synthetic images only.

The price is variety: the images keep seeing the same few networks. Besides time, the gain is that the real side has no
sampling noise.
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

_K = TypeVar("_K")
_T = TypeVar("_T")


@dataclass(frozen=True)
class ClassStatistics:
    """Statistics of the real images of each class under one network and one augmentation.

    Attributes:
        mean: mean feature vectors, [C, D].
        covariance: local covariances, [C, K, K].
    """

    mean: Tensor
    covariance: Tensor


class CachedStatistics:
    """Statistics of a run's pairs, each computed on first use.

    Pair i consists of the network and the augmentation that iteration i draws in a run without a cache. Iterations
    cycle through all pairs, in a new random order each time.

    Attributes:
        pairs: number of pairs.
        seconds: time spent on computing statistics so far.
    """

    def __init__(self, pairs: int, seed: int) -> None:
        self.pairs, self.seconds = pairs, 0.0
        self._seed = seed
        self._known: dict[int, ClassStatistics] = {}
        self._scatter: dict[tuple[int, range], Tensor] = {}

    def pair(self, iteration: int) -> int:
        """Number of the pair that an iteration uses."""
        cycle, position = divmod(iteration, self.pairs)
        order = torch.randperm(self.pairs, generator=stream(self._seed, cycle, "cached pairs"))
        return int(order[position])

    def of(self, pair: int, measure: Callable[[], ClassStatistics]) -> ClassStatistics:
        """Statistics of a pair, measured now unless cached."""
        return self._kept(self._known, pair, measure)

    def scatter(self, pair: int, classes: range, measure: Callable[[], Tensor]) -> Tensor:
        """Scatter of a pair's real features under its pretrained network, one value per class of `classes`.

        It is measured now unless cached.
        """
        return self._kept(self._scatter, (pair, classes), measure)

    def _kept(self, known: dict[_K, _T], key: _K, measure: Callable[[], _T]) -> _T:
        if key not in known:
            started = time.perf_counter()
            known[key] = measure()
            self.seconds += time.perf_counter() - started
        return known[key]

    @property
    def mebibytes(self) -> float:
        """MiB held by the statistics."""
        held = [tensor for one in self._known.values() for tensor in (one.mean, one.covariance)]
        return sum(tensor.nbytes for tensor in (*held, *self._scatter.values())) / 2**20


@torch.no_grad()
def measure_classes(
    real: RealSet,
    network: Network,
    augmented: Callable[[Tensor, range], Tensor],
    forward: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    classes: range | None = None,
) -> ClassStatistics:
    """Mean features and local covariances of all real images of each class, computed class by class.

    Args:
        real: the images.
        network: the network whose features are measured.
        augmented: maps the images of a class, [N, K, H, H], and the range of its label to the augmented images.
        forward: applies a function to a batch in chunks that fit the device.
        classes: the classes; None for all.
    """
    means, covariances = [], []
    for label in range(real.num_classes) if classes is None else classes:
        images = augmented(real.images_of(real.of_class(label)), range(label, label + 1))  # [N, 3, H, H]
        maps = forward(network.feature_map, images)  # [N, K, h, w]
        means.append(losses.class_mean(network.head(maps)[None])[0])  # [1, N, D] -> [D]
        covariances.append(losses.local_covariance(maps.flatten(2)[None])[0])  # [1, N, K, P] -> [K, K]
    return ClassStatistics(torch.stack(means), torch.stack(covariances))  # [C, D], [C, K, K]
