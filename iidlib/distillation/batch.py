"""Inputs of the terms of one iteration: draws, feature maps and features, each computed once."""

from functools import cached_property

import torch
from torch import Tensor

from iidlib import losses
from iidlib.config import RunConfig
from iidlib.distillation.draws import Run, StepDraws
from iidlib.features import ClassStatistics, measure_classes
from iidlib.networks import Network
from iidlib.synthetic import expand

__all__ = ["StepBatch"]


def _all_equal(counts: Tensor) -> bool:
    return bool((counts == counts[0]).all())


def _stack_classes(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Reshapes rows sorted by class, [B, ...], to [C, N, ...] with a mask [C, N]; no mask for classes of equal size."""
    if _all_equal(counts):
        return features.unflatten(0, (len(counts), int(counts[0]))), None  # [C, N, ...]
    padded = torch.nn.utils.rnn.pad_sequence(list(features.split(counts.tolist())), batch_first=True)  # [C, N, ...]
    mask = torch.arange(padded.shape[1])[None, :] < counts[:, None]  # [C, N]
    return padded, mask.to(features.device)


class StepBatch:
    """Inputs of the terms of one iteration; each is computed once, on first access.

    Axis letters: C classes, N real and n synthetic images per class (after expansion, if stored images are mosaics),
    K channels, P = h * w positions of a feature map, D dimensions.
    """

    def __init__(self, run: Run, draws: StepDraws, classes: range | None = None, images: Tensor | None = None) -> None:
        """Stores the arguments; nothing is computed yet.

        Args:
            run: the run, with its settings and synthetic images.
            draws: the iteration's real images, augmentation and networks.
            classes: the classes of the batch; None for all. C below is their number.
            images: the synthetic images of these classes as they are stored; None for those of the run.
        """
        self._run, self._draws = run, draws
        self.classes = range(run.real.num_classes) if classes is None else classes
        self._images = run.images if images is None else images

    @property
    def config(self) -> RunConfig:
        """Settings of the run."""
        return self._run.config

    @property
    def network(self) -> Network:
        """Matching network of the iteration."""
        return self._draws.matching.network

    @property
    def pretrained(self) -> Network:
        """Pretrained network of the iteration, drawn from the pool."""
        return self._draws.pretrained

    @cached_property
    def _syn_images(self) -> Tensor:
        """Augmented synthetic images, expanded and sorted by class."""
        return self._draws.augmented(expand(self._images, self.config.syn.factor), self.classes)  # [C*n, 3, H, W]

    @cached_property
    def _real_images(self) -> Tensor:
        return self._draws.real(self.classes)  # [B, 3, H, W]

    @property
    def _counts(self) -> Tensor:
        """Number of real images of each class, on the CPU."""
        return self._draws.counts[self.classes.start : self.classes.stop]  # [C]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps after each block that covariance matching uses, [B, K, h, w] each, in order of the blocks."""
        count = self.config.match.cm_blocks if "cm" in self._run.terms else 1
        shapes: list[torch.Size] = []

        def joined(part: Tensor) -> Tensor:
            maps = self.network.block_maps(part, count)  # [b, K, h, w] each
            shapes[:] = [one.shape[1:] for one in maps]
            return torch.cat([one.flatten(1) for one in maps], 1)  # [b, sum of K*h*w]: chunks of it can be joined

        if count == 1:
            return [self._run.forward(self.network.feature_map, images)]
        flat = self._run.forward(joined, images).split([shape.numel() for shape in shapes], 1)  # [B, K*h*w] each
        return [one.unflatten(1, shape) for one, shape in zip(flat, shapes, strict=True)]  # [B, K, h, w] each

    @cached_property
    def _all_real_maps(self) -> tuple[list[Tensor], Tensor | None]:
        with torch.no_grad():
            by_class = [_stack_classes(maps, self._counts) for maps in self._maps(self._real_images)]
        return [maps for maps, _ in by_class], by_class[-1][1]  # [C, N, K, h, w] each, [C, N] or None

    @property
    def _real_maps(self) -> Tensor:
        return self._all_real_maps[0][-1]

    @property
    def real_mask(self) -> Tensor | None:
        """Mask of the real images, [C, N], true where there is an image; None if all classes are equal in size."""
        return self._all_real_maps[1]

    @property
    def real_fmap(self) -> Tensor:
        """Feature maps of the real images, [C, N, K, P], without gradient."""
        return self._real_maps.flatten(3)  # [C, N, K, P]

    @cached_property
    def _cached(self) -> ClassStatistics | None:
        """Statistics of all real images, if the run caches them."""
        run = self._run
        if run.statistics is None:
            return None
        return run.statistics.of(
            self._draws.iteration,
            lambda: measure_classes(run.real, self.network, self._draws.augmented, run.forward, run.classes),
        )

    def _of_classes(self, statistic: Tensor) -> Tensor:
        """A statistic of the classes of the run, restricted to those of the batch."""
        first = self._run.classes.start
        return statistic[self.classes.start - first : self.classes.stop - first]

    @cached_property
    def real_mean(self) -> Tensor:
        """Mean features of the real images, [C, D], without gradient."""
        if self._cached is not None:
            return self._of_classes(self._cached.mean)
        return losses.class_mean(self.real_features, self.real_mask)  # [C, D]

    @cached_property
    def real_covariance(self) -> Tensor:
        """Local covariances of the real images, [C, K, K], without gradient."""
        if self._cached is not None:
            return self._of_classes(self._cached.covariance)
        return losses.local_covariance(self.real_fmap, self.real_mask)  # [C, K, K]

    @cached_property
    def _all_syn_maps(self) -> list[Tensor]:
        return [
            maps.unflatten(0, (len(self.classes), -1)) for maps in self._maps(self._syn_images)
        ]  # [C, n, K, h, w] each

    @property
    def _syn_maps(self) -> Tensor:
        return self._all_syn_maps[-1]

    @property
    def earlier_fmaps(self) -> list[tuple[Tensor, Tensor]]:
        """Feature maps of real and synthetic images, [C, N, K, P'] and [C, n, K, P'], after each earlier block in use.

        These are the last ``match.cm_blocks`` blocks except the final one; P' is larger in earlier blocks.
        """
        if len(self._all_syn_maps) == 1:
            return []
        real, syn = self._all_real_maps[0][:-1], self._all_syn_maps[:-1]
        # [C, N, K, P'], [C, n, K, P'] each
        return [(one.flatten(3), other.flatten(3)) for one, other in zip(real, syn, strict=True)]

    @property
    def syn_fmap(self) -> Tensor:
        """Feature maps of the synthetic images, [C, n, K, P]."""
        return self._syn_maps.flatten(3)  # [C, n, K, P]

    @cached_property
    def real_features(self) -> Tensor:
        """Feature vectors of the real images, [C, N, D], without gradient."""
        maps = self._real_maps  # [C, N, K, h, w]
        with torch.no_grad():
            return self.network.head(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])  # [C, N, D]

    @cached_property
    def syn_features(self) -> Tensor:
        """Feature vectors of the synthetic images, [C, n, D]."""
        return self.network.head(self._syn_maps.flatten(0, 1)).unflatten(0, self._syn_maps.shape[:2])  # [C, n, D]

    @property
    def syn_logits(self) -> Tensor:
        """Logits of the synthetic images under the matching network, [C, n, C]."""
        return self.network.classifier(self.syn_features)  # [C, n, C]

    @property
    def frequencies(self) -> Tensor:
        """Random frequencies for features, standard normal, [F, D]."""
        return self._draws.frequencies

    @property
    def accuracy(self) -> Tensor | float:
        """Accuracy of the matching network on its training images, in percent; 0 if it is untrained."""
        return self._draws.matching.accuracy

    @cached_property
    def pretrained_syn_features(self) -> Tensor:
        """Feature vectors of the synthetic images under the pretrained network, [C, n, D]."""
        if self.pretrained is self.network:
            return self.syn_features
        features = self._run.forward(self.pretrained.embed, self._syn_images)  # [C*n, D]
        return features.unflatten(0, (len(self.classes), -1))  # [C, n, D]

    def _first_real(self, per_class: int) -> tuple[Tensor, Tensor]:
        """The first augmented real images of each class, sorted by class, and their number per class."""
        images, drawn = self._real_images, self._counts  # [B, 3, H, W], [C]
        counts = drawn.clamp(max=per_class)  # [C]
        if _all_equal(drawn):  # without an index, which cannot be copied to the device while recording
            first = images.unflatten(0, (len(drawn), -1))[:, : int(counts[0])]  # [C, N, 3, H, W]
            return first.flatten(0, 1), counts
        starts = drawn.cumsum(0) - drawn  # [C], the first image of each class
        index = torch.cat([start + torch.arange(count) for start, count in zip(starts, counts.tolist(), strict=True)])
        return images[index.to(images.device)], counts  # [sum of counts, 3, H, W], [C]

    def pretrained_real_features(self, per_class: int) -> tuple[Tensor, Tensor | None]:
        """Features of the first real images of each class under the pretrained network, without gradient.

        Returns:
            Features [C, N, D], N at most `per_class`, and the mask [C, N] or None.
        """
        if self.pretrained is self.network and self._run.statistics is None:
            mask = self.real_mask
            return self.real_features[:, :per_class], mask if mask is None else mask[:, :per_class]
        images, counts = self._first_real(per_class)
        with torch.no_grad():
            features = self._run.forward(self.pretrained.embed, images)  # [B, D]
        return _stack_classes(features, counts)

    @cached_property
    def pretrained_real_scatter(self) -> Tensor:
        """Mean squared distance of real images to the centre of their class under the pretrained network, [C].

        Only the first ``match.cc_real`` real images of each class count; without gradient.
        """

        def measured() -> Tensor:
            return losses.scatter(*self.pretrained_real_features(self.config.match.cc_real))  # [C]

        statistics = self._run.statistics
        if statistics is None:
            return measured()
        return statistics.scatter(self._draws.iteration, self.classes, measured)
