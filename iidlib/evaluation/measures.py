"""Measures of sets on features: spread within and between classes, covariance gap, MMD, projection.

What a distilled set shares with the real images, and where it differs, seen through a network. The measures are
data frames, a row per class (or image), that `plots` draws. Nothing here is optimised or selected on.

Axis letters: C classes, N images a class, D feature dimensions, K channels, P positions of the feature map.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from iidlib import losses
from iidlib.data import RealSet
from iidlib.engine import default_chunk, in_chunks
from iidlib.errors import InputError
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet

__all__ = ["class_maps", "compare", "covariance_gap", "mmd", "project", "spread"]


@torch.no_grad()
def class_maps(network: Network, images: Tensor, classes: int) -> Tensor:
    """Feature maps of images that are sorted by class, as many of each.

    Args:
        network: on the images' device.
        images: normalised, [C*N, channels, H, H].
        classes: C.

    Returns:
        [C, N, K, h, w]; the features of the network's head are ``network.head(maps.flatten(0, 1))``.
    """
    maps = in_chunks(network.feature_map, images, default_chunk(images.device) or len(images))
    return maps.unflatten(0, (classes, -1))


def spread(features: Tensor) -> pd.DataFrame:
    r"""How far the images of a class lie from its centre, and how far the centres lie from each other.

    Args:
        features: [C, N, D].

    Returns:
        A row a class, with columns class, within (mean squared distance of its images to their mean), between
        (squared distance of its mean to the mean of all classes' means), ratio (within / between; small where
        classes are compact and far apart).

    Raises:
        ValueError: for another shape.
    """
    within = losses.squared_distances(features).mean(1)
    centres = losses.class_mean(features)
    between = (centres - centres.mean(0)).square().sum(1)
    return _by_class(within=within, between=between, ratio=within / between)


def covariance_gap(real: Tensor, syn: Tensor) -> pd.DataFrame:
    """How much the local covariances of two sets differ, beside the size of the first one's.

    Args:
        real: feature maps, [C, N, K, P].
        syn: feature maps, [C, n, K, P].

    Returns:
        A row a class, with columns class, gap (Frobenius norm of the difference over that of the first; 0 where
        they agree, 1 for a set without any variation).

    Raises:
        ValueError: on shapes that do not fit.
    """
    own = losses.local_covariance(real)
    gap = losses.covariance_matching(real, syn).sqrt() / own.flatten(1).norm(dim=1)
    return _by_class(gap=gap)


def mmd(real: Tensor, syn: Tensor) -> pd.DataFrame:
    r"""Squared maximum mean discrepancy of two sets, with a linear and with a Gaussian kernel.

    The linear kernel gives what mean matching minimises, :math:`\|\bar z - \bar z'\|^2`; it is zero for equal means.
    The Gaussian kernel :math:`\exp(-\|z - z'\|^2 / 2h^2)`, with h the median distance between real images of the class,
    is zero for equal distributions only. Both are the plain (biased) estimates, in which an image is compared with
    itself: two samples of one distribution give more than zero, the more so the smaller they are.

    Source: Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012.

    Args:
        real: features, [C, N, D] with N of 2 or more.
        syn: features, [C, n, D].

    Returns:
        A row a class, with columns class, linear, gaussian.

    Raises:
        ValueError: on shapes that do not fit, or a single real image.
    """
    if real.ndim != 3 or real.shape[1] < 2:
        raise ValueError(f"mmd takes two or more real images a class, [C, N, D], got {tuple(real.shape)}")
    linear = losses.mean_matching(real, syn)
    among_real = torch.cdist(real, real).square()
    off = ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    gaussian = losses.kernel_distance(real, syn, among_real[:, off].median(1).values)
    return _by_class(linear=linear, gaussian=gaussian.clamp(min=0))


def compare(
    sets: Mapping[str, SyntheticSet],
    real: RealSet,
    networks: Sequence[Network],
    *,
    per_class: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of several sets against real images, under several networks.

    Args:
        sets: by label; mosaics are expanded.
        real: the training images.
        networks: frozen, on the images' device.
        per_class: real images a class that the sets are compared with; fewer where the smallest class has fewer.
        seed: of their choice. They are not the images that a distillation with this seed starts from.

    Returns:
        A row a network, label and class, with columns network (its number), label, class (its name), within,
        between, ratio, gap, linear, gaussian, as in `spread`, `covariance_gap` and `mmd`; the real images
        themselves are the label ``real``, with a gap and discrepancies against a second, disjoint draw of as
        many real images, which says what a measure gives when there is nothing to find.

    Raises:
        InputError: for fewer than four real images in a class.
    """
    per_class = min(per_class, int(real.counts.min()) // 2)
    if per_class < 2:
        raise InputError("compare needs four or more real images in every class")
    drawn = real.sample(2 * per_class, stream(seed, 0, "images to compare with"))
    both = real.images_of(drawn.index).unflatten(0, (real.num_classes, 2 * per_class))
    first, second = (part.flatten(0, 1) for part in both.split(per_class, dim=1))
    images = {"real": second} | {label: one.expanded().images.detach().to(real.device) for label, one in sets.items()}
    frames = []
    for number, network in enumerate(networks):
        maps = class_maps(network, first, real.num_classes)
        features = network.head(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        for label, batch in images.items():
            own = class_maps(network, batch, real.num_classes)
            seen = network.head(own.flatten(0, 1)).unflatten(0, own.shape[:2])
            parts = [spread(seen), covariance_gap(maps.flatten(3), own.flatten(3)), mmd(features, seen)]
            frame = pd.concat([part.drop(columns="class") for part in parts], axis=1)
            first_columns = pd.DataFrame({"network": number, "label": label, "class": list(real.spec.classes)})
            frames.append(pd.concat([first_columns, frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def project(
    features: Mapping[str, Tensor], labels: Mapping[str, Tensor], *, perplexity: float = 30.0, seed: int = 0
) -> pd.DataFrame:
    """Features of several sets in two dimensions, by one t-SNE of all of them.

    Distances between far points, and the sizes of clusters, mean little in such a picture; what it shows is which
    points are neighbours. Source: van der Maaten and Hinton, *Visualizing Data using t-SNE*, JMLR 2008, in
    scikit-learn's form, begun from the first two principal components.

    Args:
        features: by label of the set, [B, D] each.
        labels: the class of each image, [B] each.
        perplexity: about how many neighbours count; it is lowered where there are fewer than three times as many
            points.
        seed: of the algorithm.

    Returns:
        A row an image, with columns label, class (an integer), x, y (no unit).

    Raises:
        ValueError: for fewer than five images in all, or labels that do not fit.
    """
    from sklearn.manifold import TSNE

    if features.keys() != labels.keys() or any(len(features[name]) != len(labels[name]) for name in features):
        raise ValueError("project takes as many labels as features for every set")
    points = torch.cat(list(features.values())).detach().cpu().double().flatten(1)
    if len(points) < 5:
        raise ValueError(f"project needs five or more images, got {len(points)}")
    fitting = min(perplexity, (len(points) - 1) / 3)
    placed = TSNE(perplexity=fitting, init="pca", random_state=seed).fit_transform(points.numpy())
    return pd.DataFrame(
        {
            "label": [name for name, own in features.items() for _ in own],
            "class": torch.cat([labels[name].cpu() for name in features]).tolist(),
            "x": placed[:, 0],
            "y": placed[:, 1],
        }
    )


def _by_class(**columns: Tensor) -> pd.DataFrame:
    values = {name: column.detach().cpu().tolist() for name, column in columns.items()}
    return pd.DataFrame({"class": range(len(next(iter(values.values()))))} | values)
