"""Conversion and validation of the parts of a synthetic set; bad input raises a one-line error.

Sets come from optimisers, numpy and other people's files: in half precision, as pixels, with labels in a list. They are
converted here, once, to the one form that all other code relies on.
"""

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iidlib.data import DatasetSpec, RealSet, normalize
from iidlib.errors import InputError, listed, one_line
from iidlib.synthetic.mosaics import expand

__all__ = ["as_count", "as_factor", "as_images", "as_labels", "check_real", "check_spec", "class_order"]


LARGEST = torch.finfo(torch.float32).max
"""Largest mean or standard deviation, as images are normalised in float32."""

SMALLEST = torch.finfo(torch.float32).tiny
"""Smallest standard deviation; anything below it is 0 in float32."""


def check_spec(spec: DatasetSpec) -> None:
    """Rejects a specification with which images cannot be normalised.

    Raises:
        InputError: if it is not a DatasetSpec, has no classes, or does not have one mean and one positive standard
            deviation per channel.
    """
    if not isinstance(spec, DatasetSpec):
        raise InputError(f"spec must be a DatasetSpec, such as load_dataset('cifar10').spec, got {_short(spec)}")
    if not spec.classes:
        raise InputError(
            f"the spec of {spec.name} has no classes; use that of a loaded dataset: load_dataset(...).spec"
        )
    for name, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) != spec.channels or not all(abs(number) <= LARGEST for number in numbers):  # NaN is not
            raise InputError(
                f"the spec of {spec.name} needs one {name} for each of {spec.channels} channels, got {numbers}"
            )
    if min(spec.std) < SMALLEST:
        raise InputError(f"std of the spec of {spec.name} must be above 0, as images are divided by it; got {spec.std}")


def as_images(given: object, spec: DatasetSpec) -> Tensor:
    """Images as a set holds them, float32 [C*ipc, K_in, H, H], normalised; the given tensor itself if it fits already.

    Other floating-point types become float32. uint8 is interpreted as pixels and normalised with the mean and standard
    deviation of `spec`. Layout, device and ``requires_grad`` do not change.

    Args:
        given: a tensor, or anything that `torch.as_tensor` accepts.
        spec: specification of the dataset that the images represent.

    Raises:
        InputError: for a wrong shape or type, no images, or values that are not finite in float32.
    """
    images = _as_tensor(given, "images")
    size, classes = spec.image_size, len(spec.classes)
    shape = (spec.channels, size, size)
    wanted = f"a synthetic set of {spec.name} needs images [{classes} * ipc, {', '.join(map(str, shape))}]"
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        last = tuple(images.shape[1:]) == (size, size, spec.channels)
        remedy = "; channels come first: images.permute(0, 3, 1, 2)" if last else ""
        raise InputError(f"{wanted}, got {tuple(images.shape)}{remedy}")
    if not len(images) or len(images) % classes:
        equal = "at least one image of each class" if not len(images) else "the same number of images for each class"
        raise InputError(f"{wanted}, got {tuple(images.shape)}; it must have {equal}")
    if images.dtype == torch.uint8:
        images = normalize(images, spec)
    elif not images.is_floating_point():
        raise InputError(
            f"images of a synthetic set must be floating point, normalised, or pixels in uint8; got {_kind(images)}"
        )
    images = images.float()  # the same tensor if it is float32 already
    if not bool(torch.isfinite(images.detach()).all()):
        wrong = (~torch.isfinite(images.detach())).flatten(1).any(1).nonzero()[:, 0].tolist()  # indices of images
        raise InputError(
            f"{len(wrong)} of {len(images)} images hold values that are not finite (NaN, or beyond float32), the first "
            f"is image {wrong[0]}; such a set trains no network"
        )
    return images


