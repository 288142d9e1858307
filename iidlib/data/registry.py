"""The datasets by name: loaded, listed, and checked against their checksums."""

import logging
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from iidlib.data.drawn_shapes import shapes
from iidlib.data.embedded import mini_checksums, read_mini
from iidlib.data.folder import read_folder
from iidlib.data.install import install
from iidlib.data.mnist import mnist_checksums, mnist_remotes, read_mnist
from iidlib.data.realset import Dataset, RealSet
from iidlib.data.source import FileCheck, PathLike, Size, Source
from iidlib.data.spec import ALL_OPERATIONS, SPECS, DatasetSpec, channel_statistics
from iidlib.data.tinyimagenet import classes_of, problems, read_tinyimagenet, tinyimagenet_remotes
from iidlib.data.torchvision_sets import (
    cifar_checksums,
    cifar_classes,
    cifar_remotes,
    read_cifar,
    read_svhn,
    svhn_checksums,
    svhn_remotes,
)
from iidlib.errors import InputError, listed, suggest
from iidlib.files import user_path
from iidlib.names import dataset_name

__all__ = ["SOURCES", "CheckReport", "DatasetRow", "check", "datasets", "load_dataset"]


def _get(name: str, size: str, folder: str, archive: str = "") -> str:
    laid = f"; {archive} laid into DIR is taken instead of downloading it" if archive else ""
    return (
        f"fetch it ({size}) with: iid data fetch {name} --data-root DIR{laid} (or name with --data-root or IID_DATA "
        f"the folder that holds {folder})"
    )


def _cifar(name: str, kind: str, size: str, folder: str, most: Size) -> Source:
    return Source(
        name=name,
        folder=folder,
        images=(50_000, 10_000),
        embedded=False,
        get=_get(name, size, folder, f"{folder.removesuffix('-batches-py').removesuffix('-python')}-python.tar.gz"),
        checksums=lambda folder: cifar_checksums(kind),
        read=partial(read_cifar, kind),
        remotes=partial(cifar_remotes, kind),
        size=most,
        classes=partial(cifar_classes, kind) if kind == "CIFAR100" else None,
    )


def _mnist(name: str, folder: str, size: str, download: int) -> Source:
    return Source(
        name=name,
        folder=folder,
        images=(60_000, 10_000),
        embedded=False,
        get=_get(name, size, f"{folder} with train-images-idx3-ubyte and so on, packed (.gz) or not"),
        checksums=partial(mnist_checksums, name),
        read=partial(read_mnist, name),
        remotes=partial(mnist_remotes, name),
        size=Size(download=download),
    )


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="cifar10-mini",
            folder="cifar10-mini",
            images=(4_000, 1_000),
            embedded=True,
            get="restore it from the repository (git checkout data/cifar10-mini) or reinstall iidlib",
            checksums=mini_checksums,
            read=read_mini,
        ),
        _cifar("cifar10", "CIFAR10", "170 MB", "cifar-10-batches-py", Size(170_498_071, 186_214_400, 9)),
        _cifar("cifar100", "CIFAR100", "169 MB", "cifar-100-python", Size(169_001_437, 186_260_480, 5)),
        Source(
            name="svhn",
            folder="svhn",
            images=(73_257, 26_032),
            embedded=False,
            get=_get("svhn", "246 MB", "svhn with train_32x32.mat and test_32x32.mat"),
            checksums=lambda folder: svhn_checksums(),
            read=read_svhn,
            remotes=svhn_remotes,
            size=Size(246_316_178),
        ),
        _mnist("mnist", "MNIST/raw", "12 MB", 11_594_722),
        _mnist("fashionmnist", "FashionMNIST/raw", "31 MB", 30_878_645),
        Source(
            name="tinyimagenet",
            folder="tiny-imagenet-200",
            images=(100_000, 10_000),
            embedded=False,
            get=_get("tinyimagenet", "248 MB", "tiny-imagenet-200", "tiny-imagenet-200.zip")
            + "; part of it is a data set of its own as folder:PATH?size=64",
            checksums=lambda folder: {},
            read=read_tinyimagenet,
            remotes=tinyimagenet_remotes,
            size=Size(248_100_043, 260_000_000, 120_609),
            classes=classes_of,
            problems=problems,
        ),
    )
}
"""Data sets kept in files, by name."""

