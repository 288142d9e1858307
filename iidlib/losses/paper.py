"""The paper's equations, as pure functions over a class axis.

Each loss takes the features of all C classes at once and returns one value per class, [C]; the objective is their sum.
Axis letters: C classes, N real images per class, n synthetic images per class, D feature dimensions, K channels,
P positions of the feature map (height times width). Classes of unequal size are padded along the image axis and need a
boolean mask that is true at images; padded entries do not contribute to any sum, whatever they hold.

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
    """Mean feature vector of each class.

    Args:
        features: [C, N, D].
        mask: true where `features` holds an image, [C, N]; None means everywhere.

    Returns:
        [C, D].

    Raises:
        ValueError: if the shape is wrong, or a class has no images.
    """
    require("features", features, "CND", mask)
    return mean(features, mask)  # [C, D]


def mean_matching(real: Tensor, syn: Tensor, real_mask: Tensor | None = None, syn_mask: Tensor | None = None) -> Tensor:
    r"""Squared distance between the mean features of real and synthetic images (DM).

    .. math:: L_{DM}^c = \Big\| \tfrac1N \sum_j z(T_{cj}) - \tfrac1n \sum_i z(S_{ci}) \Big\|^2

    As in the released code, the sum over the D dimensions is not divided by D. Explained in chapter 02.

    Args:
        real: features of real images, [C, N, D].
        syn: features of synthetic images, [C, n, D].
        real_mask: true where `real` holds an image, [C, N]; None means everywhere.
        syn_mask: likewise for `syn`, [C, n].

    Returns:
        One value per class, [C], non-negative; zero exactly where the means agree.

    Raises:
        ValueError: if the shapes do not match, or a class has no images.

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
    """`mean_matching` with given mean features of the real images, [C, D]."""
    require("syn", syn, "CnD", syn_mask)
    require_statistic("real_mean", real_mean, (syn.shape[0], syn.shape[2]))
    return (real_mean - mean(syn, syn_mask)).square().sum(1)  # [C]


