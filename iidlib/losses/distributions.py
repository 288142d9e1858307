"""Distances of whole distributions of features, beside that of their means: what iid-plus can add to the objective."""

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
    r"""Squared maximum mean discrepancy of real and synthetic features under a Gaussian kernel.

    .. math:: L_{MMD}^c = \overline{k(z, z')} + \overline{k(s, s')} - 2\,\overline{k(z, s)},
        \qquad k(x, y) = \exp\Big(-\frac{\|x - y\|^2}{2\sigma_c^2}\Big)

    Means over all pairs of images, an image with itself included (the biased form). Where mean matching sees the means
    alone, this is zero only for equal distributions. Explained in chapter 15.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012; in dataset distillation Zhang et al., "M3D" (AAAI
    2024).

    Args:
        real: features of real images, [C, N, D].
        syn: features of synthetic images, [C, n, D].
        squared_width: of the kernel, sigma squared, [C], above zero; the mean squared distance of real images to the
            centre of their class is a usual choice.
        real_mask: true where `real` holds an image, [C, N]; None means everywhere.
        syn_mask: likewise for `syn`, [C, n].

    Returns:
        One value a class, [C], in 0 to 2.

    Raises:
        ValueError: on shapes that do not fit, or a class without images.
    """
    _require(real, syn, squared_width, real_mask, syn_mask)
    one, other = shares(real, real_mask), shares(syn, syn_mask)  # [C, N], [C, n]

    def mean_kernel(x: Tensor, x_share: Tensor, y: Tensor, y_share: Tensor) -> Tensor:
        # products, not differences of all pairs: [C, N, n] instead of [C, N, n, D]
        squares = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None] - 2 * x @ y.mT  # [C, N, n]
        kernel = torch.exp(-squares.clamp_min(0) / (2 * squared_width[:, None, None]))
        return (x_share[:, :, None] * kernel * y_share[:, None]).sum((1, 2))  # [C]

    centre = mean(real, real_mask).detach()[:, None]  # [C, 1, D]; near the origin little is lost in the products
    real, syn = zeroed(real - centre, real_mask), zeroed(syn - centre, syn_mask)
    return (
        mean_kernel(real, one, real, one) + mean_kernel(syn, other, syn, other) - 2 * mean_kernel(real, one, syn, other)
    )


def characteristic_distance(
    real: Tensor,
    syn: Tensor,
    squared_width: Tensor,
    frequencies: Tensor,
    real_mask: Tensor | None = None,
    syn_mask: Tensor | None = None,
) -> Tensor:
    r"""Squared difference of the characteristic functions of real and synthetic features, at given frequencies.

    .. math:: L_{CF}^c = \tfrac1F \sum_f
        \big| \overline{e^{i t_f \cdot z / \sigma_c}} - \overline{e^{i t_f \cdot s / \sigma_c}} \big|^2

    With frequencies from the standard normal distribution its expectation is `kernel_distance` of the same width
    (Bochner's theorem), in time and memory that grow with N + n instead of N times n.
    Explained in chapter 15.

    Source: Wang et al., "Dataset distillation with neural characteristic function", CVPR 2025 (NCFM), without its
    network that chooses the frequencies.

    Args:
        real: features of real images, [C, N, D].
        syn: features of synthetic images, [C, n, D].
        squared_width: sigma squared, [C], above zero.
        frequencies: t, [F, D].
        real_mask: true where `real` holds an image, [C, N]; None means everywhere.
        syn_mask: likewise for `syn`, [C, n].

    Returns:
        One value a class, [C], in 0 to 4.

    Raises:
        ValueError: on shapes that do not fit, or a class without images.
    """
    _require(real, syn, squared_width, real_mask, syn_mask)
    if frequencies.ndim != 2 or not len(frequencies) or frequencies.shape[1] != syn.shape[2]:
        raise ValueError(
            f"frequencies must have shape [F, {syn.shape[2]}], F at least 1, got {tuple(frequencies.shape)}"
        )
    width = squared_width.sqrt()[:, None, None]
    centre = mean(real, real_mask).detach()[:, None]  # [C, 1, D]; a shift of both turns the phase alone
    parts = []
    for features, mask in ((real, real_mask), (syn, syn_mask)):
        phase = zeroed((features - centre) / width, mask) @ frequencies.mT  # [C, N, F]
        share = shares(features, mask)[:, :, None]
        parts.append(((share * phase.cos()).sum(1), (share * phase.sin()).sum(1)))  # [C, F] each
    (real_cos, real_sin), (syn_cos, syn_sin) = parts
    return ((real_cos - syn_cos).square() + (real_sin - syn_sin).square()).mean(1)


def _require(
    real: Tensor, syn: Tensor, squared_width: Tensor, real_mask: Tensor | None, syn_mask: Tensor | None
) -> None:
    """Raises ValueError unless both sides are features of the same classes, with a width for each of them."""
    require("real", real, "CND", real_mask)
    require("syn", syn, "CnD", syn_mask)
    require_alike(real, syn, "CND")
    require_statistic("squared_width", squared_width, (syn.shape[0],))
