"""Real images chosen instead of learned: at random, by herding, by k-center.

Herding and k-center choose on the features of a network trained on the whole set. All of them store as many images as a
distilled set, so that they are reported alongside it under the same protocol.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from iidlib.config.recipes import BASELINES
from iidlib.data import RealSet
from iidlib.engine import in_chunks
from iidlib.errors import InputError, suggest
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet

__all__ = ["CHOICES", "check_choice", "choose", "herding", "k_center", "random_beside", "random_real", "real_images"]

logger = logging.getLogger("iidlib")


def random_real(train: RealSet, ipc: int, seed: int = 0, factor: int = 1) -> SyntheticSet:
    """The baseline of every table: random real images, the same number a class, under the same protocol.

    With a factor, each is a mosaic of downscaled real images: what belongs beside a set distilled in that form. The
    images are those that a distillation with this seed and factor starts from.

    Raises:
        InputError: if ipc is below 1, or a class has too few images, or the factor does not fit.
    """
    chosen = SyntheticSet.from_real(train, ipc, stream(seed, 0, "initial images"), factor=factor)
    name = "random" if factor == 1 else "random-mosaic"
    chosen.provenance |= {"method": name, "seed": str(seed), "data": train.fingerprint}
    return chosen


def herding(features: Tensor, count: int) -> Tensor:
    """Images whose mean stays near the mean of all: each next one brings the mean of those chosen nearest to it.

    Welling, "Herding dynamical weights to learn" (ICML 2009), in the form that chooses exemplars.

    Args:
        features: of one class's images, [N, D].
        count: how many to choose, at most N.

    Returns:
        Indices in the order of choice, int64 [count].
    """
    target, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for number in range(1, count + 1):
        distance = ((total + features) / number - target).square().sum(1).masked_fill(~free, torch.inf)
        best = int(distance.argmin())
        free[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Images that cover the class: each next one is the farthest from those chosen; the first is nearest to the mean.

    The greedy form of Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach"
    (ICLR 2018).

    Args:
        features: of one class's images, [N, D].
        count: how many to choose, at most N.

    Returns:
        Indices in the order of choice, int64 [count].
    """
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[chosen[0]]).square().sum(1)
    for _ in range(count - 1):
        # one that is chosen has distance zero; it is not taken again where images are equal
        nearest[chosen[-1]] = -1
        best = int(nearest.argmax())
        nearest = torch.minimum(nearest, (features - features[best]).square().sum(1))
        chosen.append(best)
    return torch.tensor(chosen)


CHOICES = {"herding": herding, "k-center": k_center}
"""Ways to choose, by the name under which their rows stand."""


def check_choice(name: str, train: RealSet, ipc: int) -> None:
    """Finds out whether every class has images enough, before a network is trained to choose them by.

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


def choose(name: str, train: RealSet, ipc: int, network: Network) -> SyntheticSet:
    """Real images of each class, chosen on the features of a trained network.

    Args:
        name: one of ``CHOICES``.
        train: the training images.
        ipc: images a class.
        network: gives the features (``embed``).

    Raises:
        InputError: if a class has fewer images.
    """
    check_choice(name, train, ipc)
    index = []
    for label in range(train.num_classes):
        own = train.of_class(label)
        with torch.no_grad():
            parts = [in_chunks(network.embed, train.images_of(part), 100) for part in own.split(1000)]
        index.append(own[CHOICES[name](torch.cat(parts), ipc).cpu()])
    labels = torch.arange(train.num_classes, device=train.device).repeat_interleave(ipc)
    provenance = {"method": name, "data": train.fingerprint}
    return SyntheticSet(train.images_of(torch.cat(index)), labels, train.spec, provenance)


def real_images(
    name: str, train: RealSet, ipc: int, *, seed: int = 0, factor: int = 1, network: Network | None = None
) -> SyntheticSet | RealSet:
    """Real images by the name under which their rows stand.

    Args:
        name: ``random`` or ``random-mosaic`` (mosaics where `factor` is above 1), one of ``CHOICES``, or ``whole`` for
            all training images.
        train: the training images.
        ipc: images per class, of which ``whole`` takes no notice.
        seed: of a random choice.
        factor: tiles along a side of a random image.
        network: on whose features one of ``CHOICES`` chooses, see `iidlib.features.choosing_pool`.

    Raises:
        InputError: for an unknown name, a choice without a network, or what `random_real` and `choose` refuse.
    """
    if name == "whole":
        return train
    if name in ("random", "random-mosaic"):
        return random_real(train, ipc, seed, factor)
    if name not in CHOICES:
        raise InputError(f"unknown choice of real images {name!r}{suggest(name, BASELINES)}")
    if network is None:
        raise InputError(f"{name} chooses on the features of a network; give one, such as choosing_pool trains")
    return choose(name, train, ipc, network)


def random_beside(
    train: RealSet, ipc: int, seed: int, factor: int, *, say: Callable[[str], None] = logger.info
) -> list[SyntheticSet]:
    """The baselines of a set: random real images, and random mosaics where the set consists of mosaics.

    Args:
        train: the training images.
        ipc: images per class of the set.
        seed: of the choice.
        factor: tiles along a side of the set's images.
        say: told why one of them is left out, where a class has too few images for it.
    """
    found = []
    for tiles in (1, factor) if factor > 1 else (1,):
        try:
            found.append(random_real(train, ipc, seed, tiles))
        except InputError as error:  # the set itself may have begun otherwise, or from other images
            say(f"{'random-mosaic' if tiles > 1 else 'random'} is left out: {error}")
    return found
