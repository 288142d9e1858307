"""Datasets read from a folder of images with one folder per class, split into training and test images.

``folder:PATH`` accepts the layouts of most tools: one folder per class, with images at any depth in it; or ``train``
and ``test`` (or ``val``) with such folders in each. Options follow as in a URL: ``folder:PATH?size=64&test=0.2``. A
size that is not a multiple of 8 needs ``fit=pad``: with ``size=28&fit=pad``, images are padded to 32 x 32.
``range=0,4095`` overrides the values shown as black and white in pictures of more than 8 bits.
"""

import logging
import math
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from iidlib.data.depth import ValueRange
from iidlib.data.image_files import decode_whole
from iidlib.data.image_tree import Tree, Unreadable, scan
from iidlib.data.layout import Layout, Part, layout_of
from iidlib.data.padding import padded
from iidlib.data.source import Images
from iidlib.errors import InputError, listed
from iidlib.files import user_path
from iidlib.names import on_one_line

__all__ = [
    "Files", "FolderOptions", "FolderSet", "find_images", "held_out", "labels_of", "layout_summary",
    "parse_folder", "read_folder", "split_files", "without_held_out",
]  # fmt: skip

SIZES = range(8, 513)

MOST_COUNTS = 5
"""Maximum number of classes listed with their numbers of images."""

logger = logging.getLogger("iidlib")


Files = tuple[list[Path], Tensor]
"""Image files and their labels, int64 [N]."""


@dataclass(frozen=True)
class FolderOptions:
    """Options in the name of a folder dataset."""

    path: Path
    size: int = 32
    """Pixels per side that pictures are resized to; they are then padded to a multiple of 8."""
    test: float = 0.2
    """Share of each class held out for testing if the folder has no test images."""
    values: ValueRange | None = None
    """Values of black and white in pictures of more than 8 bits; derived from the pictures by default."""


@dataclass(frozen=True)
class FolderSet:
    """Images read from a folder."""

    classes: tuple[str, ...]
    train: Images
    test: Images
    ranges: str = ""
    """Values of black and white in its pictures of more than 8 bits, as in `DatasetSpec.ranges`."""


