"""Real images, chosen rather than learned: at random, by herding, by k-center.

Herding and k-center use the features of a network trained on the whole training set. All methods store as many images
as a distilled set, and are reported alongside it under the same protocol.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from iidlib.config import ComputeConfig
from iidlib.config.recipes import BASELINES
from iidlib.data import RealSet
from iidlib.engine import in_chunks, precision
from iidlib.errors import InputError, suggest
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet

__all__ = ["CHOICES", "check_choice", "choose", "herding", "k_center", "random_baselines", "random_real", "real_images"]

logger = logging.getLogger("iidlib")


def random_real(train: RealSet, ipc: int, seed: int = 0, factor: int = 1) -> SyntheticSet:
    """The baseline of every table: random real images, as many per class as the distilled set.

    With a factor, each image is a mosaic of downscaled real images, the baseline for sets distilled in that form. The
    images are those that a distillation with this seed and factor starts from.

    Raises:
        InputError: if `ipc` is below 1, a class has too few images, or the factor does not fit.
    """
    chosen = SyntheticSet.from_real(train, ipc, stream(seed, 0, "initial images"), factor=factor)
    name = "random" if factor == 1 else "random-mosaic"
    chosen.provenance |= {"method": name, "seed": str(seed), "data": train.fingerprint}
    return chosen


def herding(features: Tensor, count: int) -> Tensor:
    """Images whose mean stays near the mean of all: each step adds the image that brings their mean nearest to it.

    Welling, "Herding dynamical weights to learn" (ICML 2009), in the form that selects exemplars.

    Args:
        features: features of one class's images, [N, D].
        count: number of images to choose, at most N.

    Returns:
        Indices in the order of choice, int64 [count].
    """
    target, total = features.mean(0), torch.zeros_like(features[0])  # [D], [D]
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)  # [N]
    chosen = []
    for number in range(1, count + 1):
        distance = ((total + features) / number - target).square().sum(1).masked_fill(~free, torch.inf)  # [N]
        best = int(distance.argmin())
        free[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Images that cover the class: the image nearest to the mean, then at each step the farthest from those chosen.

    The greedy algorithm of Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach"
    (ICLR 2018).

    Args:
        features: features of one class's images, [N, D].
        count: number of images to choose, at most N.

    Returns:
        Indices in the order of choice, int64 [count].
    """
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[chosen[0]]).square().sum(1)  # [N]
    for _ in range(count - 1):
        # a chosen image has distance zero, as equal ones have, but must not be chosen twice
        nearest[chosen[-1]] = -1
        best = int(nearest.argmax())
        nearest = torch.minimum(nearest, (features - features[best]).square().sum(1))
        chosen.append(best)
    return torch.tensor(chosen)


CHOICES = {"herding": herding, "k-center": k_center}
"""Ways to choose, by the name in result rows."""


def check_choice(name: str, train: RealSet, ipc: int) -> None:
    """Checks that every class has enough images, before a network is trained to choose them.

    Args:
        name: one of ``CHOICES``.
        train: the training images.
        ipc: images per class.

    Raises:
        InputError: if a class has fewer images.
    """
    smallest = int(train.counts.argmin())
    if (fewest := int(train.counts[smallest])) < ipc:
        raise InputError(
            f"{name} needs {ipc} images per class, but class {train.spec.classes[smallest]!r} has {fewest}; lower ipc "
            f"to {fewest} or less"
        )


def choose(
    name: str, train: RealSet, ipc: int, network: Network, *, compute: ComputeConfig | None = None
) -> SyntheticSet:
    """Real images of each class, chosen by the features of a trained network.

    Args:
        name: one of ``CHOICES``.
        train: the training images.
        ipc: images per class.
        network: the network that computes the features (``embed``).
        compute: how the hardware is used (``precision``); by default ``ComputeConfig()``.

    Raises:
        InputError: if a class has fewer images.
    """
    check_choice(name, train, ipc)
    index = []
    for label in range(train.num_classes):
        members = train.of_class(label)  # [N]
        with torch.no_grad(), precision(train.device, (compute or ComputeConfig()).precision):
            parts = [in_chunks(network.embed, train.images_of(part), 100) for part in members.split(1000)]
        index.append(members[CHOICES[name](torch.cat(parts), ipc).cpu()])  # [ipc]
    labels = torch.arange(train.num_classes, device=train.device).repeat_interleave(ipc)
    provenance = {"method": name, "data": train.fingerprint}
    return SyntheticSet(train.images_of(torch.cat(index)), labels, train.spec, provenance)


def real_images(
    name: str,
    train: RealSet,
    ipc: int,
    *,
    seed: int = 0,
    factor: int = 1,
    network: Network | None = None,
    compute: ComputeConfig | None = None,
) -> SyntheticSet | RealSet:
    """Real images, by the name in result rows.

    Args:
        name: ``random`` or ``random-mosaic`` (mosaics if `factor` is above 1), one of ``CHOICES``, or ``whole`` for
            all training images.
        train: the training images.
        ipc: images per class, ignored for ``whole``.
        seed: seed of a random choice.
        factor: tiles along a side of a random image.
        network: the network whose features ``CHOICES`` use, see `iidlib.features.choosing_pool`.
        compute: how the hardware is used by ``CHOICES`` (``precision``); by default ``ComputeConfig()``.

    Raises:
        InputError: for an unknown name, a choice without a network, or as `random_real` and `choose`.
    """
    if name == "whole":
        return train
    if name in ("random", "random-mosaic"):
        return random_real(train, ipc, seed, factor)
    if name not in CHOICES:
        raise InputError(f"unknown choice of real images {name!r}{suggest(name, BASELINES)}")
    if network is None:
        raise InputError(f"{name} chooses by the features of a network; give one, such as choosing_pool trains")
    return choose(name, train, ipc, network, compute=compute)


def random_baselines(
    train: RealSet, ipc: int, seed: int, factor: int, *, say: Callable[[str], None] = logger.info
) -> list[SyntheticSet]:
    """The baselines of a set: random real images, and also random mosaics if the set consists of mosaics.

    Args:
        train: the training images.
        ipc: images per class of the set.
        seed: seed of the choice.
        factor: tiles along a side of the set's images.
        say: called with a message if a baseline is left out because a class has too few images.
    """
    baselines = []
    for tiles in (1, factor) if factor > 1 else (1,):
        try:
            baselines.append(random_real(train, ipc, seed, tiles))
        except InputError as error:  # the set itself may have started from noise, or from other images
            say(f"{'random-mosaic' if tiles > 1 else 'random'} is left out: {error}")
    return baselines
