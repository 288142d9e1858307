"""Whether a set, a dataset and a protocol fit each other: all that can be known before a network is trained.

A set is a file of its own: it carries its classes, and the mean and deviation by which its images were normalised. It
is tested on whatever has these classes in images of this size: the dataset it was made from, another selection of its
images, a new folder of test images. These are normalised with the set's mean and deviation, not with their own, because
the networks that classify them have seen images of that scale; so are the random real images beside it, or the
comparison would not be of the images alone.
"""

import dataclasses
import logging
import operator

import torch

from iidlib.config import ComputeConfig, EvalProtocol
from iidlib.config.values import LARGEST_WHOLE
from iidlib.data import Dataset, DatasetSpec, RealSet
from iidlib.errors import InputError, listed
from iidlib.networks import check_network_for
from iidlib.notes import say_once
from iidlib.synthetic import SyntheticSet
from iidlib.training import augmentation_stages

__all__ = ["check_arguments", "check_evaluation", "dataset_for", "tell_differences", "untested"]


def check_arguments(protocol: object, compute: object, seed: object) -> None:
    """Refuses arguments of an evaluation that are of another type, or no seed.

    Raises:
        InputError: naming the argument, and what it should be.
    """
    if not isinstance(protocol, EvalProtocol):
        raise InputError(f"protocol must be an EvalProtocol, such as preset('dm', 'cifar10').eval, got {protocol!r}")
    if not isinstance(compute, ComputeConfig):
        raise InputError(f"compute must be a ComputeConfig, got {compute!r}")
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= operator.index(seed) <= LARGEST_WHOLE:
        raise InputError(f"seed must be a whole number from 0 to {LARGEST_WHOLE}, got {seed!r}")


def check_evaluation(protocol: EvalProtocol, spec: DatasetSpec, compute: ComputeConfig | None = None) -> None:
    """Finds out before any work whether networks can be evaluated on a dataset; takes milliseconds for each.

    Args:
        protocol: names the networks, their width and the augmentation.
        spec: of the dataset.
        compute: says whether kernels are compiled.

    Raises:
        InputError: for an unknown network or augmentation, a network that cannot take the images, or a setting of
            `compute` that cannot be had here.
    """
    for name in protocol.networks:
        check_network_for(name, spec, width=protocol.width, compile=(compute or ComputeConfig()).compile)
    augmentation_stages(spec.augmentation if protocol.augmentation == "auto" else protocol.augmentation)


def dataset_for(images: SyntheticSet | RealSet, dataset: Dataset) -> Dataset:
    """A dataset as a set needs it: its own images, with the classes in the set's order and normalised as the set is.

    Random real images beside a set are to be drawn from its ``train``, so that they are normalised alike.

    Args:
        images: the set that is evaluated.
        dataset: of the same classes, in images of the same size and channels.

    Returns:
        The dataset itself where nothing differs. Its name stays; mean, deviation and augmentation are the set's.

    Raises:
        InputError: if classes, size or channels differ, which it names, or for what is no set or no dataset.
    """
    if not isinstance(images, SyntheticSet | RealSet):
        raise InputError(
            f"what is evaluated must be a SyntheticSet or RealSet, got {images!r}; SyntheticSet.load reads one"
        )
    if not isinstance(dataset, Dataset):
        raise InputError(f"dataset must be a Dataset, such as load_dataset('cifar10-mini'), got {dataset!r}")
    own, given = images.spec, dataset.spec
    differing = _differing(own, given)
    if differing:
        raise InputError(
            f"the set was made for {own.name}, whose images or classes are not those of {given.name}: "
            f"{'; '.join(differing)}"
        )
    spec = dataclasses.replace(own, name=given.name)
    if spec == given:
        return dataset
    number = torch.tensor([own.classes.index(name) for name in given.classes])

    def part(real: RealSet) -> RealSet:
        labels = real.labels if own.classes == given.classes else number.to(real.device)[real.labels]
        return RealSet(real.images, labels, spec)

    return Dataset(dataset.name, part(dataset.train), part(dataset.test), spec)


