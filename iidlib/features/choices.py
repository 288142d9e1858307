"""Initial images of a distillation, chosen by a pretrained network: the centres of a class, or its easiest images.

Images near cluster centres cover a class evenly; Liu et al., "DREAM: efficient dataset distillation by representative
matching" (ICCV 2023), choose their real images this way. Where one image must represent a class, images that a network
classifies with confidence avoid outliers.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.config import ComputeConfig, PoolConfig
from iidlib.data import RealSet
from iidlib.engine import default_chunk, in_chunks, precision
from iidlib.errors import InputError, suggest
from iidlib.features.pool import Pool, pool_members
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet, check_real

__all__ = ["KINDS", "choosing_network", "chosen_images", "cluster_centres", "easiest"]


def cluster_centres(features: Tensor, count: int, seed: int) -> Tensor:
    """The images nearest to the centres of k-means clusters, largest cluster first.

    If two centres have the same nearest image, the smaller cluster takes its next nearest one. The same features and
    seed give the same images, whatever the number of threads.

    Args:
        features: features of one class's images, [N, D]; finite.
        count: number of clusters, and of images to choose, at most N.
        seed: seed of the initial centres.

    Returns:
        Distinct indices, int64 [count].

    Raises:
        InputError: if `count` is not in 1 to N.
    """
    _check_count(len(features), count)
    features = features.detach().cpu()  # [N, D]
    with _one_blas_thread():
        return _nearest_to_centres(features, count, seed)


def _nearest_to_centres(features: Tensor, count: int, seed: int) -> Tensor:
    """`cluster_centres` of features on the CPU, within `_one_blas_thread`; may run in several threads."""
    centres, sizes = _k_means(features, count, seed)  # [count, D], [count]
    # [count, N]; exact for small distances
    distances = torch.cdist(centres, features, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = torch.empty(count, dtype=torch.int64)
    for position, cluster in enumerate(sizes.argsort(descending=True, stable=True).tolist()):
        chosen[position] = distances[cluster].argmin()
        distances[:, chosen[position]] = torch.inf
    return chosen


def _k_means(features: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cluster centres of a class, [count, D], and the number of images in each cluster, int64 [count]."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    state = int(torch.randint(2**32, (), generator=stream(seed, 0, "clusters")))
    # several threads would add in another order; a limit on OpenMP holds for the calling thread only, so it is set here
    with threadpool_limits(1, user_api="openmp"):
        fitted = KMeans(count, n_init=1, random_state=state).fit(features.numpy())
    sizes = torch.bincount(torch.as_tensor(fitted.labels_, dtype=torch.int64), minlength=count)
    return torch.as_tensor(fitted.cluster_centers_).to(features.dtype), sizes


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Limits BLAS to one thread in a block, for the whole process, and ignores warnings about equal images."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised for equal images, which share a cluster
        yield


def easiest(losses: Tensor, count: int) -> Tensor:
    """The images with the smallest cross-entropy, in ascending order; ties go to the first.

    Args:
        losses: cross-entropy of one class's images, [N].
        count: number of images to choose, at most N.

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


def _features(network: Network, real: RealSet, index: Tensor) -> Tensor:
    return _outputs(network.embed, real, index)  # [N, D]


def _losses(network: Network, real: RealSet, index: Tensor) -> Tensor:
    # in double precision, where the loss of a confidently classified image does not round to zero
    logits = _outputs(network, real, index).double()  # [N, C]
    return F.cross_entropy(logits, real.labels[index.to(real.device)].cpu(), reduction="none")  # [N]


class _Kind(NamedTuple):
    """A way to choose images of a class."""

    measure: Callable[[Network, RealSet, Tensor], Tensor]
    """Maps a network, all training images and the indices of a class to a value or a vector of each of its images."""
    choose: Callable[[Tensor, int, int], Tensor]
    """Maps these, the number of images to choose and a seed to positions; runs within `_one_blas_thread`."""


def _easiest(losses: Tensor, count: int, seed: int) -> Tensor:
    return easiest(losses, count)


KINDS: dict[str, _Kind] = {
    "centres": _Kind(_features, _nearest_to_centres),
    "easiest": _Kind(_losses, _easiest),
}
"""Ways to choose, by their name in ``syn.init``."""


@torch.no_grad()
def _outputs(function: Callable[[Tensor], Tensor], real: RealSet, index: Tensor) -> Tensor:
    """A network's outputs for given images, [N, ...], on the CPU.

    Raises:
        InputError: if they are not finite.
    """
    parts = []
    for part in index.split(1000):
        images = real.images_of(part).contiguous(memory_format=torch.channels_last)  # [B, 3, H, H]
        parts.append(in_chunks(function, images, default_chunk(real.device)).float().cpu())
    outputs = torch.cat(parts)  # [N, ...]
    if not bool(torch.isfinite(outputs).all()):
        raise InputError(
            "the network of the pool that chooses the initial images has diverged: its outputs are not finite; lower "
            "pool.lr, or use syn.init=real"
        )
    return outputs


def chosen_images(
    kind: str,
    real: RealSet,
    network: Network,
    ipc: int,
    factor: int = 1,
    *,
    seed: int = 0,
    compute: ComputeConfig | None = None,
) -> SyntheticSet:
    """Real images of each class, chosen by a pretrained network; with a factor, each tile of a mosaic is one, shrunk.

    The network sees full-size images without augmentation. The chosen images of a class are dealt out like cards, so
    each mosaic gets its share of the largest clusters, or of the easiest images.

    Args:
        kind: one of ``KINDS``: ``"centres"`` takes the images nearest to the centres of ipc * factor^2 clusters of
            the class's features, ``"easiest"`` as many images with the smallest cross-entropy.
        real: the training images.
        network: computes features and logits, in evaluation mode, on the images' device.
        ipc: images stored per class.
        factor: tiles along a side of an image.
        seed: seed of the clustering.
        compute: how the hardware is used (``precision``); by default ``ComputeConfig()``.

    Raises:
        InputError: for an unknown kind, a class with fewer than ipc * factor^2 images, a factor that does not fit, or
            a network that has diverged.
    """
    if kind not in KINDS:
        raise InputError(f"unknown choice of initial images {kind!r}{suggest(kind, KINDS)}")
    ipc, factor = check_real(real, ipc, kind, factor)
    count, threads = ipc * factor**2, torch.get_num_threads()
    measure, choose = KINDS[kind]
    classes = [real.of_class(label) for label in range(real.num_classes)]  # [N] each
    positions: list[Future[Tensor]] = []  # [count] each
    # a choice takes one thread, so several are made at a time, while the network measures the images of further classes
    with _one_blas_thread(), ThreadPoolExecutor(threads) as workers:
        for members in classes:
            with precision(real.device, (compute or ComputeConfig()).precision):
                measured = measure(network, real, members)
            positions.append(workers.submit(choose, measured, count, seed))
            if len(positions) > 2 * threads:  # which bounds the memory of what was measured
                positions[-2 * threads].result()
        chosen = [members[each.result()] for members, each in zip(classes, positions, strict=True)]  # [count] each
    index = [each.view(factor**2, ipc).T.flatten() for each in chosen]  # [ipc * factor^2] each
    return SyntheticSet.from_index(real, torch.cat(index), factor, kind)


def choosing_network(pool: Pool, config: PoolConfig) -> Network:
    """The network of a pool that chooses the initial images: the first one, fully trained.

    Args:
        pool: the networks.
        config: the settings of the pool.
    """
    return pool.networks[max(position for position, (number, _) in enumerate(pool_members(config)) if number == 0)]