_VALIDATION = "validation:"

logger = logging.getLogger("iidlib")


def _held_out(dataset: Dataset) -> Dataset:
    """Nine tenths of the training images, and the last tenth in place of the test images, which stay unseen."""
    train, held_out = dataset.train.split(0.9, torch.Generator().manual_seed(0))
    spec = replace(dataset.spec, name=_VALIDATION + dataset.name)
    train, held_out = (RealSet(part.images, part.labels, spec) for part in (train, held_out))
    if dataset.name.startswith("folder:"):  # whose numbers have been told
        logger.info(
            "%s: %d of the training images are trained on and the other %d are tested on; the %d test images are not "
            "looked at", spec.name, len(train), len(held_out), len(dataset.test),
        )  # fmt: skip
    return Dataset(spec.name, train, held_out, spec)


def _as_name(given: object) -> str:
    """A dataset's name, where a path stands for the folder."""
    if isinstance(given, os.PathLike) and isinstance(path := os.fspath(given), str):
        return f"folder:{path}"
    if not isinstance(given, str):
        raise InputError(f"name of a dataset must be text, such as 'cifar10-mini' or 'folder:PATH', got {given!r}")
    return dataset_name(given)


def _as_device(given: torch.device | str) -> torch.device:
    """A device that is there."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        raise InputError(f"device {given!r} is not known; give cpu, cuda, cuda:N or mps") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # as torch says it that was built without it
        raise InputError(f"device {given!r} cannot be used here; give another one, such as cpu") from None
    return device


def load_dataset(
    name: PathLike = "cifar10-mini",
    *,
    data_root: PathLike | None = None,
    device: torch.device | str = "cpu",
    download: bool = False,
    mirror: str | None = None,
) -> Dataset:
    """A data set by name, its files verified.

    Args:
        name: ``cifar10-mini`` (comes with the library), ``cifar10``, ``cifar100``, ``svhn``, ``mnist``,
            ``fashionmnist`` (torchvision's files), ``tinyimagenet`` (the original folder), ``shapes`` (drawn), or
            ``folder:PATH`` (see `data.folder`); or one of them after ``validation:``, which holds out a tenth of each
            class's training images, always the same ones, to be judged on in place of the test images: settings are
            chosen on it. Capitals, dashes and underscores do not matter: ``CIFAR-10`` is cifar10. A path object stands
            for ``folder:`` with that path.
        data_root: the folder that holds the data set's folder; the one in ``IID_DATA`` when not given. What comes with
            the library is found without either.
        device: where the images are put.
        download: fetch what is missing into the data root, with a progress bar. An archive that lies there is unpacked
            instead, and stays.
        mirror: with `download`, another address to fetch from: that of a folder, or of the file; http(s) or file.

    Raises:
        InputError: for an unknown name or device, and for missing or damaged files: which, where looked, how to get
            them.

    Example:
        >>> data = load_dataset("cifar10-mini")
        >>> data.train.images.shape, data.spec.classes[:2]
        (torch.Size([4000, 3, 32, 32]), ('airplane', 'automobile'))
    """
    name, device = _as_name(name), _as_device(device)
    if not isinstance(data_root, str | os.PathLike | None):
        raise InputError(f"data_root must be the path of a folder, got {data_root!r}")
    if not isinstance(mirror, str | None):
        raise InputError(f"mirror must be the text of an address, got {mirror!r}")
    if mirror is not None and not download:
        raise InputError("mirror says where to download from; it goes with download=True")
    if name.startswith(_VALIDATION):
        whole = load_dataset(
            name.removeprefix(_VALIDATION), data_root=data_root, device=device, download=download, mirror=mirror
        )
        return _held_out(whole)
    if not name.startswith("folder:"):
        _known(name)
    if mirror is not None and name not in SOURCES:
        raise InputError(f"{name} is not fetched; there is nothing to fetch from {mirror!r}")
    if name.startswith("folder:"):
        return _of_folder(name, device)
    if name == "shapes":
        drawn = shapes()
        return Dataset(name, drawn.train.to(device), drawn.test.to(device), drawn.spec)
    source, spec = SOURCES[name], SPECS[name]
    if download:
        install(source, data_root, mirror=mirror)
    train, test = source.load(data_root)
    if source.classes:
        spec = replace(spec, classes=source.classes(source.locate(data_root)))
    return Dataset.of(spec, train, test, device)


def _of_folder(name: str, device: torch.device | str) -> Dataset:
    """A folder's images, with the mean and deviation of its own training pixels."""
    found = read_folder(name)
    mean, std = channel_statistics(found.train[0])
    spec = DatasetSpec(
        name=name,
        classes=found.classes,
        image_size=found.train[0].shape[-1],
        channels=3,
        mean=tuple(round(value, 4) for value in mean),
        std=tuple(round(max(value, 1 / 255), 4) for value in std),
        augmentation=ALL_OPERATIONS,
        ranges=found.ranges,
    )
    return Dataset.of(spec, found.train, found.test, device)


def _known(name: str) -> None:
    names = [*SOURCES, "shapes"]
    if name in names:
        return
    path, _, _ = name.partition("?")
    place = user_path(path)
    for source in SOURCES.values():
        if place.name == Path(source.folder).parts[0] and place.is_dir():
            raise InputError(
                f"unknown dataset {name!r}; for the {source.name} in it, write {source.name} and --data-root {path}"
            )
    if path and place.is_dir():
        raise InputError(f"unknown dataset {name!r}; to take the folder of that name, write folder:{name}")
    if path and place.is_file():
        raise InputError(
            f"unknown dataset {name!r}, which is a file; unpack it if it is an archive, and write folder: and the path "
            "of a folder with one folder of images for each class"
        )
    raise InputError(f"unknown dataset {name!r}{suggest(name, [*names, 'folder:PATH'])}")


@dataclass(frozen=True)
class DatasetRow:
    """A line of the list of data sets."""

    name: str
    found: str | None
    """Where it is, or None."""
    train_images: int
    test_images: int
    get: str
    """How to get it."""
    incomplete: str = ""
    """What is missing in a folder that is there but does not hold the dataset; then it does not count as found."""


def datasets(data_root: PathLike | None = None) -> list[DatasetRow]:
    """Every data set that `load_dataset` knows, and where it was found; files are not read."""
    rows = []
    for source in SOURCES.values():
        folder = source.find(data_root)
        get = "comes with iidlib" if source.embedded else source.get
        told = source.lacks(folder) if folder else []
        incomplete = f"{folder}: {listed(told, 4, between='; ')}" if told else ""
        found = str(folder) if folder and not told else None
        rows.append(DatasetRow(source.name, found, *source.images, get, incomplete))
    drawn = shapes()
    return [*rows, DatasetRow("shapes", "drawn when asked for", len(drawn.train), len(drawn.test), "comes with iidlib")]


@dataclass(frozen=True)
class CheckReport:
    """What a check of a data set's files found."""

    name: str
    folder: Path | None
    """Where they are; None for a data set without files."""
    files: tuple[FileCheck, ...]
    get: str
    """How to get what is missing or damaged."""
    problems: tuple[str, ...] = ()
    """What is missing or too much, in words, where there are no checksums."""

    @property
    def ok(self) -> bool:
        """Whether every file is there and whole."""
        return not self.problems and all(file.state == "ok" for file in self.files)


def check(name: str, data_root: PathLike | None = None) -> CheckReport:
    """Compares every file of a data set with its checksum.

    Raises:
        InputError: for an unknown name, or when the data set's folder is nowhere.
    """
    name = dataset_name(name)
    _known(name)
    if name == "shapes":
        return CheckReport(name, None, (), "comes with iidlib")
    source = SOURCES[name]
    folder = source.locate(data_root)
    told = source.problems(folder) if source.problems else []
    return CheckReport(name, folder, tuple(source.check(folder)), source.get, tuple(told))
