"""CIFAR-10, CIFAR-100 and SVHN in torchvision's files: checksums, addresses, and readers.

torchvision is imported only where it is used, because the import takes seconds.
"""

from pathlib import Path
from typing import Any

import torch

from iidlib.data.source import Images, Remote
from iidlib.errors import InputError

__all__ = [
    "cifar_checksums", "cifar_classes", "cifar_remotes", "read_cifar", "read_svhn", "svhn_checksums", "svhn_remotes",
]  # fmt: skip


def _known_to_torchvision(name: str, *needed: str) -> Any:
    """Returns a dataset's class in torchvision, which holds the checksums and addresses of its files.

    Raises:
        InputError: if torchvision cannot be imported, or the class does not hold them.
    """
    try:
        from torchvision import datasets
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: built for another version of torch
        raise InputError(
            f"torchvision cannot be imported ({' '.join(str(error).split())}); install the version that matches "
            f"torch {torch.__version__}"
        ) from None
    kind = getattr(datasets, name, None)
    if missing := [each for each in needed if not hasattr(kind, each)]:
        from torchvision import __version__

        raise InputError(
            f"torchvision {__version__} does not list the files of {name} (it has no {name}.{missing[0]}); install "
            "another version of torchvision"
        )
    return kind


def _cifar(name: str) -> Any:
    return _known_to_torchvision(name, "train_list", "test_list", "meta", "url", "tgz_md5")


def cifar_checksums(name: str) -> dict[str, str]:
    """Returns checksums of the files of ``CIFAR10`` or ``CIFAR100``."""
    kind = _cifar(name)
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    return {file: f"md5:{md5}" for file, md5 in files}


def read_cifar(name: str, folder: Path) -> tuple[Images, Images]:
    """Reads training and test images of ``CIFAR10`` or ``CIFAR100`` (its hundred fine classes)."""

    def split(train: bool) -> Images:
        part = _cifar(name)(folder.parent, train=train)
        # undoes torchvision's channels-last view of the channels-first arrays in the files
        return torch.from_numpy(part.data.transpose(0, 3, 1, 2)).contiguous(), torch.tensor(part.targets)

    return split(train=True), split(train=False)


def cifar_classes(name: str, folder: Path) -> tuple[str, ...]:
    """Returns the class names in the files."""
    return tuple(_cifar(name)(folder.parent, train=False).classes)


def cifar_remotes(name: str) -> tuple[Remote, ...]:
    """Returns the archive of ``CIFAR10`` or ``CIFAR100``."""
    kind = _cifar(name)
    return (Remote(kind.url, kind.tgz_md5, archive=True),)


def _svhn() -> Any:
    lists = _known_to_torchvision("SVHN", "split_list").split_list
    return {part: lists[part] for part in ("train", "test")}


def svhn_checksums() -> dict[str, str]:
    """Returns checksums of the two files of SVHN with cropped digits."""
    return {name: f"md5:{md5}" for _, name, md5 in _svhn().values()}


def read_svhn(folder: Path) -> tuple[Images, Images]:
    """Reads training and test images of SVHN, in whose files the digit 0 has the label 10."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    def split(name: str) -> Images:
        content = loadmat(folder / name, variable_names=["X", "y"])
        images = torch.from_numpy(content["X"]).permute(3, 2, 0, 1).contiguous()
        labels = torch.from_numpy(content["y"].astype("int64")).flatten()
        return images, labels % 10

    train, test = (split(name) for _, name, _ in _svhn().values())
    return train, test


def svhn_remotes() -> tuple[Remote, ...]:
    """Returns the two files of SVHN."""
    return tuple(Remote(url, md5, archive=False, name=name) for url, name, md5 in _svhn().values())
