"""The random draws of one iteration: real images, augmentation and networks.

Every draw is a function of the seed, the iteration and a name (`rng.stream`), so drawing an iteration again gives the
same.
"""

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from iidlib import augment
from iidlib.config import RunConfig
from iidlib.data import RealSet, Sample
from iidlib.features import CachedStatistics, Drawn, NetworkSource, Pool
from iidlib.networks import Network
from iidlib.rng import stream

__all__ = [
    "LazyDraws", "Run", "StepDraws", "frequencies_at", "pretrained_at", "real_batch", "transforms_at",
]  # fmt: skip


class Run(Protocol):
    """Attributes of a run that a step uses; `step.Distillation` is one."""

    config: RunConfig
    real: RealSet
    images: Tensor
    group: Tensor
    augmentation: str
    source: NetworkSource
    pool: Pool | None
    statistics: CachedStatistics | None
    classes: range
    groups: tuple[range, ...]

    @property
    def terms(self) -> Collection[str]:
        """Names of the terms in use."""
        ...

    def forward(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Applies a network's function to a batch, in chunks that fit the device."""
        ...


class StepDraws(Protocol):
    """Draws that a `StepBatch` computes from: made on demand, or held in the buffers of a recording."""

    @property
    def iteration(self) -> int:
        """Iteration that determines the draws; with cached real statistics, the number of the pair."""
        ...

    @property
    def matching(self) -> Drawn:
        """Matching network and its accuracy."""
        ...

    @property
    def pretrained(self) -> Network:
        """Pretrained network, drawn from the pool."""
        ...

    @property
    def frequencies(self) -> Tensor:
        """Frequencies for features, standard normal, [F, D]."""
        ...

    def real(self, classes: range) -> Tensor:
        """Augmented real images of some classes, sorted by class, [B, K, H, H]."""
        ...

    @property
    def counts(self) -> Tensor:
        """Number of real images per class, int64 [C], on the CPU."""
        ...

    def augmented(self, images: Tensor, classes: range) -> Tensor:
        """Applies to each image the transform that was drawn for its class.

        Args:
            images: as many images of each class, sorted by class, [B, K, H, H].
            classes: the classes of the images.
        """
        ...


def real_batch(run: Run, iteration: int) -> Sample:
    """The real images of an iteration."""
    return run.real.sample(run.config.match.batch_real, stream(run.config.seed, iteration, "real batch"))


def transforms_at(run: Run, iteration: int) -> augment.Draws | None:
    """Augmentation of each class at an iteration; None if the run has none."""
    if run.augmentation == "none":
        return None
    return augment.sample(run.augmentation, run.real.num_classes, stream(run.config.seed, iteration, "augmentation"))


def pretrained_at(run: Run, iteration: int) -> Network:
    """The network of the pool that an iteration uses for class centralization."""
    assert run.pool is not None, "a term that reads `pretrained` must set needs_pool"
    return run.pool.sample(stream(run.config.seed, iteration, "expert"))


def frequencies_at(run: Run, iteration: int, network: Network) -> Tensor:
    """Frequencies for a network's features at an iteration, standard normal, [F, D]."""
    config, dimensions = run.config, network.classifier.in_features
    draws = stream(config.seed, iteration, "frequencies")
    return torch.randn(config.match.mmd_frequencies, dimensions, generator=draws).to(run.images)  # [F, D]


class LazyDraws:
    """The draws of an iteration, each made on first access and kept.

    An objective without class centralization thus draws no pretrained network, and one with cached real statistics no
    real images.

    Attributes:
        iteration: determines the draws; with cached real statistics, the number of the iteration's pair.
    """

    def __init__(self, run: Run, iteration: int) -> None:
        """Stores the arguments; nothing is drawn yet.

        Args:
            run: the run, with its settings, images and networks.
            iteration: iteration of the run, from 0.
        """
        self._run = run
        self.iteration = iteration if run.statistics is None else run.statistics.pair(iteration)

    @cached_property
    def matching(self) -> Drawn:
        """Matching network and its accuracy."""
        return self._run.source.draw(self.iteration)

    @cached_property
    def pretrained(self) -> Network:
        """Pretrained network of the pool; the matching network itself, at any stage, if it comes from the pool."""
        if self._run.source.from_pool:
            return self.matching.network
        return pretrained_at(self._run, self.iteration)

    @cached_property
    def frequencies(self) -> Tensor:
        """Frequencies for features, standard normal, [F, D]."""
        return frequencies_at(self._run, self.iteration, self.matching.network)

    @cached_property
    def _sample(self) -> Sample:
        return real_batch(self._run, self.iteration)

    @cached_property
    def _own_real(self) -> Tensor:
        """Augmented real images of the classes that this process computes."""
        drawn, own = self._sample, self._rows(self._run.classes)
        return self._transformed(self._run.real.images_of(drawn.index[own]), drawn.group[own])

    def _rows(self, classes: range) -> slice:
        """Places of the real images of some classes among those of all."""
        counts = self._sample.counts
        return slice(*(int(counts[:label].sum()) for label in (classes.start, classes.stop)))

    def real(self, classes: range) -> Tensor:
        """Augmented real images of some of the run's classes, sorted by class, [B, K, H, H]."""
        before, rows = self._rows(self._run.classes).start, self._rows(classes)
        return self._own_real[rows.start - before : rows.stop - before]

    @property
    def counts(self) -> Tensor:
        """Number of real images per class, int64 [C], on the CPU."""
        return self._sample.counts

    def augmented(self, images: Tensor, classes: range) -> Tensor:
        """Applies to each image the transform that was drawn for its class; see `StepDraws.augmented`."""
        per_class = len(images) // len(classes)
        return self._transformed(images, torch.arange(classes.start, classes.stop).repeat_interleave(per_class))

    def _transformed(self, images: Tensor, group: Tensor) -> Tensor:
        return images if self.transforms is None else augment.apply(images, self.transforms, group)

    @cached_property
    def transforms(self) -> augment.Draws | None:
        """Augmentation of each class; None if the run has none."""
        return transforms_at(self._run, self.iteration)
