"""Check that a set can start from given real images: there are enough of each class, and the factor fits."""

import torch

from iidlib.data import RealSet
from iidlib.errors import InputError
from iidlib.synthetic.door import as_count, as_factor
from iidlib.synthetic.mosaics import expand

__all__ = ["check_real"]


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
