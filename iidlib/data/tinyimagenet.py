"""TinyImageNet-200 in its original folder: 200 classes with 500 training and 50 test images each, of 64 x 64 pixels.

``train/<class>/images/*.JPEG``, ``val/images/*.JPEG`` with ``val/val_annotations.txt``, class names in ``words.txt``.
The test images of the archive have no labels, so the field tests on ``val``. No checksum of the archive is published,
so its files are compared with the expected layout.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from iidlib.data.image_files import decode_all
from iidlib.data.source import Images, Remote
from iidlib.errors import InputError

__all__ = ["URL", "Layout", "classes_of", "problems", "read_tinyimagenet", "tinyimagenet_remotes"]

#: Address of the archive, 237 MiB. The set's authors serve it by plain HTTP and publish no checksum.
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"

SIZE = 64


@dataclass(frozen=True)
class Layout:
    """Expected numbers of classes and images."""

    classes: int = 200
    train: int = 500
    """Training images per class."""
    test: int = 50
    """Test images per class."""


def _folders(folder: Path) -> list[Path]:
    train = folder / "train"
    return sorted(path for path in train.iterdir() if (path / "images").is_dir()) if train.is_dir() else []


def _train_images(folder: Path) -> list[Path]:
    return sorted((folder / "images").glob("*.JPEG"), key=lambda path: int(path.stem.rsplit("_", 1)[-1]))


def _annotations(folder: Path) -> list[tuple[str, str]]:
    """Reads the file names and classes of the test images, in the order of the list."""
    path = folder / "val" / "val_annotations.txt"
    try:
        rows = [line.split("\t")[:2] for line in path.read_text("utf-8").splitlines() if line.strip()]
        return [(name, label) for name, label in rows]
    except (OSError, ValueError) as error:
        raise InputError(f"tinyimagenet: {path} cannot be read ({error}); fetch the dataset again") from None


def problems(folder: Path, layout: Layout = Layout()) -> list[str]:
    """Lists in words what is missing or unexpected in a folder, without opening files."""
    folders, messages = _folders(folder), []
    if len(folders) != layout.classes:
        messages.append(f"{len(folders)} of {layout.classes} classes are in train")
    for path in folders:
        if (count := sum(1 for _ in (path / "images").glob("*.JPEG"))) != layout.train:
            messages.append(f"{path.name} has {count} of {layout.train} training images")
    try:
        listed = _annotations(folder)
    except InputError:
        return [*messages, "val/val_annotations.txt cannot be read"]
    names = {path.name for path in folders}
    if unknown := {label for _, label in listed} - names:
        messages.append(f"classes of test images that are not in train: {len(unknown)}, such as {min(unknown)}")
    if len(listed) != layout.classes * layout.test:
        messages.append(f"{len(listed)} of {layout.classes * layout.test} test images are listed")
    present = {path.name for path in (folder / "val" / "images").glob("*.JPEG")}
    if missing := {name for name, _ in listed} - present:
        messages.append(f"test images missing: {len(missing)}, such as {min(missing)}")
    if extra := present - {name for name, _ in listed}:
        messages.append(f"test images not listed: {len(extra)}, such as {min(extra)}")
    return messages


def classes_of(folder: Path) -> tuple[str, ...]:
    """Returns class names in the order of the labels: the first word of each, or its WordNet ID if two are the same."""
    known = {}
    words = folder / "words.txt"
    if words.is_file():
        rows = (line.partition("\t") for line in words.read_text("utf-8", errors="replace").splitlines())
        known = {number: name.split(",")[0].strip() for number, _, name in rows}
    numbers = [path.name for path in _folders(folder)]
    names = [known.get(number, number) for number in numbers]
    return tuple(name if names.count(name) == 1 else number for name, number in zip(names, numbers, strict=True))


def read_tinyimagenet(folder: Path) -> tuple[Images, Images]:
    """Returns the training and test images, decoded once and then kept in the cache.

    Raises:
        InputError: listing the files that cannot be read.
    """
    folders = _folders(folder)
    label_of = {path.name: label for label, path in enumerate(folders)}
    train = [(path, label) for label, place in enumerate(folders) for path in _train_images(place)]
    test = [(folder / "val" / "images" / name, label_of[label]) for name, label in _annotations(folder)]
    images = decode_all("tinyimagenet", folder, [path for path, _ in (*train, *test)], SIZE)
    labels = torch.tensor([label for _, label in (*train, *test)])
    return (images[: len(train)], labels[: len(train)]), (images[len(train) :], labels[len(train) :])


def tinyimagenet_remotes() -> tuple[Remote, ...]:
    """Returns the archive to fetch."""
    return (Remote(URL, None, archive=True),)
