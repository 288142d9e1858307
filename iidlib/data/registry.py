"""Datasets by name: loading, listing, and verification against checksums."""

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
    local = f"; {archive} placed in FOLDER is used instead of a download" if archive else ""
    return (
        f"fetch it ({size}) with: iid data fetch {name} --data-root FOLDER{local} (or set --data-root or IID_DATA to "
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
            + "; a part of it can be used as folder:PATH?size=64",
            checksums=lambda folder: {},
            read=read_tinyimagenet,
            remotes=tinyimagenet_remotes,
            size=Size(248_100_043, 260_000_000, 120_609),
            classes=classes_of,
            problems=problems,
        ),
    )
}
"""Datasets stored in files, by name."""

_VALIDATION = "validation:"

logger = logging.getLogger("iidlib")


def _held_out(dataset: Dataset) -> Dataset:
    """Returns nine tenths of the training images, and the last tenth in place of the test images, which stay unseen."""
    train, held_out = dataset.train.split(0.9, torch.Generator().manual_seed(0))
    spec = replace(dataset.spec, name=_VALIDATION + dataset.name)
    train, held_out = (RealSet(part.images, part.labels, spec) for part in (train, held_out))
    if dataset.name.startswith("folder:"):  # its numbers of images were logged before the split
        logger.info(
            "%s: %d training images are used for training and %d are held out for testing; the %d test images are not "
            "used", spec.name, len(train), len(held_out), len(dataset.test),
        )  # fmt: skip
    return Dataset(spec.name, train, held_out, spec)


def _as_name(given: object) -> str:
    """Returns a dataset's name; a path object stands for ``folder:`` with that path."""
    if isinstance(given, os.PathLike) and isinstance(path := os.fspath(given), str):
        return f"folder:{path}"
    if not isinstance(given, str):
        raise InputError(f"name of a dataset must be text, such as 'cifar10-mini' or 'folder:PATH', got {given!r}")
    return dataset_name(given)


def _as_device(given: torch.device | str) -> torch.device:
    """Returns a device that can be used here."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        raise InputError(f"device {given!r} is not known; choose cpu, cuda, cuda:N or mps") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # the last two from builds of torch without the device
        raise InputError(f"device {given!r} cannot be used here; use another one, such as cpu") from None
    return device


def load_dataset(
    name: PathLike = "cifar10-mini",
    *,
    data_root: PathLike | None = None,
    device: torch.device | str = "cpu",
    download: bool = False,
    mirror: str | None = None,
) -> Dataset:
    """Loads a dataset by name and verifies its files.

    Args:
        name: ``cifar10-mini`` (comes with the library), ``cifar10``, ``cifar100``, ``svhn``, ``mnist``,
            ``fashionmnist`` (torchvision's files), ``tinyimagenet`` (the original folder), ``shapes`` (drawn), or
            ``folder:PATH`` (see `data.folder`). With the prefix ``validation:``, a fixed tenth of each class's training
            images is held out and replaces the test images, to choose settings on. Case, dashes and underscores do not
            matter: ``CIFAR-10`` is cifar10. A path object stands for ``folder:`` with that path.
        data_root: folder that holds the dataset's folder; ``IID_DATA`` by default. Neither is needed for what comes
            with the library.
        device: device for the images.
        download: whether to fetch missing files into the data root, with a progress bar. An archive that is already
            there is unpacked instead, and kept.
        mirror: with `download`, another http(s) or file address to fetch from, either of a folder or of the file.

    Raises:
        InputError: for an unknown name or device, and for missing or corrupted files. The message names the files, the
            folders searched, and the way to get them.

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
        raise InputError("mirror is the address to download from; it needs download=True")
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
        return _from_folder(name, device)
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


def _from_folder(name: str, device: torch.device | str) -> Dataset:
    """Returns a folder's images, with the mean and standard deviation of its training pixels."""
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
                f"unknown dataset {name!r}; to use the {source.name} in it, write {source.name} and --data-root {path}"
            )
    if path and place.is_dir():
        raise InputError(f"unknown dataset {name!r}; to use the folder of that name, write folder:{name}")
    if path and place.is_file():
        raise InputError(
            f"unknown dataset {name!r}, which is a file; unpack it if it is an archive, and write folder:PATH with the "
            "path of a folder that has one folder of images for each class"
        )
    raise InputError(f"unknown dataset {name!r}{suggest(name, [*names, 'folder:PATH'])}")


@dataclass(frozen=True)
class DatasetRow:
    """A row of the list of datasets."""

    name: str
    found: str | None
    """Location of the dataset, or None."""
    train_images: int
    test_images: int
    get: str
    """Instructions for getting it."""
    incomplete: str = ""
    """Files missing from an existing folder, in words; the dataset then does not count as found."""


def datasets(data_root: PathLike | None = None) -> list[DatasetRow]:
    """Lists every dataset that `load_dataset` knows and its location, without reading files."""
    rows = []
    for source in SOURCES.values():
        folder = source.find(data_root)
        get = "comes with iidlib" if source.embedded else source.get
        missing = source.lacks(folder) if folder else []
        incomplete = f"{folder}: {listed(missing, 4, between='; ')}" if missing else ""
        found = str(folder) if folder and not missing else None
        rows.append(DatasetRow(source.name, found, *source.images, get, incomplete))
    drawn = shapes()
    return [*rows, DatasetRow("shapes", "drawn on demand", len(drawn.train), len(drawn.test), "comes with iidlib")]


@dataclass(frozen=True)
class CheckReport:
    """Result of verifying a dataset's files."""

    name: str
    folder: Path | None
    """Location of the files; None for a dataset without files."""
    files: tuple[FileCheck, ...]
    get: str
    """Instructions for getting missing or corrupted files."""
    problems: tuple[str, ...] = ()
    """Missing and unexpected files, in words, for a dataset without checksums."""

    @property
    def ok(self) -> bool:
        """Whether every file is present and intact."""
        return not self.problems and all(file.state == "ok" for file in self.files)


def check(name: str, data_root: PathLike | None = None) -> CheckReport:
    """Compares every file of a dataset with its checksum.

    Raises:
        InputError: for an unknown name, or if the dataset's folder cannot be found.
    """
    name = dataset_name(name)
    _known(name)
    if name == "shapes":
        return CheckReport(name, None, (), "comes with iidlib")
    source = SOURCES[name]
    folder = source.locate(data_root)
    messages = source.problems(folder) if source.problems else []
    return CheckReport(name, folder, tuple(source.check(folder)), source.get, tuple(messages))
