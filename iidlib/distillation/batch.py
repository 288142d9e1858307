"""What the terms of one iteration may use: draws, feature maps and features, each computed once."""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from iidlib import augment, losses
from iidlib.config import RunConfig
from iidlib.data import RealSet
from iidlib.features import CachedStatistics, ClassStatistics, NetworkSource, Pool, measure_classes
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import expand

__all__ = ["Run", "StepBatch"]


class Run(Protocol):
    """What a step reads of the run it belongs to; `step.Distillation` is one."""

    config: RunConfig
    real: RealSet
    images: Tensor
    group: Tensor
    augmentation: str
    source: NetworkSource
    pool: Pool | None
    statistics: CachedStatistics | None

    def forward(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Applies a network's function to a batch, in chunks that fit the device."""
        ...


def _stack_classes(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows sorted by class, [B, ...], as [C, N, ...] with a mask [C, N]; no mask where all classes are alike."""
    if bool((counts == counts[0]).all()):
        return features.unflatten(0, (len(counts), int(counts[0]))), None
    padded = torch.nn.utils.rnn.pad_sequence(list(features.split(counts.tolist())), batch_first=True)
    mask = torch.arange(padded.shape[1])[None, :] < counts[:, None]
    return padded, mask.to(features.device)


class StepBatch:
    """What the terms of one iteration may use; each feature is computed once, when first asked for.

    Axis letters: C classes, N real and n synthetic images a class (expanded ones, where a stored image is a mosaic),
    K channels, P positions, D dimensions.
    """

    def __init__(self, run: Run, iteration: int) -> None:
        self._run = run
        # the iteration whose draws these are; with cached statistics the same few come again
        self._draw = iteration if run.statistics is None else run.statistics.pair(iteration)

    @cached_property
    def _augmentation(self) -> augment.Draws | None:
        run = self._run
        if run.augmentation == "none":
            return None
        return augment.sample(
            run.augmentation, run.real.num_classes, stream(self.config.seed, self._draw, "augmentation")
        )

    def _augmented(self, images: Tensor, group: Tensor) -> Tensor:
        return images if self._augmentation is None else augment.apply(images, self._augmentation, group)

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        """Augmented real images sorted by class, and how many each class has."""
        real, config = self._run.real, self.config
        drawn = real.sample(config.match.batch_real, stream(config.seed, self._draw, "real batch"))
        return self._augmented(real.images_of(drawn.index), drawn.group), drawn.counts

    @cached_property
    def _syn_images(self) -> Tensor:
        factor = self.config.syn.factor
        return self._augmented(expand(self._run.images, factor), self._run.group.repeat_interleave(factor**2))

    @property
    def config(self) -> RunConfig:
        """The run's settings."""
        return self._run.config

    @cached_property
    def network(self) -> Network:
        """The iteration's matching network."""
        return self._run.source.draw(self._draw)

    @cached_property
    def expert(self) -> Network:
        """The iteration's trained network, drawn from the pool."""
        assert self._run.pool is not None, "a term that reads `expert` must set needs_pool"
        return self._run.pool.sample(stream(self.config.seed, self._draw, "expert"))

    @cached_property
    def _real_maps(self) -> tuple[Tensor, Tensor | None]:
        images, counts = self._real
        with torch.no_grad():
            maps = self._run.forward(self.network.feature_map, images)
        return _stack_classes(maps, counts)

    @property
    def real_mask(self) -> Tensor | None:
        """True where the real side holds an image, [C, N]; None where all classes are of one size."""
        return self._real_maps[1]

    @property
    def real_fmap(self) -> Tensor:
        """Feature maps of the real images, [C, N, K, P], without gradient."""
        return self._real_maps[0].flatten(3)

    @cached_property
    def _cached(self) -> ClassStatistics | None:
        """Statistics of all real images, where the run keeps them."""
        run = self._run
        if run.statistics is None:
            return None

        def augmented(images: Tensor, label: int) -> Tensor:
            return self._augmented(images, torch.full((len(images),), label))

        return run.statistics.of(self._draw, lambda: measure_classes(run.real, self.network, augmented, run.forward))

    @cached_property
    def real_mean(self) -> Tensor:
        """Mean features of the real images, [C, D], without gradient."""
        if self._cached is not None:
            return self._cached.mean
        return losses.class_mean(self.real_features, self.real_mask)

    @cached_property
    def real_covariance(self) -> Tensor:
        """Local covariances of the real images, [C, K, K], without gradient."""
        if self._cached is not None:
            return self._cached.covariance
        return losses.local_covariance(self.real_fmap, self.real_mask)

    @cached_property
    def _syn_maps(self) -> Tensor:
        maps = self._run.forward(self.network.feature_map, self._syn_images)
        return maps.unflatten(0, (self._run.real.num_classes, -1))

    @property
    def syn_fmap(self) -> Tensor:
        """Feature maps of the synthetic images, [C, n, K, P]."""
        return self._syn_maps.flatten(3)

    @cached_property
    def real_features(self) -> Tensor:
        """Feature vectors of the real images, [C, N, D], without gradient."""
        maps = self._real_maps[0]
        with torch.no_grad():
            return self.network.head(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])

    @cached_property
    def syn_features(self) -> Tensor:
        """Feature vectors of the synthetic images, [C, n, D]."""
        return self.network.head(self._syn_maps.flatten(0, 1)).unflatten(0, self._syn_maps.shape[:2])

    @property
    def syn_logits(self) -> Tensor:
        """Logits of the synthetic images under the matching network, [C, n, C]."""
        return self.network.classifier(self.syn_features)

    @property
    def accuracy(self) -> Tensor | float:
        """Of the matching network on what it was trained on, in percent; 0 where it is not trained."""
        _ = self.network  # drawn
        return self._run.source.accuracy

    @cached_property
    def expert_syn_features(self) -> Tensor:
        """Feature vectors of the synthetic images under the trained network, [C, n, D]."""
        features = self._run.forward(self.expert.embed, self._syn_images)
        return features.unflatten(0, (self._run.real.num_classes, -1))

    def _first_real(self, per_class: int) -> tuple[Tensor, Tensor]:
        """The first augmented real images of each class, sorted by class, and how many each class has of them."""
        images, drawn = self._real
        counts = drawn.clamp(max=per_class)
        starts = drawn.cumsum(0) - drawn
        index = torch.cat([start + torch.arange(count) for start, count in zip(starts, counts.tolist(), strict=True)])
        return images[index.to(images.device)], counts

    def expert_real_features(self, per_class: int) -> tuple[Tensor, Tensor | None]:
        """Features of the first real images of each class under the trained network, without gradient.

        Returns:
            [C, N, D] with N at most `per_class`, and the mask [C, N] or None.
        """
        images, counts = self._first_real(per_class)
        with torch.no_grad():
            features = self._run.forward(self.expert.embed, images)
        return _stack_classes(features, counts)

    @cached_property
    def expert_real_scatter(self) -> Tensor:
        """Mean squared distance of real images to the centre of their class under the trained network, [C].

        Of the first ``match.cc_real`` real images of each class; without gradient.
        """

        def measured() -> Tensor:
            features, mask = self.expert_real_features(self.config.match.cc_real)
            counts = features.shape[1] if mask is None else mask.sum(1)
            return losses.squared_distances(features, mask).sum(1) / counts

        statistics = self._run.statistics
        return measured() if statistics is None else statistics.scatter(self._draw, measured)
