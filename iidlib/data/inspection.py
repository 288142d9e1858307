"""Inspection of a folder of images before use: unreadable files, duplicates, and class imbalance."""

import contextlib
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from iidlib.bars import counted
from iidlib.data.duplicates import identical, nearly_identical
from iidlib.data.folder import find_images, layout_summary, parse_folder, split_files, without_held_out
from iidlib.data.image_files import decode_files
from iidlib.data.layout import Layout, layout_of
from iidlib.errors import InputError, listed

__all__ = ["FolderReport", "Range", "Twins", "inspect_folder"]

FEW = 10
"""Number of training images below which a class is reported as small."""

UNEVEN = 10
"""Ratio of the largest to the smallest class from which on classes are reported as imbalanced."""


@dataclass(frozen=True)
class Twins:
    """Two image files with the same pixels, or nearly so (see `data.duplicates`)."""

    first: str
    second: str
    same: bool
    """Whether every pixel is the same, at the size that is read."""


@dataclass(frozen=True)
class Range:
    """Minimum, median and maximum of some numbers."""

    least: int
    median: float
    most: int


@dataclass(frozen=True)
class FolderReport:
    """Report on a folder of images; paths are relative to it."""

    name: str
    summary: str
    """Description of the images found; empty if the folder cannot be used."""
    problem: str
    """Reason why the folder cannot be used as a dataset; empty if it can."""
    unreadable: dict[str, str]
    """Files and folders that cannot be read, with the reason."""
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    """Notes on possible mistakes, in sentences."""
    train: dict[str, int]
    """Training images per class, including unreadable ones."""
    test: dict[str, int]
    """Test images per class, 0 if there are none."""
    leaks: tuple[Twins, ...]
    """Training images that are also test images."""
    contradictions: tuple[Twins, ...]
    """Images that are in two classes, both for training or both for testing."""
    repeated: int
    """Number of duplicates within a class, both for training or both for testing."""
    width: Range | None
    """Width of the original pictures, in pixels."""
    height: Range | None
    """Height of the original pictures, in pixels."""
    modes: dict[str, int]
    """Number of pictures by Pillow's mode (RGB, L for grey, and so on)."""
    formats: dict[str, int]
    """Number of pictures by file format."""

    @property
    def ok(self) -> bool:
        """Whether the folder can be used as it is."""
        return not self.problem and not self.unreadable


def inspect_folder(name: str) -> FolderReport:
    """Reads every image of a folder and reports on them; decoded images are cached.

    Args:
        name: name of the dataset, ``folder:PATH`` with its options.

    Raises:
        InputError: if there is no such folder, or for an invalid option.
    """
    options = parse_folder(name)
    tree = find_images(options.path)
    unreadable = {_shown(one.path, options.path): one.reason for one in tree.all_unreadable()}
    try:
        layout = layout_of(tree)
    except InputError as error:
        return FolderReport(name, "", str(error), unreadable, (), (), {}, {}, (), (), 0, None, None, {}, {})
    (paths, labels), (test_paths, test_labels) = split_files(layout, options)
    files, classes = [*paths, *test_paths], layout.train.classes
    decoded = decode_files(name, options.path, files, options.size, values=options.values)
    unreadable |= {_shown(path, options.path): reason for path, reason in decoded.unreadable.items()}
    good = [index for index, path in enumerate(files) if path not in decoded.unreadable]
    kinds = [(index < len(paths), label) for index, label in enumerate([*labels.tolist(), *test_labels.tolist()])]
    images = decoded.images if len(good) == len(files) else decoded.images[good]  # indexing doubles the memory
    twins = _twins(images, [kinds[index] for index in good])
    shown = [_shown(files[index], options.path) for index in good]
    leaks, contradictions = (
        tuple(Twins(shown[one], shown[two], same) for one, two, same in pairs) for pairs in twins[:2]
    )
    widths, heights, modes, formats = _headers(name, [files[index] for index in good])
    counts = Counter(kinds)
    train, test = ({label: counts[part, index] for index, label in enumerate(classes)} for part in (True, False))
    small = sum(min(size) < options.size for size in zip(widths, heights, strict=True))
    return FolderReport(
        name=name,
        summary=layout_summary(layout, options),
        problem="" if test_paths else "there is one image per class, so none is left to test on",
        unreadable=unreadable,
        left_out=tuple(f"{out.path}: {out.reason}" for out in layout.left_out),
        notes=(*layout.notes, *_notes(layout, train, small, options.size)),
        train=train,
        test=test,
        leaks=leaks,
        contradictions=contradictions,
        repeated=twins[2],
        width=_range(widths),
        height=_range(heights),
        modes=modes,
        formats=formats,
    )


Pair = tuple[int, int, bool]
"""Two indices into a list of images, and whether their pixels are identical."""


def _twins(images: Tensor, kinds: Sequence[tuple[bool, int]]) -> tuple[list[Pair], list[Pair], int]:
    """Finds duplicates in both parts and under two labels, and counts those within their class.

    Args:
        images: uint8 [N, 3, S, S].
        kinds: whether each image is for training, and its label.
    """
    pairs, repeated = [], 0
    for group in identical(images):
        firsts = {kinds[index]: index for index in reversed(group)}  # one of each kind is named
        pairs += [(group[0], index, True) for index in sorted(firsts.values())[1:]]
        repeated += len(group) - len(firsts)
    for one, two in nearly_identical(images):
        if kinds[one] == kinds[two]:
            repeated += 1
        else:
            pairs.append((one, two, False))
    leaks = [pair for pair in pairs if kinds[pair[0]][0] != kinds[pair[1]][0]]
    return leaks, [pair for pair in pairs if kinds[pair[0]][0] == kinds[pair[1]][0]], repeated


def _headers(name: str, paths: Sequence[Path]) -> tuple[list[int], list[int], dict[str, int], dict[str, int]]:
    """Reads width and height of each picture, and counts modes and formats, without reading pixels."""
    widths, heights = [], []
    modes, formats = Counter[str](), Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of unusual metadata are irrelevant here
        for path in counted(paths, f"looking at {name}", "image"):
            with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(path) as picture:
                widths.append(picture.width)
                heights.append(picture.height)
                modes[picture.mode] += 1
                formats[picture.format or "unknown"] += 1
    return widths, heights, dict(modes.most_common()), dict(formats.most_common())


def _notes(layout: Layout, train: Mapping[str, int], small: int, size: int) -> Iterator[str]:
    """Yields sentences on small or imbalanced classes and small pictures."""
    if without := without_held_out(layout):
        yield f"classes with one image have no test images: {listed(without)}"
    if few := [f"{name} {count}" for name, count in train.items() if count < FEW]:
        yield f"classes with fewer than {FEW} training images: {listed(few)}"
    most, least = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
    if train[most] >= UNEVEN * train[least]:
        yield (
            f"the classes are imbalanced: {most} has {train[most]} training images, {least} {train[least]}; a "
            "distilled set has the same number for every class"
        )
    if small:
        yield f"{small} pictures are smaller than {size} x {size} pixels and are enlarged; consider a smaller size="


def _range(values: Sequence[int]) -> Range | None:
    return Range(min(values), statistics.median(values), max(values)) if values else None


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else str(path)
