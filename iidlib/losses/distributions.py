"""Distances between whole feature distributions, not only their means; optional terms of iid-plus."""

import torch
from torch import Tensor

from iidlib.losses.masked import mean, require, require_alike, require_statistic, shares, zeroed

__all__ = ["characteristic_distance", "kernel_distance"]


def kernel_distance(
    real: Tensor,
    syn: Tensor,
    squared_width: Tensor,
    real_mask: Tensor | None = None,
    syn_mask: Tensor | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy (MMD) between real and synthetic features under a Gaussian kernel.

    .. math:: L_{MMD}^c = \overline{k(z, z')} + \overline{k(s, s')} - 2\,\overline{k(z, s)},
        \qquad k(x, y) = \exp\Big(-\frac{\|x - y\|^2}{2\sigma_c^2}\Big)

    The means run over all pairs of images, including each image with itself (the biased estimator). Mean matching
    compares means only; this distance is zero only for equal distributions. Explained in chapter 15.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012; in dataset distillation Zhang et al., "M3D" (AAAI
    2024).

    Args:
        real: features of real images, [C, N, D].
        syn: features of synthetic images, [C, n, D].
        squared_width: squared width of the kernel, [C], positive; a common choice is the mean squared distance of the
            real images to their class centre.
        real_mask: true where `real` holds an image, [C, N]; None means everywhere.
        syn_mask: likewise for `syn`, [C, n].

    Returns:
        One value per class, [C], between 0 and 2.

    Raises:
        ValueError: if the shapes do not match, or a class has no images.
    """
    _require(real, syn, squared_width, real_mask, syn_mask)
    real_share, syn_share = shares(real, real_mask), shares(syn, syn_mask)  # [C, N], [C, n]

    def mean_kernel(x: Tensor, x_share: Tensor, y: Tensor, y_share: Tensor) -> Tensor:
        # matrix products instead of differences of all pairs: [C, N, n] rather than [C, N, n, D]
        squares = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None] - 2 * x @ y.mT  # [C, N, n]
        kernel = torch.exp(-squares.clamp_min(0) / (2 * squared_width[:, None, None]))  # [C, N, n]
        return (x_share[:, :, None] * kernel * y_share[:, None]).sum((1, 2))  # [C]

    centre = mean(real, real_mask).detach()[:, None]  # [C, 1, D]; the products are more accurate near the origin
    real, syn = zeroed(real - centre, real_mask), zeroed(syn - centre, syn_mask)  # [C, N, D], [C, n, D]
    within = mean_kernel(real, real_share, real, real_share) + mean_kernel(syn, syn_share, syn, syn_share)  # [C]
    return within - 2 * mean_kernel(real, real_share, syn, syn_share)  # [C]


def characteristic_distance(
    real: Tensor,
    syn: Tensor,
    squared_width: Tensor,
    frequencies: Tensor,
    real_mask: Tensor | None = None,
    syn_mask: Tensor | None = None,
) -> Tensor:
    r"""Squared difference between the characteristic functions of real and synthetic features at given frequencies.

    .. math:: L_{CF}^c = \tfrac1F \sum_f
        \big| \overline{e^{i t_f \cdot z / \sigma_c}} - \overline{e^{i t_f \cdot s / \sigma_c}} \big|^2

    For frequencies drawn from the standard normal distribution, its expectation is `kernel_distance` with the same
    width (Bochner's theorem). Time and memory grow with N + n instead of N times n.
    Explained in chapter 15.

    Source: Wang et al., "Dataset distillation with neural characteristic function", CVPR 2025 (NCFM), without the
    network that chooses the frequencies.

    Args:
        real: features of real images, [C, N, D].
        syn: features of synthetic images, [C, n, D].
        squared_width: sigma squared, [C], positive.
        frequencies: frequencies t, [F, D].
        real_mask: true where `real` holds an image, [C, N]; None means everywhere.
        syn_mask: likewise for `syn`, [C, n].

    Returns:
        One value per class, [C], between 0 and 4.

    Raises:
        ValueError: if the shapes do not match, or a class has no images.
    """
    _require(real, syn, squared_width, real_mask, syn_mask)
    if frequencies.ndim != 2 or not len(frequencies) or frequencies.shape[1] != syn.shape[2]:
        raise ValueError(
            f"frequencies must have shape [F, {syn.shape[2]}], F at least 1, got {tuple(frequencies.shape)}"
        )
    width = squared_width.sqrt()[:, None, None]  # [C, 1, 1]
    centre = mean(real, real_mask).detach()[:, None]  # [C, 1, D]; shifting both sides changes only the phase
    parts = []
    for features, mask in ((real, real_mask), (syn, syn_mask)):
        phase = zeroed((features - centre) / width, mask) @ frequencies.mT  # [C, N, F]
        share = shares(features, mask)[:, :, None]  # [C, N, 1]
        parts.append(((share * phase.cos()).sum(1), (share * phase.sin()).sum(1)))  # [C, F] each
    (real_cos, real_sin), (syn_cos, syn_sin) = parts
    return ((real_cos - syn_cos).square() + (real_sin - syn_sin).square()).mean(1)  # [C]


def _require(
    real: Tensor, syn: Tensor, squared_width: Tensor, real_mask: Tensor | None, syn_mask: Tensor | None
) -> None:
    """Raises ValueError unless both sides are features of the same classes and each class has a width."""
    require("real", real, "CND", real_mask)
    require("syn", syn, "CnD", syn_mask)
    require_alike(real, syn, "CND")
    require_statistic("squared_width", squared_width, (syn.shape[0],))
