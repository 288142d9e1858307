"""What a synthetic set is made of, taken in the forms that people have it in, or refused in one line.

Sets come from optimisers, numpy, other people's files: in half precision, as pixels, with labels in a list. All that
uses a set may rely on one form, which is made here or nowhere.
"""

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iidlib.data import DatasetSpec, normalize
from iidlib.errors import InputError, listed, one_line

__all__ = ["as_count", "as_factor", "as_images", "as_labels", "check_spec", "class_order"]


LARGEST = torch.finfo(torch.float32).max
"""The largest mean or deviation, as images are normalised in float32."""

SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest deviation: one below it is 0 there."""


def check_spec(spec: DatasetSpec) -> None:
    """Refuses a specification by which images cannot be normalised.

    Raises:
        InputError: if it is none, has no classes, or has not one mean and one deviation above zero for each channel.
    """
    if not isinstance(spec, DatasetSpec):
        raise InputError(f"spec must be a DatasetSpec, such as load_dataset('cifar10').spec, got {_short(spec)}")
    if not spec.classes:
        raise InputError(
            f"the spec of {spec.name} names no classes; take that of a loaded dataset: load_dataset(...).spec"
        )
    for name, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) != spec.channels or not all(abs(number) <= LARGEST for number in numbers):  # NaN is not
            raise InputError(
                f"the spec of {spec.name} needs one {name} for each of {spec.channels} channels, got {numbers}"
            )
    if min(spec.std) < SMALLEST:
        raise InputError(f"std of the spec of {spec.name} must be above 0, by which images are divided; got {spec.std}")


def as_images(given: object, spec: DatasetSpec) -> Tensor:
    """Images as a set holds them, float32 [C*ipc, K, H, H], normalised; the very tensor given where it is so already.

    Other floating point becomes float32. uint8 is taken for pixels, and normalised with the mean and deviation of
    `spec`. Layout, device, and whether a gradient is needed stay as they are.

    Args:
        given: a tensor, or what `torch.as_tensor` makes one of.
        spec: of the dataset that they stand for.

    Raises:
        InputError: for another shape, another type of number, no images, or numbers that are not finite in float32.
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
        raise InputError(f"{wanted}, got {tuple(images.shape)}; it takes {equal}")
    if images.dtype == torch.uint8:
        images = normalize(images, spec)
    elif not images.is_floating_point():
        raise InputError(
            f"images of a synthetic set must be floating point, normalised, or pixels in uint8; got {_kind(images)}"
        )
    images = images.float()  # the tensor itself where it is float32
    if not bool(torch.isfinite(images.detach()).all()):
        wrong = (~torch.isfinite(images.detach())).flatten(1).any(1).nonzero()[:, 0].tolist()
        raise InputError(
            f"{len(wrong)} of {len(images)} images hold values that are not finite (NaN, or beyond float32), the first "
            f"is image {wrong[0]}; such a set trains no network"
        )
    return images


def as_labels(given: object, images: Tensor, spec: DatasetSpec) -> Tensor:
    """Labels as a set holds them, int64 [C*ipc], on the images' device; the very tensor given where it is so already.

    Args:
        given: whole numbers, in a tensor or in what `torch.as_tensor` makes one of.
        images: what they belong to, as `as_images` gives them.
        spec: of the dataset, whose classes they number.

    Raises:
        InputError: for another number of labels, what is no class, or classes with unequal numbers of images.
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
    labels = labels.to(device=images.device, dtype=torch.int64)
    classes = len(spec.classes)
    outside = ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if outside:
        raise InputError(
            f"labels of a synthetic set of {spec.name} must lie in 0 to {classes - 1}, got {int(labels[outside[0]])} "
            f"for image {outside[0]}"
        )
    ipc = len(images) // classes
    counts = torch.bincount(labels, minlength=classes).tolist()
    if unequal := [label for label, count in enumerate(counts) if count != ipc]:
        told = listed([f"{spec.classes[label]!r} {counts[label]}" for label in unequal], 3)
        raise InputError(f"a synthetic set of {len(images)} images needs {ipc} of each class; there are of {told}")
    return labels


def as_factor(given: object) -> int:
    """The partition factor as an int; whether it divides the images, `expand` says.

    Raises:
        InputError: if it is no whole number.
    """
    return as_count(given, "factor")


def as_count(given: object, called: str) -> int:
    """A whole number as an int; what is true or false is none.

    Raises:
        InputError: if it is no whole number.
    """
    try:
        if isinstance(given, bool):
            raise TypeError
        return operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{called} of a synthetic set must be a whole number, got {_short(given)}") from None


def class_order(labels: Tensor) -> Tensor | None:
    """Indices that bring labels into ascending order and leave equal ones as they follow each other.

    Returns:
        int64 [N] on the labels' device, or None where the labels are in order.
    """
    if bool((labels[1:] >= labels[:-1]).all()):
        return None
    return labels.argsort(stable=True)


def _as_tensor(given: object, called: str) -> Tensor:
    if isinstance(given, Sequence) and len(given) and all(isinstance(one, Tensor) for one in given):
        raise InputError(
            f"{called} of a synthetic set must be one tensor, got a list of {len(given)}: torch.stack them"
        )
    try:
        if isinstance(given, np.ndarray):  # torch takes neither another byte order nor a reversed axis
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
