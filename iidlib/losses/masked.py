"""Padded tensors of classes of unequal size: checks of their shapes, and means that ignore padding."""

import torch
from torch import Tensor

__all__ = ["centred", "counts", "mean", "require", "require_alike", "require_statistic", "shares", "zeroed"]


def require(name: str, x: Tensor, axes: str, mask: Tensor | None = None) -> None:
    """Raises ValueError unless `x` has the given axes, an image per class, and a mask of its first two axes."""
    if x.ndim != len(axes):
        raise ValueError(f"{name} must have shape [{', '.join(axes)}], got {tuple(x.shape)}")
    if x.shape[1] == 0:
        raise ValueError(f"{name} must hold at least one image per class, got shape {tuple(x.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
        raise ValueError(
            f"the mask of {name} must be boolean of shape {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
        )


def require_alike(real: Tensor, syn: Tensor, axes: str) -> None:
    """Raises ValueError unless both sides agree in all axes but that of the images."""
    if real.shape[0] != syn.shape[0] or real.shape[2:] != syn.shape[2:]:
        raise ValueError(
            f"real and syn must agree in every axis of [{', '.join(axes)}] except the second, "
            f"got {tuple(real.shape)} and {tuple(syn.shape)}"
        )


def require_statistic(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `x` has the shape that the synthetic images require."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to match the synthetic images, got {tuple(x.shape)}")


def counts(x: Tensor, mask: Tensor | None) -> Tensor:
    """Number of images per class, [C], in the dtype of `x`."""
    if mask is None:
        return x.new_full((x.shape[0],), x.shape[1])  # [C]
    images = mask.sum(1)  # [C]
    if not bool((images > 0).all()):
        raise ValueError("every class needs at least one image; a class whose mask is all false has none")
    return images.to(x.dtype)


def mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [C, N, ...] over the image axis without padded entries, [C, ...]."""
    if mask is None:
        return x.mean(1)  # [C, ...]
    weights = mask.reshape(mask.shape + (1,) * (x.ndim - 2))  # [C, N, 1, ...]
    total = torch.where(weights, x, 0).sum(1)  # [C, ...]
    return total / counts(x, mask).reshape((-1,) + (1,) * (x.ndim - 2))  # [C, ...]


def centred(x: Tensor, mask: Tensor | None) -> Tensor:
    """[C, N, ...] minus its mean over the image axis; zero, without a gradient, at padded entries."""
    offsets = x - mean(x, mask).unsqueeze(1)  # [C, N, ...]
    if mask is None:
        return offsets
    return torch.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), offsets, 0)  # [C, N, ...]


def zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """[C, N, D] with zeros at padded entries, whatever they hold."""
    return x if mask is None else torch.where(mask[:, :, None], x, 0)  # [C, N, D]


def shares(x: Tensor, mask: Tensor | None) -> Tensor:
    """Weight of each image in the mean of its class, [C, N]; zero at padded entries."""
    if mask is None:
        return x.new_full(x.shape[:2], 1 / x.shape[1])  # [C, N]
    return mask.to(x.dtype) / counts(x, mask)[:, None]  # [C, N]
