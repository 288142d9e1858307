"""Checks that a set, a dataset and a protocol fit each other, before any network is trained.

A set carries its classes and the mean and standard deviation that its images were normalised with. It can be tested on
any images of these classes and this size: the dataset it was made from, another selection of its images, a new folder
of test images. Test images are normalised with the set's mean and standard deviation, not with their own, because the
networks were trained on that scale. So are random real images for comparison; otherwise sets would differ in more than
their images.
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
from iidlib.notes import log_once
from iidlib.synthetic import SyntheticSet
from iidlib.training import augmentation_stages

__all__ = ["check_arguments", "check_evaluation", "dataset_for", "log_differences", "untested"]


def check_arguments(protocol: object, compute: object, seed: object) -> None:
    """Checks the types of an evaluation's arguments, and the range of the seed.

    Raises:
        InputError: with the argument and what it must be.
    """
    if not isinstance(protocol, EvalProtocol):
        raise InputError(f"protocol must be an EvalProtocol, such as preset('dm', 'cifar10').eval, got {protocol!r}")
    if not isinstance(compute, ComputeConfig):
        raise InputError(f"compute must be a ComputeConfig, got {compute!r}")
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= operator.index(seed) <= LARGEST_WHOLE:
        raise InputError(f"seed must be a whole number from 0 to {LARGEST_WHOLE}, got {seed!r}")


def check_evaluation(protocol: EvalProtocol, spec: DatasetSpec, compute: ComputeConfig | None = None) -> None:
    """Checks before any training whether networks can be evaluated on a dataset; takes milliseconds per network.

    Args:
        protocol: the networks, their width and the augmentation.
        spec: the dataset's specification.
        compute: whether kernels are compiled.

    Raises:
        InputError: for an unknown network or augmentation, a network that does not accept the images, or a setting of
            `compute` that is not available here.
    """
    for name in protocol.networks:
        check_network_for(name, spec, width=protocol.width, compile=(compute or ComputeConfig()).compile)
    augmentation_stages(spec.augmentation if protocol.augmentation == "auto" else protocol.augmentation)


def dataset_for(images: SyntheticSet | RealSet, dataset: Dataset) -> Dataset:
    """A dataset adapted to a set: the dataset's images, with the set's order of classes and its normalisation.

    Random real images to compare a set with should be drawn from its ``train``, so that they are normalised alike.

    Args:
        images: the set to evaluate.
        dataset: a dataset with the same classes, image size and number of channels.

    Returns:
        The dataset itself if nothing differs. Otherwise it keeps its name, but has the set's mean, standard deviation
        and augmentation.

    Raises:
        InputError: if classes, size or channels differ (the message says which), or for arguments of another type.
    """
    if not isinstance(images, SyntheticSet | RealSet):
        raise InputError(f"images must be a SyntheticSet or RealSet, got {images!r}; SyntheticSet.load reads one")
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
    """Differences that prevent a set from being tested on a dataset, in words."""
    differences = []
    if sorted(own.classes) != sorted(given.classes):
        lacking = [name for name in own.classes if name not in given.classes]
        more = [name for name in given.classes if name not in own.classes]
        parts = [f"{len(own.classes)} classes in the set, {len(given.classes)} in the dataset"]
        parts += [f"only in the set {listed([*map(repr, lacking)], 4)}"] if lacking else []
        parts += [f"only in the dataset {listed([*map(repr, more)], 4)}"] if more else []
        differences.append(" - ".join(parts))
    elif own.classes != given.classes and len(set(own.classes)) < len(own.classes):
        differences.append("two classes have the same name, and the order of the classes differs")
    if own.image_size != given.image_size:
        remedy = f" (use {given.name.split('?')[0]}?size={own.image_size})" if given.name.startswith("folder:") else ""
        differences.append(
            f"the set's images are {own.image_size} pixels wide and high, the dataset's {given.image_size}{remedy}"
        )
    if own.channels != given.channels:
        differences.append(f"the set's images have {own.channels} channels, the dataset's {given.channels}")
    return differences


def log_differences(images: SyntheticSet | RealSet, dataset: Dataset) -> None:
    """Logs once how a dataset differs from the one that a set was made from, if the set can still be tested on it.

    Args:
        images: the set to evaluate; its provenance identifies the training images that it was made from.
        dataset: the dataset as it was loaded.
    """
    own, given, differences = images.spec, dataset.spec, []
    made_from = images.provenance.get("data") if isinstance(images, SyntheticSet) else None
    if own.name != given.name:
        differences.append(f"the set was made from {own.name} and is tested on {given.name}")
    elif made_from and made_from != dataset.train.fingerprint:
        differences.append(f"the training images of {given.name} are no longer those that the set was made from")
    if (own.mean, own.std) != (given.mean, given.std):
        differences.append("images are normalised with the set's own mean and standard deviation")
    if own.classes != given.classes:
        differences.append("classes are numbered in the set's order")
    if differences:
        log_once(logging.INFO, f"note: {'; '.join(differences)}")
    _warn_of_other_range(images.provenance.get("range", "") if isinstance(images, SyntheticSet) else own.ranges, given)


def _warn_of_other_range(made: str, given: DatasetSpec) -> None:
    """Warns if pictures of more than 8 bits are scaled brighter or darker than those that a set was made from.

    Args:
        made: values of black and white in the pictures that the set was made from, see `DatasetSpec.ranges`.
        given: specification of the dataset that the set is tested on.
    """
    mine, theirs = _by_kind(made), _by_kind(given.ranges)
    for kind in sorted(mine.keys() & theirs.keys()):
        if mine[kind] != theirs[kind]:
            path, _, options = given.name.partition("?")
            rest = [option for option in options.split("&") if option and not option.startswith("range=")]
            log_once(
                logging.WARNING,
                f"the set was made from pictures in which {mine[kind].replace(',', ' is black and ')} is white, and in "
                f"{given.name} {theirs[kind].replace(',', ' is black and ')} is white, so test images are brighter "
                "or darker than the set's; if they come from the same source, specify the values of black and white: "
                f"{path}?{'&'.join([*rest, f'range={mine[kind]}'])}",
            )


def _by_kind(ranges: str) -> dict[str, str]:
    """Ranges by kind of number, integer or floating-point; only ranges of the same kind are compared."""
    parts = (part.partition(" ") for part in ranges.split(" and ") if part)
    return {kind: numbers for numbers, _, kind in parts}


def untested(test: RealSet) -> list[str]:
    """Names of the classes without test images, with one warning that accuracies leave them out.

    Args:
        test: the test images.

    Raises:
        InputError: if there are no test images at all.
    """
    if not len(test):
        raise InputError(f"{test.spec.name} has no test images, so nothing can be evaluated on it")
    names = [name for name, count in zip(test.spec.classes, test.counts.tolist(), strict=True) if not count]
    if names:
        rest = test.num_classes - len(names)
        log_once(
            logging.WARNING,
            f"{test.spec.name} has no test images of {len(names)} of its {test.num_classes} classes "
            f"({listed([*map(repr, names)], 4)}); "
            f"accuracies are over the {len(test)} images of the other {rest}",
        )
    return names
