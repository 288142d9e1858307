"""Measures of sets in feature space: spread within and between classes, covariance gap, MMD, projection.

They show how a distilled set resembles the real images, and how it differs, as seen through a network. Each returns a
data frame with a row per class (or image), which `plots` draws. Nothing is optimised or selected by them.

Axis letters: C classes, N images per class, D feature dimensions, K channels, P positions of the feature map.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from iidlib import losses
from iidlib.config import ComputeConfig
from iidlib.data import RealSet
from iidlib.engine import default_chunk, in_chunks, precision
from iidlib.errors import InputError
from iidlib.networks import Network
from iidlib.rng import stream
from iidlib.synthetic import SyntheticSet

__all__ = ["class_maps", "compare", "covariance_gap", "mmd", "project", "spread"]


@torch.no_grad()
def class_maps(network: Network, images: Tensor, classes: int, *, compute: ComputeConfig | None = None) -> Tensor:
    """Feature maps of images that are sorted by class, equally many per class.

    Args:
        network: the network, on the images' device.
        images: normalised images, [C*N, channels, H, H].
        classes: number of classes C.
        compute: how the hardware is used (``precision``); by default ``ComputeConfig()``.

    Returns:
        Maps [C, N, K, h, w]; feature vectors are ``network.head(maps.flatten(0, 1))``.
    """
    with precision(images.device, (compute or ComputeConfig()).precision):
        maps = in_chunks(network.feature_map, images, default_chunk(images.device) or len(images))  # [C*N, K, h, w]
    return maps.unflatten(0, (classes, -1))  # [C, N, K, h, w]


def spread(features: Tensor) -> pd.DataFrame:
    """Distances of a class's images to its centre, and of the class centres to their mean.

    Args:
        features: feature vectors, [C, N, D].

    Returns:
        A row per class, with columns class, within (mean squared distance of its images to their mean), between
        (squared distance of its mean to the mean of all class means), ratio (within / between; small if classes are
        compact and far apart).

    Raises:
        ValueError: for another shape.
    """
    within = losses.squared_distances(features).mean(1)  # [C, N] -> [C]
    centres = losses.class_mean(features)  # [C, D]
    between = (centres - centres.mean(0)).square().sum(1)  # [C]
    return _by_class(within=within, between=between, ratio=within / between)


def covariance_gap(real: Tensor, syn: Tensor) -> pd.DataFrame:
    """Difference of the local covariances of two sets, relative to the size of the first set's.

    Args:
        real: feature maps, [C, N, K, P].
        syn: feature maps, [C, n, K, P].

    Returns:
        A row per class, with columns class, gap (Frobenius norm of the difference over that of the real covariance; 0
        if they agree, 1 for a set without any variation).

    Raises:
        ValueError: for shapes that do not match.
    """
    with precision(real.device, "fp32"):  # matrix products
        covariance = losses.local_covariance(real)  # [C, K, K]
        gap = losses.covariance_matching(real, syn).sqrt() / covariance.flatten(1).norm(dim=1)  # [C]
    return _by_class(gap=gap)


def mmd(real: Tensor, syn: Tensor) -> pd.DataFrame:
    r"""Squared maximum mean discrepancy of two sets, with a linear and with a Gaussian kernel.

    The linear kernel gives what mean matching minimises, :math:`\|\bar z - \bar z'\|^2`; it is zero for equal means.
    With the Gaussian kernel :math:`\exp(-\|z - z'\|^2 / 2h^2)`, where h is the median distance between real images of
    the class, it is zero only for equal distributions. Both are the plain (biased) estimates, which compare each image
    with itself too: for two samples of one distribution they are positive, and larger for smaller samples.

    Source: Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012.

    Args:
        real: features, [C, N, D], N at least 2.
        syn: features, [C, n, D].

    Returns:
        A row per class, with columns class, linear, gaussian.

    Raises:
        ValueError: for shapes that do not match, or a single real image.
    """
    if real.ndim != 3 or real.shape[1] < 2:
        raise ValueError(f"mmd needs two or more real images per class, [C, N, D], got {tuple(real.shape)}")
    linear = losses.mean_matching(real, syn)  # [C]
    off_diagonal = ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)  # [N, N]
    with precision(real.device, "fp32"):  # matrix products
        distances = torch.cdist(real, real).square()  # [C, N, N]
        gaussian = losses.kernel_distance(real, syn, distances[:, off_diagonal].median(1).values)  # [C]
    return _by_class(linear=linear, gaussian=gaussian.clamp(min=0))


def compare(
    sets: Mapping[str, SyntheticSet],
    real: RealSet,
    networks: Sequence[Network],
    *,
    per_class: int = 100,
    seed: int = 0,
    compute: ComputeConfig | None = None,
) -> pd.DataFrame:
    """All measures of several sets against real images, under several networks.

    Args:
        sets: the sets by label; mosaics are expanded.
        real: the training images.
        networks: frozen networks on the images' device.
        per_class: real images per class to compare with; lowered to half the size of the smallest class.
        seed: seed of their choice. They are not the images that a distillation with this seed starts from.
        compute: how the hardware is used by the networks (``precision``); by default ``ComputeConfig()``. The measures
            themselves are computed in full float32.

    Returns:
        A row per network, label and class, with columns network (its number), label, class (its name), within,
        between, ratio, gap, linear, gaussian, as in `spread`, `covariance_gap` and `mmd`. The label ``real`` is a
        second, disjoint draw of as many real images, which shows the values of the measures when there is no
        difference.

    Raises:
        InputError: for fewer than four real images in a class.
    """
    per_class = min(per_class, int(real.counts.min()) // 2)
    if per_class < 2:
        raise InputError("compare needs four or more real images in every class")
    drawn = real.sample(2 * per_class, stream(seed, 0, "images to compare with"))
    both = real.images_of(drawn.index).unflatten(0, (real.num_classes, 2 * per_class))  # [C, 2N, 3, H, H]
    first, second = (part.flatten(0, 1) for part in both.split(per_class, dim=1))  # [C*N, 3, H, H] each
    images = {"real": second} | {label: one.expanded().images.detach().to(real.device) for label, one in sets.items()}
    frames = []
    for number, network in enumerate(networks):
        real_maps = class_maps(network, first, real.num_classes, compute=compute)  # [C, N, K, h, w]
        real_features = network.head(real_maps.flatten(0, 1)).unflatten(0, real_maps.shape[:2])  # [C, N, D]
        for label, batch in images.items():
            maps = class_maps(network, batch, real.num_classes, compute=compute)  # [C, n, K, h, w]
            features = network.head(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])  # [C, n, D]
            gap = covariance_gap(real_maps.flatten(3), maps.flatten(3))
            parts = [spread(features), gap, mmd(real_features, features)]
            frame = pd.concat([part.drop(columns="class") for part in parts], axis=1)
            first_columns = pd.DataFrame({"network": number, "label": label, "class": list(real.spec.classes)})
            frames.append(pd.concat([first_columns, frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def project(
    features: Mapping[str, Tensor], labels: Mapping[str, Tensor], *, perplexity: float = 30.0, seed: int = 0
) -> pd.DataFrame:
    """Projection of the features of several sets to two dimensions, by one t-SNE of all of them.

    Such a picture shows which points are neighbours; distances between far points and sizes of clusters mean little.
    Source: van der Maaten and Hinton, *Visualizing Data using t-SNE*, JMLR 2008, as implemented by scikit-learn,
    initialised with the first two principal components.

    Args:
        features: features by label of the set, [B, D] each.
        labels: classes of the images by label of the set, [B] each.
        perplexity: effective number of neighbours, lowered if there are fewer than three times as many points.
        seed: seed of the algorithm.

    Returns:
        A row per image, with columns label, class (an integer), x, y (no unit).

    Raises:
        ValueError: for fewer than five images in all, or labels that do not match the features.
    """
    from sklearn.manifold import TSNE

    if features.keys() != labels.keys() or any(len(features[name]) != len(labels[name]) for name in features):
        raise ValueError("project needs as many labels as features for every set")
    points = torch.cat(list(features.values())).detach().cpu().double().flatten(1)  # [B, D]
    if len(points) < 5:
        raise ValueError(f"project needs five or more images, got {len(points)}")
    perplexity = min(perplexity, (len(points) - 1) / 3)
    projected = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points.numpy())  # [B, 2]
    return pd.DataFrame(
        {
            "label": [name for name, own in features.items() for _ in own],
            "class": torch.cat([labels[name].cpu() for name in features]).tolist(),
            "x": projected[:, 0],
            "y": projected[:, 1],
        }
    )


def _by_class(**columns: Tensor) -> pd.DataFrame:
    values = {name: column.detach().cpu().tolist() for name, column in columns.items()}
    return pd.DataFrame({"class": range(len(next(iter(values.values()))))} | values)
