"""A data set out of a folder of images: a folder a class, split into training and test images.

``folder:PATH`` takes what most tools write: one folder a class, with images at any depth in it; or ``train`` and
``test`` (or ``val``) with such folders in each. Options follow as in an address: ``folder:PATH?size=64&test=0.2``.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import torch

from iidlib.data.image_files import decode_all, image_paths, logger
from iidlib.data.source import Images
from iidlib.errors import InputError
from iidlib.files import user_path

__all__ = ["FolderOptions", "FolderSet", "parse_folder", "read_folder"]

SIZES = range(8, 513)

TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class FolderOptions:
    """What the name of a folder data set says."""

    path: Path
    size: int = 32
    """Pixels a side; a multiple of 8 suits the networks with three poolings."""
    test: float = 0.2
    """Share of each class that is held out for testing, where the folder has no test images of its own."""


@dataclass(frozen=True)
class FolderSet:
    """Images of a folder, read."""

    classes: tuple[str, ...]
    train: Images
    test: Images


def parse_folder(name: str) -> FolderOptions:
    """Reads ``folder:PATH?size=64&test=0.2``.

    Raises:
        InputError: for an unknown option, a value out of range, or no path.
    """
    path, _, query = name.removeprefix("folder:").partition("?")
    if not path.strip():
        raise InputError("folder: needs the path of a folder, as in folder:my/images or folder:my/images?size=64")
    given = dict(parse_qsl(query, keep_blank_values=True))
    for key in given:
        if key not in ("size", "test"):
            raise InputError(f"folder: knows the options size and test, got {key!r}")
    try:
        size, test = int(given.get("size", "32")), float(given.get("test", "0.2"))
    except ValueError:
        raise InputError(f"folder: size takes a whole number and test a share, got {query!r}") from None
    if size not in SIZES or size % 8:
        raise InputError(f"folder: size must be a multiple of 8 from {SIZES[0]} to {SIZES[-1]}, got {size}")
    if not 0 < test < 1:
        raise InputError(f"folder: test must be a share between 0 and 1, got {test}")
    return FolderOptions(user_path(path), size, test)


def read_folder(name: str) -> FolderSet:
    """Decodes the images of a folder data set, or takes them from the cache.

    Classes are the folders with images, in the order of their names. Where there are no test images, a share of each
    class of two or more images is held out, always the same ones.

    Raises:
        InputError: if there is no such folder, fewer than two classes, or an image that cannot be read.
    """
    options = parse_folder(name)
    root = options.path
    if not root.is_dir():
        raise InputError(
            f"no folder at {root}; folder:PATH takes a folder that has one folder of images for each class"
        )
    parts = {part.name: part for part in root.iterdir() if part.is_dir()}
    test_root = next((parts[part] for part in TEST_FOLDERS if part in parts), None) if "train" in parts else None
    train_root = parts["train"] if "train" in parts else root
    classes, train = _read_classes(name, train_root, options.size)
    if test_root is not None and (own := {_class_name(folder) for folder in _class_folders(test_root)} & {*classes}):
        names, (images, labels) = _read_classes(name, test_root, options.size)
        if strange := [found for found in names if found not in own]:
            raise InputError(f"{test_root} has the class {strange[0]!r}, which {train_root} has not")
        places = torch.tensor([classes.index(found) for found in names])
        return FolderSet(classes, train, (images, places[labels]))
    if test_root is not None:
        logger.warning("%s has no folder for any class of %s and is left out", test_root, train_root)
    return FolderSet(classes, *_held_out(name, train, options.test))


def _class_folders(root: Path) -> list[Path]:
    """Folders with images, in the order of their names; folders of something else are told and left out."""
    folders = sorted((path for path in root.iterdir() if path.is_dir() and path.name[0] != "."), key=lambda p: p.name)
    return [folder for folder in folders if image_paths(folder)[0]]


def _class_name(folder: Path) -> str:
    return unicodedata.normalize("NFC", folder.name)


def _read_classes(name: str, root: Path, size: int) -> tuple[tuple[str, ...], Images]:
    folders = _class_folders(root)
    if empty := [p.name for p in sorted(root.iterdir()) if p.is_dir() and p.name[0] != "." and p not in folders]:
        logger.warning("%s: left out, as there are no images in them: %s", root, ", ".join(empty[:5]))
    if len(folders) < 2:
        raise InputError(
            f"{root} has {len(folders)} folders with images; a data set needs one a class, and two of them at least"
        )
    paths, labels, others = [], [], 0
    for label, folder in enumerate(folders):
        images, rest = image_paths(folder)
        paths += images
        labels += [label] * len(images)
        others += len(rest)
    if others:
        logger.warning("%s: %d files that are no images are left out", root, others)
    return tuple(map(_class_name, folders)), (decode_all(name, root, paths, size), torch.tensor(labels))


def _held_out(name: str, images: Images, share: float) -> tuple[Images, Images]:
    pictures, labels = images
    draw = torch.Generator().manual_seed(0)
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(own))), len(own) - 1)
        test[own[torch.randperm(len(own), generator=draw)[:count]]] = True
    if not test.any():
        raise InputError(f"{name} has one image a class, so that none is left to test on; give it more")
    return (pictures[~test], labels[~test]), (pictures[test], labels[test])