def local_covariance(fmap: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Covariance of the channels over the positions and images of each class (local covariance).

    .. math:: \Sigma^c = \tfrac1N \sum_b (X_b - M)(X_b - M)^\top, \qquad M = \tfrac1N \sum_b X_b

    The observations are the P positions of the feature maps: N images of a class give N·P observations in K dimensions.
    They are centred per channel *and position* over the images (not over positions), and their sum is divided by N (not
    N-1 or P). The rank is at most P(N-1); for a single image the result and its gradient are zero.
    Explained in chapter 05.

    Args:
        fmap: feature maps, [C, N, K, P].
        mask: true where `fmap` holds an image, [C, N]; None means everywhere.

    Returns:
        [C, K, K], symmetric and positive semi-definite.

    Raises:
        ValueError: if the shape is wrong, or a class has no images.
    """
    require("fmap", fmap, "CNKP", mask)
    observations = centred(fmap, mask).permute(0, 2, 1, 3).flatten(2)  # [C, K, N*P]
    return observations @ observations.mT / counts(fmap, mask)[:, None, None]  # [C, K, K]


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
        One value per class, [C], a sum over the K·K entries. With one synthetic image per class the gradient is zero.

    Raises:
        ValueError: if the shapes do not match, or a class has no images.

    Example:
        >>> real = torch.tensor([[[[0.0]], [[2.0]]]])  # C = 1, N = 2, K = 1, P = 1: variance 1
        >>> covariance_matching(real, torch.ones(1, 3, 1, 1))  # n = 3 equal images: variance 0
        tensor([1.])
    """
    require("real", real, "CNKP", real_mask)
    require("syn", syn, "CnKP", syn_mask)
    require_alike(real, syn, "CNKP")
    return covariance_matching_to(local_covariance(real, real_mask), syn, syn_mask)


def covariance_matching_to(real_covariance: Tensor, syn: Tensor, syn_mask: Tensor | None = None) -> Tensor:
    """`covariance_matching` with given local covariances of the real images, [C, K, K]."""
    require("syn", syn, "CnKP", syn_mask)
    require_statistic("real_covariance", real_covariance, (syn.shape[0], syn.shape[2], syn.shape[2]))
    return (real_covariance - local_covariance(syn, syn_mask)).square().sum((1, 2))  # [C]


def squared_distances(features: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Squared distance of each image to its class centre, :math:`d_i = \|f_i - \bar f\|^2`.

    Explained in chapter 04.

    Args:
        features: [C, n, D].
        mask: true where `features` holds an image, [C, n]; None means everywhere.

    Returns:
        [C, n]; zero where the mask is false.

    Raises:
        ValueError: if the shape is wrong, or a class has no images.
    """
    require("features", features, "CnD", mask)
    return centred(features, mask).square().sum(2)  # [C, n]


def scatter(features: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared distance of the images of a class to its centre, :math:`\overline{d_i}`, a unit for distances.

    The result is exactly zero if the features of a class differ by less than a thousandth of their norm: rounding alone
    can move copies of one image that far apart, so distances in such a unit would be meaningless.

    Args:
        features: [C, n, D].
        mask: true where `features` holds an image, [C, n]; None means everywhere.

    Returns:
        [C].

    Raises:
        ValueError: if the shape is wrong, or a class has no images.
    """
    distances = squared_distances(features, mask)  # [C, n]
    images = distances.shape[1] if mask is None else mask.sum(1)  # number, or [C]
    unit, norms = distances.sum(1) / images, features.square().sum(2)  # [C], [C, n]
    if mask is not None:
        norms = norms.where(mask, 0)  # [C, n]
    return unit.where(unit > 1e-6 * norms.sum(1) / images, 0)  # [C]


def class_centralization(
    features: Tensor, mask: Tensor | None = None, *, form: str = "linear", alpha: float = 0.02, beta: float = 0.0
) -> Tensor:
    r"""Class centralization: pulls the synthetic images of a class towards their centre (CC).

    .. math::
        \begin{gathered}
        d_i = \|f_i - \bar f\|^2 \\
        \text{linear:} \quad L_{CC}^c = \sum_i d_i \\
        \text{exp:} \quad L_{CC}^c = \sum_i \max(0, e^{\alpha d_i} - \beta)
        \end{gathered}

    The authors released the linear form, with a comment that it performs as well as the other. The exp form is inferred
    from code they commented out. Since :math:`e^{\alpha d} \ge 1`, beta has an effect only above 1, where an image is
    pulled only while :math:`d > \ln\beta / \alpha`; for small d the form equals alpha times the linear one, plus a
    constant. In float32 it overflows for :math:`\alpha d` above 88: for d above about 4400 at the default alpha.

    As released, this is a SUM over images: it grows with n while mean matching does not (see ``match.cc_scaling``).
    Explained in chapter 04.

    Args:
        features: features of the synthetic images from a pretrained network, [C, n, D].
        mask: true where `features` holds an image, [C, n]; None means everywhere.
        form: ``"linear"`` or ``"exp"``.
        alpha: scale of the exponent (exp form only).
        beta: cost below which an image is not pulled (exp form only).

    Returns:
        One value per class, [C], non-negative. With one image per class the gradient is zero.

    Raises:
        ValueError: if the shape is wrong, a class has no images, or the form is unknown.

    Example:
        >>> features = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])  # C = 1, n = 2, D = 2: both 1 from the centre
        >>> class_centralization(features)
        tensor([2.])
    """
    distances = squared_distances(features, mask)  # [C, n]
    if form == "linear":
        return distances.sum(1)  # [C]
    if form == "exp":
        cost = (torch.exp(alpha * distances) - beta).clamp_min(0)  # [C, n]
        return (cost if mask is None else torch.where(mask, cost, 0)).sum(1)  # [C]
    raise ValueError(f"form must be 'linear' or 'exp', got {form!r}")


def class_cross_entropy(logits: Tensor, classes: range | None = None) -> Tensor:
    """Mean cross-entropy of the images of each class, labelled with that class.

    IDM's class-aware distribution regularisation (Zhao et al., CVPR 2023) without its weight. That weight includes the
    accuracy of the network that computes the logits, so an untrained network contributes nothing.

    Args:
        logits: logits of synthetic images sorted by class, [C, n, C].
        classes: the classes of the first axis if these are only some, [G, n, C]; None for all.

    Returns:
        One value per class, [C] or [G], in nats.

    Raises:
        ValueError: if the shape is wrong, or a class has no images.
    """
    require("logits", logits, "CnC")
    classes = range(logits.shape[2]) if classes is None else classes
    if logits.shape[0] != len(classes) or classes.stop > logits.shape[2]:
        raise ValueError(f"logits must have one value per class in their last axis, got {tuple(logits.shape)}")
    labels = torch.arange(classes.start, classes.stop, device=logits.device)[:, None].expand(logits.shape[:2])  # [C, n]
    costs = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")  # [C*n]
    return costs.view(logits.shape[:2]).mean(1)  # [C]