def as_labels(given: object, images: Tensor, spec: DatasetSpec) -> Tensor:
    """Labels as a set holds them, int64 [C*ipc], on the images' device; the given tensor itself if it fits already.

    Args:
        given: whole numbers, in a tensor or anything that `torch.as_tensor` accepts.
        images: their images, as returned by `as_images`.
        spec: specification of the dataset whose classes they index.

    Raises:
        InputError: for a wrong number of labels, a label that is not a class, or unequal numbers of images per class.
    """
    labels = _as_tensor(list(given) if isinstance(given, range) else given, "labels")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        soft = "; soft labels are not supported" if labels.ndim == 2 else ""
        raise InputError(
            f"labels of a synthetic set must be whole numbers, the index of a class; got {_kind(labels)}{soft}"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"labels of a synthetic set must be [{len(images)}], one for each image, got {list(labels.shape)}"
        )
    labels = labels.to(device=images.device, dtype=torch.int64)  # [C*ipc]
    classes = len(spec.classes)
    outside = ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if outside:
        raise InputError(
            f"labels of a synthetic set of {spec.name} must lie in 0 to {classes - 1}, got {int(labels[outside[0]])} "
            f"for image {outside[0]}"
        )
    ipc = len(images) // classes
    counts = torch.bincount(labels, minlength=classes).tolist()  # [C]
    if unequal := [label for label, count in enumerate(counts) if count != ipc]:
        numbers = listed([f"{spec.classes[label]!r} {counts[label]}" for label in unequal], 3)
        raise InputError(f"a synthetic set of {len(images)} images needs {ipc} of each class; got {numbers}")
    return labels


def as_factor(given: object) -> int:
    """The partition factor as an int; `expand` checks that it divides the images.

    Raises:
        InputError: if it is not a whole number.
    """
    return as_count(given, "factor")


def as_count(given: object, called: str) -> int:
    """A whole number as an int; booleans are rejected.

    Raises:
        InputError: if it is not a whole number.
    """
    try:
        if isinstance(given, bool):
            raise TypeError
        return operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{called} of a synthetic set must be a whole number, got {_short(given)}") from None


def check_real(real: object, ipc: int, init: str, factor: int) -> tuple[int, int]:
    """Rejects a start for which a class has too few images.

    Args:
        real: the training images.
        ipc: images stored per class.
        init: how the images are chosen; ``crops`` and ``noise`` take the same number of real images for every factor.
        factor: number of tiles along a side of an image.

    Returns:
        `ipc` and `factor` as whole numbers.

    Raises:
        InputError: if `real` is not a set of real images, ipc is below 1, the smallest class has too few images, or the
            factor does not divide the image's side.
    """
    if not isinstance(real, RealSet):
        raise InputError(
            f"real must be a RealSet, such as load_dataset('cifar10-mini').train, got a {type(real).__name__}"
        )
    ipc, factor = as_count(ipc, "ipc"), as_factor(factor)
    size, smallest = real.spec.image_size, int(real.counts.min())
    name = real.spec.classes[int(real.counts.argmin())]
    expand(torch.empty(1, real.spec.channels, size, size), factor)  # rejects a factor that does not fit
    if not 1 <= ipc <= smallest:
        raise InputError(
            f"ipc must be 1 to {smallest}, the training images of class {name!r} in {real.spec.name}, not {ipc}"
        )
    taken = ipc if init in ("crops", "noise") else ipc * factor**2
    if taken > smallest:
        fewer = smallest // factor**2
        remedy = f"lower ipc to {fewer} or less, or syn.factor" if fewer else "lower syn.factor"
        raise InputError(
            f"ipc {ipc} with syn.factor {factor} takes {taken} real images per class, but class {name!r} in "
            f"{real.spec.name} has {smallest}; {remedy}, or use syn.init=crops"
        )
    return ipc, factor


def class_order(labels: Tensor) -> Tensor | None:
    """Indices that sort labels [N] in ascending order, stably.

    Returns:
        int64 [N] on the labels' device, or None if the labels are sorted already.
    """
    if bool((labels[1:] >= labels[:-1]).all()):
        return None
    return labels.argsort(stable=True)  # [N]


def _as_tensor(given: object, called: str) -> Tensor:
    if isinstance(given, Sequence) and len(given) and all(isinstance(one, Tensor) for one in given):
        raise InputError(
            f"{called} of a synthetic set must be one tensor, got a list of {len(given)}: torch.stack them"
        )
    try:
        if isinstance(given, np.ndarray):  # torch accepts neither foreign byte order nor a reversed axis
            given = np.ascontiguousarray(given, dtype=given.dtype.newbyteorder("="))
        tensor = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise InputError(f"{called} of a synthetic set must be a tensor, got {_short(given)} ({reason})") from None
    if tensor.is_nested:
        raise InputError(f"{called} of a synthetic set must be one tensor, got a nested one: torch.stack its parts")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise InputError(f"{called} of a synthetic set must be a dense tensor with values, got {_kind(tensor)}")
    return tensor


def _kind(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" {str(tensor.layout).removeprefix('torch.')}"
    return (
        f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}{layout}{' on meta' if tensor.is_meta else ''}"
    )


def _short(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