def _padded_side(size: int) -> int:
    """Returns the next multiple of 8, which networks with three pooling layers need."""
    return -(-size // 8) * 8


def parse_folder(name: str) -> FolderOptions:
    """Parses ``folder:PATH?size=64&test=0.2&fit=pad``.

    Raises:
        InputError: for an unknown option, a value out of range, or a missing path.
    """
    path, _, query = name.removeprefix("folder:").partition("?")
    if not path.strip():
        raise InputError("folder: needs the path of a folder, as in folder:my/images or 'folder:my/images?size=64'")
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    for key, value in given.items():
        if key not in ("size", "fit", "test", "range"):
            if os.path.isdir(whole := user_path(name.removeprefix("folder:"))):  # noqa: PTH112, never raises
                raise InputError(f"folder: reads what follows ? as options; rename {whole}, or use a link to it")
            raise InputError(f"folder: has the options size, fit, test and range, got {key!r}")
        if len(values := [value for name, value in pairs if name == key]) > 1:
            raise InputError(f"folder: {key} is given twice ({' and '.join(values)}); give it once")
        if not value.isascii() or "_" in value:  # Python accepts both in numbers
            raise InputError(f"folder: {key} takes the digits 0 to 9, got {value!r}")
    try:
        size, test = int(given.get("size", "32")), float(given.get("test", "0.2"))
    except ValueError:
        raise InputError(f"folder: size takes a whole number and test a share, got {query!r}") from None
    if given.get("fit", "pad") != "pad":
        raise InputError(f"folder: fit can be pad, got {given['fit']!r}; without it images are resized to size")
    if size not in SIZES or (size % 8 and "fit" not in given):
        near = _padded_side(min(max(size, SIZES[0]), SIZES[-1]))
        pad = f", or fit=pad to pad images of {size} to {near}" if size in SIZES else ""
        raise InputError(
            f"folder: size must be a multiple of 8 from {SIZES[0]} to {SIZES[-1]}, got {size}; use size={near} to "
            f"resize the images to that{pad}"
        )
    if not 0 < test < 1:
        raise InputError(f"folder: test must be a share between 0 and 1, got {test}")
    return FolderOptions(user_path(path), size, test, _value_range(given["range"]) if "range" in given else None)


def _value_range(text: str) -> ValueRange:
    try:
        black, white = (float(value) for value in text.split(","))
    except ValueError:
        black, white = math.nan, math.nan
    if not (math.isfinite(white - black) and black < white):
        raise InputError(
            f"folder: range takes the values of black and of white, the smaller first, as in range=0,4095, got {text!r}"
        )
    return black, white


def read_folder(name: str) -> FolderSet:
    """Decodes the images of a folder dataset, or reads them from the cache.

    Classes are the folders with images, in the order of their names. If there are no test images, a fixed share of each
    class of two or more images is held out. The layout found is logged, with a warning for everything left out.

    Raises:
        InputError: if the folder does not exist, something in it cannot be read, its layout is ambiguous, or it has
            fewer than two classes.
    """
    options = parse_folder(name)
    tree = find_images(options.path)
    if unreadable := tree.all_unreadable():
        raise InputError(_cannot_be_read(name, tree, unreadable))
    layout = layout_of(tree)
    for thing in layout.left_out:
        logger.warning("%s: %s", thing.path, on_one_line(thing.reason))
    for note in layout.notes:
        logger.warning("%s: %s", name, on_one_line(note))
    logger.info("%s: %s", name, layout_summary(layout, options))
    (paths, labels), (test_paths, test_labels) = split_files(layout, options)
    if not test_paths:
        raise InputError(f"{name} has one image per class, so none is left to test on; add more images")
    if without := without_held_out(layout):
        logger.warning("%s: classes with one image have no test images: %s", name, listed(without))
    # one array for both, so that no image is stored twice and all pictures of more than 8 bits share a scale
    decoded = decode_whole(name, options.path, [*paths, *test_paths], options.size, values=options.values)
    images, ranges = padded(decoded.images, _padded_side(options.size)), decoded.scale.text
    count = len(paths)
    return FolderSet(layout.train.classes, (images[:count], labels), (images[count:], test_labels), ranges)


def find_images(root: Path) -> Tree:
    """Scans a folder that a user named.

    Raises:
        InputError: if there is no such folder.
    """
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a path with a null character
        what = f"no folder at {root}"
    except OSError as error:
        what = f"{root} cannot be read ({(error.strerror or str(error)).lower()})"
    else:
        if is_folder:
            return scan(root)
        what = f"{root} is a file, not a folder"
    raise InputError(f"{what}; folder:PATH takes a folder that has one folder of images for each class")


def split_files(layout: Layout, options: FolderOptions) -> tuple[Files, Files]:
    """Returns the files for training and for testing with their labels; holds out test images if there are none."""
    train, labels = layout.train, labels_of(layout.train)
    if layout.test is not None:
        return (train.paths, labels), (layout.test.paths, labels_of(layout.test, train))
    out = held_out(labels, options.test)
    first, second = (
        ([path for path, taken in zip(train.paths, part.tolist(), strict=True) if taken], labels[part])
        for part in (~out, out)
    )
    return first, second


def without_held_out(layout: Layout) -> list[str]:
    """Lists the classes of which no image can be held out."""
    return [] if layout.test else [name for name, count in layout.train.counts.items() if count == 1]


def labels_of(part: Part, train: Part | None = None) -> Tensor:
    """Returns the labels of a part's files, int64 [N]: indices of their classes in `train`, or in the part itself."""
    classes = (train or part).classes
    labels = torch.tensor([classes.index(name) for name in part.classes])
    return labels.repeat_interleave(torch.tensor(list(part.counts.values())))


def held_out(labels: Tensor, share: float) -> Tensor:
    """Returns a mask of the images held out for testing, bool [N]: a fixed share of each class.

    A class of two or more images is on both sides; a single image is not held out. `RealSet.split` differs: it puts
    single images and the remainder of a rounding on the other side.
    """
    draw = torch.Generator().manual_seed(0)
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        index = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(index))), len(index) - 1)
        test[index[torch.randperm(len(index), generator=draw)[:count]]] = True
    return test


def layout_summary(layout: Layout, options: FolderOptions) -> str:
    """Describes a folder in one line: ``200 training images in Train (2 classes: cat 100, dog 100)``."""
    line = _part_summary("training", layout.train, options.path)
    if layout.test is not None:
        return f"{line}; {_part_summary('test', layout.test, options.path)}"
    return f"{line}, {int(held_out(labels_of(layout.train), options.test).sum())} of them held out for testing"


def _part_summary(kind: str, part: Part, root: Path) -> str:
    counts, place = part.counts, "" if part.path == root else f" in {part.path.relative_to(root)}"
    each = ", ".join(f"{on_one_line(name)} {count}" for name, count in counts.items())
    if len(counts) > MOST_COUNTS:
        least, most = min(counts.values()), max(counts.values())
        each = f"{most} images per class" if least == most else f"{least} to {most} images per class"
    images = f"{sum(counts.values())} {kind} {'image' if sum(counts.values()) == 1 else 'images'}"
    return f"{images}{place} ({len(counts)} {'class' if len(counts) == 1 else 'classes'}: {each})"


def _cannot_be_read(name: str, tree: Tree, unreadable: Sequence[Unreadable]) -> str:
    """Returns the message for files and folders that cannot be read."""
    kinds = Counter("folder" if one.is_folder else "image" if one.is_image else "link" for one in unreadable)
    parts = [f"{count} {kind}{'s' * (count > 1)}" for kind in ("folder", "link") if (count := kinds[kind])]
    if images := kinds["image"]:
        parts.append(f"{images} of {images + len(tree.all_images())} images")
    names = [
        f"{one.path.relative_to(tree.path) if one.path != tree.path else one.path} ({one.reason})" for one in unreadable
    ]
    all_of_them = " (iid data check names all)" if len(unreadable) > 3 else ""
    return (
        f"{name}: {' and '.join(parts)} in {tree.path} cannot be read: {listed(names, 3)}{all_of_them}; replace or "
        "remove them, or change their permissions"
    )
