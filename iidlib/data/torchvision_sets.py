"""CIFAR-10, CIFAR-100 and SVHN in the files that torchvision knows: their checksums, how to read and to fetch them.

torchvision is imported where it is used: it takes seconds.
"""

from pathlib import Path
from typing import Any

import torch

from iidlib.data.download import fetch, fetch_archive
from iidlib.data.source import Images

__all__ = ["cifar_checksums", "cifar_classes", "fetch_cifar", "fetch_svhn", "read_cifar", "read_svhn", "svhn_checksums"]


def _cifar(name: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, name)


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


def fetch_cifar(name: str, root: Path) -> None:
    """Puts the files of ``CIFAR10`` or ``CIFAR100`` into a data root."""
    kind = _cifar(name)
    fetch_archive(kind.url, root, kind.tgz_md5)


def _svhn() -> Any:
    from torchvision.datasets import SVHN

    return {part: SVHN.split_list[part] for part in ("train", "test")}


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


def fetch_svhn(root: Path) -> None:
    """Puts the two files of SVHN into ``svhn`` below a data root."""
    for url, name, md5 in _svhn().values():
        fetch(url, root / "svhn" / name, md5)
