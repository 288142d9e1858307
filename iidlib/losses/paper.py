"""The paper's equations, as pure functions over a class axis.

Each loss takes the features of all C classes at once and returns one value a class, shape [C]; the objective is their
sum. Axis letters: C classes, N real images a class, n synthetic images a class, D feature dimensions, K channels,
P positions of the feature map (height times width). Classes of unequal size are padded along the image axis and come
with a boolean mask that is true for real entries; padded entries take no part in any sum, whatever they hold.

Source: Deng et al., "Exploiting Inter-sample and Inter-feature Relations in Dataset Distillation", CVPR 2024
(arXiv 2404.00563), in the form of its released code; mean matching is that of Zhao and Bilen, "Dataset Condensation
with Distribution Matching", WACV 2023.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.losses.masked import centred, counts, mean, require, require_alike, require_statistic

__all__ = [
    "class_centralization",
    "class_cross_entropy",
    "class_mean",
    "covariance_matching",
    "covariance_matching_to",
    "local_covariance",
    "mean_matching",
    "mean_matching_to",
    "squared_distances",
]


def class_mean(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean feature vectors of the classes.

    Args:
        features: [C, N, D].
        mask: true where `features` holds an image, [C, N]; None means everywhere.

    Returns:
        [C, D].

    Raises:
        ValueError: on a wrong shape, or a class without images.
    """
    require("features", features, "CND", mask)
    return mean(features, mask)


def mean_matching(real: Tensor, syn: Tensor, real_mask: Tensor | None = None, syn_mask: Tensor | None = None) -> Tensor:
    r"""Squared distance between the mean features of real and synthetic images (DM).

    .. math:: L_{DM}^c = \Big\| \tfrac1N \sum_j z(T_{cj}) - \tfrac1n \sum_i z(S_{ci}) \Big\|^2

    A plain sum over the D dimensions, not divided by D, as in the released code. Explained in chapter 02.

    Args:
        real: features of real images, [C, N, D].
        syn: features of synthetic images, [C, n, D].
        real_mask: true where `real` holds an image, [C, N]; None means everywhere.
        syn_mask: likewise for `syn`, [C, n].

    Returns:
        One value a class, [C], not negative; zero exactly where the means agree.

    Raises:
        ValueError: on shapes that do not fit, or a class without images.

    Example:
        >>> real, syn = torch.zeros(2, 5, 3), torch.ones(2, 1, 3)  # C = 2, N = 5, n = 1, D = 3
        >>> mean_matching(real, syn)
        tensor([3., 3.])
    """
    require("real", real, "CND", real_mask)
    require("syn", syn, "CnD", syn_mask)
    require_alike(real, syn, "CND")
    return mean_matching_to(class_mean(real, real_mask), syn, syn_mask)


def mean_matching_to(real_mean: Tensor, syn: Tensor, syn_mask: Tensor | None = None) -> Tensor:
    """`mean_matching` where the mean features of the real images, [C, D], are known."""
    require("syn", syn, "CnD", syn_mask)
    require_statistic("real_mean", real_mean, (syn.shape[0], syn.shape[2]))
    return (real_mean - mean(syn, syn_mask)).square().sum(1)


