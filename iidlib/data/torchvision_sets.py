"""CIFAR-10, CIFAR-100 and SVHN in the files that torchvision knows: their checksums, addresses, and how to read them.

torchvision is imported where it is used: it takes seconds.
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
    """A dataset's class in torchvision, which holds the checksums and addresses of its files.

    Raises:
        InputError: if torchvision cannot be imported, or holds them elsewhere.
    """
    try:
        from torchvision import datasets
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: built for another version of torch
        raise InputError(
            f"torchvision cannot be imported ({' '.join(str(error).split())}); install the version that belongs to "
            f"torch {torch.__version__}"
        ) from None
    kind = getattr(datasets, name, None)
    if lost := [each for each in needed if not hasattr(kind, each)]:
        from torchvision import __version__

        raise InputError(
            f"torchvision {__version__} does not say where the files of {name} are (it has no {name}.{lost[0]}); "
            "install another version of torchvision"
        )
    return kind


def _cifar(name: str) -> Any:
    return _known_to_torchvision(name, "train_list", "test_list", "meta", "url", "tgz_md5")


def cifar_checksums(name: str) -> dict[str, str]:
    """Checksums of the files of ``CIFAR10`` or ``CIFAR100``."""
    kind = _cifar(name)
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    return {file: f"md5:{md5}" for file, md5 in files}


def read_cifar(name: str, folder: Path) -> tuple[Images, Images]:
    """Training and test images of ``CIFAR10`` or ``CIFAR100`` (its hundred fine classes)."""

    def split(train: bool) -> Images:
        part = _cifar(name)(folder.parent, train=train)
        # torchvision holds a view with channels last of the channels-first arrays in the files; this takes it back
        return torch.from_numpy(part.data.transpose(0, 3, 1, 2)).contiguous(), torch.tensor(part.targets)

    return split(train=True), split(train=False)


def cifar_classes(name: str, folder: Path) -> tuple[str, ...]:
    """Class names, as the files have them."""
    return tuple(_cifar(name)(folder.parent, train=False).classes)


def cifar_remotes(name: str) -> tuple[Remote, ...]:
    """The archive that ``CIFAR10`` or ``CIFAR100`` is fetched as."""
    kind = _cifar(name)
    return (Remote(kind.url, kind.tgz_md5, archive=True),)


def _svhn() -> Any:
    lists = _known_to_torchvision("SVHN", "split_list").split_list
    return {part: lists[part] for part in ("train", "test")}


def svhn_checksums() -> dict[str, str]:
    """Checksums of the two files of SVHN in cropped digits."""
    return {name: f"md5:{md5}" for _, name, md5 in _svhn().values()}


def read_svhn(folder: Path) -> tuple[Images, Images]:
    """Training and test images of SVHN; in the files the digit 0 has the label 10."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    def split(name: str) -> Images:
        content = loadmat(folder / name, variable_names=["X", "y"])
        images = torch.from_numpy(content["X"]).permute(3, 2, 0, 1).contiguous()
        labels = torch.from_numpy(content["y"].astype("int64")).flatten()
        return images, labels % 10

    train, test = (split(name) for _, name, _ in _svhn().values())
    return train, test


def svhn_remotes() -> tuple[Remote, ...]:
    """The two files of SVHN."""
    return tuple(Remote(url, md5, archive=False, name=name) for url, name, md5 in _svhn().values())
