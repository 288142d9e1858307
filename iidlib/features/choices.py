"""Initial images of a distillation, chosen by a trained network: the centres of a class, or its easiest images.

Images near the centres of clusters cover a class evenly (Liu et al., "DREAM: efficient dataset distillation by
representative matching", ICCV 2023, choose their real images so). Where one image has to stand for a class, images
that a network is sure of are a start without outliers.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.config import PoolConfig
from iidlib.data import RealSet
from iidlib.engine import default_chunk, in_chunks
from iidlib.errors import InputError, suggest
from iidlib.features.pool import Pool, pool_members
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet, check_real

__all__ = ["KINDS", "choosing_network", "chosen_images", "cluster_centres", "easiest"]


def cluster_centres(features: Tensor, count: int, seed: int) -> Tensor:
    """The images nearest to the centres of clusters, by k-means; those of the largest clusters first.

    Where two centres have the same nearest image, the smaller cluster takes the next nearest one. The same features and
    seed give the same images, whatever the number of threads.

    Args:
        features: of one class's images, [N, D]; finite.
        count: clusters, and images to choose, at most N.
        seed: of the clusters' first centres.

    Returns:
        Indices, int64 [count], each another.

    Raises:
        InputError: if `count` is not in 1 to N.
    """
    _check_count(len(features), count)
    own = features.detach().cpu()
    centres, sizes = _k_means(own, count, seed)
    distances = torch.cdist(centres, own, compute_mode="donot_use_mm_for_euclid_dist")  # [count, N]; exact where small
    chosen = torch.empty(count, dtype=torch.int64)
    for place, cluster in enumerate(sizes.argsort(descending=True, stable=True).tolist()):
        chosen[place] = distances[cluster].argmin()
        distances[:, chosen[place]] = torch.inf
    return chosen


def _k_means(features: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centres [count, D] of a class's clusters, and how many images each has, int64 [count]."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    state = int(torch.randint(2**32, (), generator=stream(seed, 0, "clusters")))
    # sums of several threads are rounded in the order in which these are done
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of equal images, which are in one cluster
        found = KMeans(count, n_init=1, random_state=state).fit(features.numpy())
    sizes = torch.bincount(torch.as_tensor(found.labels_, dtype=torch.int64), minlength=count)
    return torch.as_tensor(found.cluster_centers_).to(features.dtype), sizes


def easiest(losses: Tensor, count: int) -> Tensor:
    """The images of the smallest cross-entropy, smallest first; of equal ones the first.

    Args:
        losses: of one class's images, [N].
        count: how many to choose, at most N.

    Returns:
        Indices, int64 [count].

    Raises:
        InputError: if `count` is not in 1 to N.
    """
    _check_count(len(losses), count)
    return losses.detach().cpu().argsort(stable=True)[:count]


def _check_count(images: int, count: int) -> None:
    if not 1 <= count <= images:
        raise InputError(f"the images to choose must be 1 to {images}, the images of the class, got {count}")


def _by_centres(network: Network, real: RealSet, own: Tensor, count: int, seed: int) -> Tensor:
    return cluster_centres(_seen(network.embed, real, own), count, seed)


def _by_loss(network: Network, real: RealSet, own: Tensor, count: int, seed: int) -> Tensor:
    # in double precision, in which the loss of an image that the network is sure of is not rounded to zero
    logits = _seen(network, real, own).double()  # [N_c, C]
    return easiest(F.cross_entropy(logits, real.labels[own.to(real.device)].cpu(), reduction="none"), count)


KINDS: dict[str, Callable[[Network, RealSet, Tensor, int, int], Tensor]] = {
    "centres": _by_centres,
    "easiest": _by_loss,
}
"""Ways to choose, as ``syn.init`` names them: from a network, all training images, the indices of a class, the number
to choose and a seed to places in those indices."""


@torch.no_grad()
def _seen(function: Callable[[Tensor], Tensor], real: RealSet, own: Tensor) -> Tensor:
    """What a network says of given images, [N, ...], on the CPU.

    Raises:
        InputError: if it is not finite.
    """
    parts = []
    for index in own.split(1000):
        images = real.images_of(index).contiguous(memory_format=torch.channels_last)
        parts.append(in_chunks(function, images, default_chunk(real.device)).float().cpu())
    seen = torch.cat(parts)
    if not bool(torch.isfinite(seen).all()):
        raise InputError(
            "the network of the pool that chooses the initial images has diverged: what it gives is not finite; lower "
            "pool.lr, or take syn.init=real"
        )
    return seen


def chosen_images(
    kind: str, real: RealSet, network: Network, ipc: int, factor: int = 1, *, seed: int = 0
) -> SyntheticSet:
    """Real images of each class, chosen by a trained network; with a factor each tile is another one, downscaled.

    The network sees them whole and without augmentation. The chosen images of a class are dealt out like cards, so that
    each mosaic gets its share of the largest clusters, or of the easiest images.

    Args:
        kind: one of ``KINDS``: ``"centres"`` takes the images nearest to the centres of ipc * factor^2 clusters of
            the class's features, ``"easiest"`` as many images of the smallest cross-entropy.
        real: the training images.
        network: gives features and logits, in evaluation mode, on the images' device.
        ipc: images stored per class.
        factor: tiles along a side of an image.
        seed: of the clusters.

    Raises:
        InputError: for an unknown kind, a class with fewer than ipc * factor^2 images, a factor that does not fit, or
            a network that has diverged.
    """
    if kind not in KINDS:
        raise InputError(f"unknown choice of initial images {kind!r}{suggest(kind, KINDS)}")
    ipc, factor = check_real(real, ipc, kind, factor)
    index = []
    for label in range(real.num_classes):
        own = real.of_class(label)
        chosen = own[KINDS[kind](network, real, own, ipc * factor**2, seed)]  # [factor^2 * ipc]
        index.append(chosen.view(factor**2, ipc).T.flatten())
    return SyntheticSet.from_index(real, torch.cat(index), factor, kind)


def choosing_network(pool: Pool, config: PoolConfig) -> Network:
    """The network of a pool that chooses the initial images: its first one, at the end of its training.

    Args:
        pool: the networks.
        config: the settings of the pool.
    """
    return pool.networks[max(place for place, (number, _) in enumerate(pool_members(config)) if number == 0)]