def _differing(own: DatasetSpec, given: DatasetSpec) -> list[str]:
    """What keeps a set from being tested on a dataset, in words."""
    found = []
    if sorted(own.classes) != sorted(given.classes):
        lacking = [name for name in own.classes if name not in given.classes]
        more = [name for name in given.classes if name not in own.classes]
        told = [f"{len(own.classes)} classes in the set, {len(given.classes)} there"]
        told += [f"only in the set {listed([*map(repr, lacking)], 4)}"] if lacking else []
        told += [f"only there {listed([*map(repr, more)], 4)}"] if more else []
        found.append(" - ".join(told))
    elif own.classes != given.classes and len(set(own.classes)) < len(own.classes):
        found.append("two classes have one name, and the classes stand in another order")
    if own.image_size != given.image_size:
        remedy = (
            f" (take it as {given.name.split('?')[0]}?size={own.image_size})"
            if given.name.startswith("folder:")
            else ""
        )
        found.append(f"the set's images have {own.image_size} pixels a side, these have {given.image_size}{remedy}")
    if own.channels != given.channels:
        found.append(f"the set's images have {own.channels} channels, these have {given.channels}")
    return found


def tell_differences(images: SyntheticSet | RealSet, dataset: Dataset) -> None:
    """Says once in what a dataset is another one than the set was made from, where that does not keep it from testing.

    Args:
        images: the set that is evaluated; its provenance names the training images that it was made from.
        dataset: as it was loaded.
    """
    own, given, told = images.spec, dataset.spec, []
    made_from = images.provenance.get("data") if isinstance(images, SyntheticSet) else None
    if own.name != given.name:
        told.append(f"the set was made from {own.name} and is tested on {given.name}")
    elif made_from and made_from != dataset.train.fingerprint:
        told.append(f"the training images of {given.name} are no longer those that the set was made from")
    if (own.mean, own.std) != (given.mean, given.std):
        told.append("images are normalised with the set's own mean and standard deviation")
    if own.classes != given.classes:
        told.append("classes are numbered in the set's order")
    if told:
        say_once(logging.INFO, f"note: {'; '.join(told)}")
    _tell_range(images.provenance.get("range", "") if isinstance(images, SyntheticSet) else own.ranges, given)


def _tell_range(made: str, given: DatasetSpec) -> None:
    """Warns where pictures of more than 8 bits are shown brighter or darker than those that a set was made from.

    Args:
        made: what was black and white in those, as `DatasetSpec.ranges` has it.
        given: of the dataset that is tested on.
    """
    mine, theirs = _by_kind(made), _by_kind(given.ranges)
    for kind in sorted(mine.keys() & theirs.keys()):
        if mine[kind] != theirs[kind]:
            path, _, options = given.name.partition("?")
            rest = [option for option in options.split("&") if option and not option.startswith("range=")]
            say_once(
                logging.WARNING,
                f"the set was made from pictures in which {mine[kind].replace(',', ' is black and ')} is white, and in "
                f"{given.name} {theirs[kind].replace(',', ' is black and ')} is white, so that test images are "
                "brighter or darker than the set's; if they come from one source, say what is black and white: "
                f"{path}?{'&'.join([*rest, f'range={mine[kind]}'])}",
            )


def _by_kind(ranges: str) -> dict[str, str]:
    """Ranges of whole and of floating-point numbers, which are not compared with each other."""
    parts = (part.partition(" ") for part in ranges.split(" and ") if part)
    return {kind: numbers for numbers, _, kind in parts}


def untested(test: RealSet) -> list[str]:
    """Names of the classes without test images, said once: accuracies are over the images that there are.

    Args:
        test: the test images.

    Raises:
        InputError: if there are no test images at all.
    """
    if not len(test):
        raise InputError(f"{test.spec.name} has no test images, so that nothing can be evaluated on it")
    names = [name for name, count in zip(test.spec.classes, test.counts.tolist(), strict=True) if not count]
    if names:
        rest = test.num_classes - len(names)
        say_once(
            logging.WARNING,
            f"{test.spec.name} has no test images of {len(names)} of its {test.num_classes} classes "
            f"({listed([*map(repr, names)], 4)}); "
            f"accuracies are over the {len(test)} images of the other {rest}",
        )
    return names