def local_covariance(fmap: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Local covariance: how channels vary together over the positions and images of a class.

    .. math:: \Sigma^c = \tfrac1N \sum_b (X_b - M)(X_b - M)^\top, \qquad M = \tfrac1N \sum_b X_b

    The P positions of a feature map are the observations, so N images of a class give N·P observations in K dimensions.
    Centred per channel *and position* over the images (not over positions); divided by N only (not N-1, not by P).
    The rank is at most P(N-1); with one image the result is zero and so is its gradient. Explained in chapter 05.

    Args:
        fmap: feature maps, [C, N, K, P].
        mask: true where `fmap` holds an image, [C, N]; None means everywhere.

    Returns:
        [C, K, K], symmetric and positive semi-definite.

    Raises:
        ValueError: on a wrong shape, or a class without images.
    """
    require("fmap", fmap, "CNKP", mask)
    observations = centred(fmap, mask).permute(0, 2, 1, 3).flatten(2)  # [C, K, N*P]: one matrix product a class
    return observations @ observations.mT / counts(fmap, mask)[:, None, None]


def covariance_matching(
    real: Tensor, syn: Tensor, real_mask: Tensor | None = None, syn_mask: Tensor | None = None
) -> Tensor:
    r"""Squared Frobenius distance between the local covariances of real and synthetic images (CM).

    .. math:: L_{CM}^c = \| \Sigma_{real}^c - \Sigma_{syn}^c \|_F^2

    Explained in chapter 05.

    Args:
        real: feature maps of real images, [C, N, K, P].
        syn: feature maps of synthetic images, [C, n, K, P].
        real_mask: true where `real` holds an image, [C, N]; None means everywhere.
        syn_mask: likewise for `syn`, [C, n].

    Returns:
        One value a class, [C], a sum over the K·K entries. With one synthetic image a class the gradient is zero.

    Raises:
        ValueError: on shapes that do not fit, or a class without images.

    Example:
        >>> real = torch.tensor([[[[1.0], [0.0]], [[-1.0], [0.0]]]])  # C = 1, N = 2, K = 2, P = 1
        >>> covariance_matching(real, real[:, :1])  # a single synthetic image does not vary
        tensor([1.])
    """
    require("real", real, "CNKP", real_mask)
    require("syn", syn, "CnKP", syn_mask)
    require_alike(real, syn, "CNKP")
    return covariance_matching_to(local_covariance(real, real_mask), syn, syn_mask)


def covariance_matching_to(real_covariance: Tensor, syn: Tensor, syn_mask: Tensor | None = None) -> Tensor:
    """`covariance_matching` where the local covariances of the real images, [C, K, K], are known."""
    require("syn", syn, "CnKP", syn_mask)
    require_statistic("real_covariance", real_covariance, (syn.shape[0], syn.shape[2], syn.shape[2]))
    return (real_covariance - local_covariance(syn, syn_mask)).square().sum((1, 2))


def squared_distances(features: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Squared distance of each image to the centre of its class, :math:`d_i = \|f_i - \bar f\|^2`.

    Explained in chapter 04.

    Args:
        features: [C, n, D].
        mask: true where `features` holds an image, [C, n]; None means everywhere.

    Returns:
        [C, n]; zero where the mask is false.

    Raises:
        ValueError: on a wrong shape, or a class without images.
    """
    require("features", features, "CnD", mask)
    return centred(features, mask).square().sum(2)


def scatter(features: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared distance of the images of a class to its centre, :math:`\overline{d_i}`: a unit for distances.

    It is exactly zero where the features of a class differ by less than a thousandth of their length, which is how far
    copies of one image may lie apart by rounding alone: distances in units of that say nothing.

    Args:
        features: [C, n, D].
        mask: true where `features` holds an image, [C, n]; None means everywhere.

    Returns:
        [C]

    Raises:
        ValueError: on a wrong shape, or a class without images.
    """
    distances = squared_distances(features, mask)  # [C, n]
    counts = distances.shape[1] if mask is None else mask.sum(1)
    found, lengths = distances.sum(1) / counts, features.square().sum(2)
    if mask is not None:
        lengths = lengths.where(mask, 0)
    return found.where(found > 1e-6 * lengths.sum(1) / counts, 0)


def class_centralization(
    features: Tensor, mask: Tensor | None = None, *, form: str = "linear", alpha: float = 0.02, beta: float = 0.0
) -> Tensor:
    r"""Class centralization: synthetic images of a class gather around their centre (CC).

    .. math::
        \begin{gathered}
        d_i = \|f_i - \bar f\|^2 \\
        \text{linear:} \quad L_{CC}^c = \sum_i d_i \\
        \text{exp:} \quad L_{CC}^c = \sum_i \max(0, e^{\alpha d_i} - \beta)
        \end{gathered}

    The linear form is what the authors released, with a comment that it does as well as the other. The exp form is
    inferred from lines they left commented out: since :math:`e^{\alpha d} \ge 1`, beta acts only above 1, where an
    image is pulled only while :math:`d > \ln\beta / \alpha`; at small d it equals the linear form times alpha (and a
    constant). In float32 it overflows for :math:`\alpha d` above 88: for d above about 4400 at the default alpha.

    A SUM over images, as released: it grows with n while mean matching does not (see ``match.cc_scaling``).
    Explained in chapter 04.

    Args:
        features: features of the synthetic images under a trained network, [C, n, D].
        mask: true where `features` holds an image, [C, n]; None means everywhere.
        form: ``"linear"`` or ``"exp"``.
        alpha: scale of the exponent (exp form only).
        beta: what an image may cost before it is pulled (exp form only).

    Returns:
        One value a class, [C], not negative. With one image a class the gradient is zero.

    Raises:
        ValueError: on a wrong shape, a class without images, or an unknown form.

    Example:
        >>> features = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])  # C = 1, n = 2, D = 2: both 1 from their centre
        >>> class_centralization(features)
        tensor([2.])
    """
    distances = squared_distances(features, mask)
    if form == "linear":
        return distances.sum(1)
    if form == "exp":
        cost = (torch.exp(alpha * distances) - beta).clamp_min(0)
        return (cost if mask is None else torch.where(mask, cost, 0)).sum(1)
    raise ValueError(f"form must be 'linear' or 'exp', got {form!r}")


def class_cross_entropy(logits: Tensor) -> Tensor:
    """Mean cross-entropy of each class's images with their own class as the label.

    IDM's class-aware distribution regularisation (Zhao et al., CVPR 2023), before its weight: there the accuracy of
    the network that gives the logits is part of the weight, so that an untrained one has no say.

    Args:
        logits: of synthetic images sorted by class, [C, n, C].

    Returns:
        One value a class, [C], in nats.

    Raises:
        ValueError: on a wrong shape, or a class without images.
    """
    require("logits", logits, "CnC")
    if logits.shape[0] != logits.shape[2]:
        raise ValueError(f"logits must have one value a class in their last axis, got {tuple(logits.shape)}")
    own = torch.arange(len(logits), device=logits.device)[:, None].expand(logits.shape[:2])
    costs = F.cross_entropy(logits.flatten(0, 1), own.flatten(), reduction="none")
    return costs.view(logits.shape[:2]).mean(1)
