"""A look at a folder of images before it is used: what cannot be read, what is there twice, what is uneven."""

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
from iidlib.data.folder import find_images, parse_folder, split_files, told, without_held_out
from iidlib.data.image_files import decode_files
from iidlib.data.layout import Layout, layout_of
from iidlib.errors import InputError, listed

__all__ = ["FolderReport", "Range", "Twins", "inspect_folder"]

FEW = 10
"""Training images per class below which a class is named."""

UNEVEN = 10
"""How many times the images of the smallest class the largest may have before that is said."""


@dataclass(frozen=True)
class Twins:
    """Two image files with the same pixels, or nearly so (see `data.duplicates`)."""

    first: str
    second: str
    same: bool
    """Whether every pixel is the same, at the size that is read."""


@dataclass(frozen=True)
class Range:
    """The smallest, the middle and the largest of some numbers."""

    least: int
    median: float
    most: int


@dataclass(frozen=True)
class FolderReport:
    """What was found in a folder of images; paths are relative to it."""

    name: str
    summary: str
    """What the folder was taken for; empty if it cannot be used."""
    problem: str
    """Why the folder cannot be used as a dataset; empty if it can."""
    unreadable: dict[str, str]
    """Files and folders that cannot be read, with the reason."""
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    """What may not be as it was meant, in sentences."""
    train: dict[str, int]
    """Training images per class, unreadable ones among them."""
    test: dict[str, int]
    """Test images per class, 0 where there are none."""
    leaks: tuple[Twins, ...]
    """Training images that are test images, too."""
    contradictions: tuple[Twins, ...]
    """Images of two classes, both for training or both for testing."""
    repeated: int
    """Images that are there again in their class, and both for training or both for testing."""
    width: Range | None
    """Of the original pictures, in pixels."""
    height: Range | None
    modes: dict[str, int]
    """How many pictures have which of Pillow's modes (RGB, L for grey, and so on)."""
    formats: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether the folder can be used as it is."""
        return not self.problem and not self.unreadable


def inspect_folder(name: str) -> FolderReport:
    """Reads every image of a folder and reports on them; what is decoded is kept for later.

    Args:
        name: of the dataset, ``folder:PATH`` with its options.

    Raises:
        InputError: if there is no such folder, or for a wrong option.
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
    good = [place for place, path in enumerate(files) if path not in decoded.unreadable]
    kinds = [(place < len(paths), label) for place, label in enumerate([*labels.tolist(), *test_labels.tolist()])]
    images = decoded.images if len(good) == len(files) else decoded.images[good]  # which takes as much memory again
    twins = _twins(images, [kinds[place] for place in good])
    shown = [_shown(files[place], options.path) for place in good]
    leaks, contradictions = (
        tuple(Twins(shown[one], shown[two], same) for one, two, same in pairs) for pairs in twins[:2]
    )
    widths, heights, modes, formats = _headers(name, [files[place] for place in good])
    counts = Counter(kinds)
    train, test = ({label: counts[part, place] for place, label in enumerate(classes)} for part in (True, False))
    small = sum(min(size) < options.size for size in zip(widths, heights, strict=True))
    return FolderReport(
        name=name,
        summary=told(layout, options),
        problem="" if test_paths else "there is one image per class, so that none is left to test on",
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
"""Two places in a list of images, and whether their pixels are the same."""


def _twins(images: Tensor, kinds: Sequence[tuple[bool, int]]) -> tuple[list[Pair], list[Pair], int]:
    """Images that are there twice: in both parts, under two labels, and how many within their class.

    Args:
        images: uint8 [N, 3, S, S].
        kinds: of each image, whether it is for training, and its label.
    """
    pairs, repeated = [], 0
    for group in identical(images):
        firsts = {kinds[place]: place for place in reversed(group)}  # one of each kind is named
        pairs += [(group[0], place, True) for place in sorted(firsts.values())[1:]]
        repeated += len(group) - len(firsts)
    for one, two in nearly_identical(images):
        if kinds[one] == kinds[two]:
            repeated += 1
        else:
            pairs.append((one, two, False))
    leaks = [pair for pair in pairs if kinds[pair[0]][0] != kinds[pair[1]][0]]
    return leaks, [pair for pair in pairs if kinds[pair[0]][0] == kinds[pair[1]][0]], repeated


def _headers(name: str, paths: Sequence[Path]) -> tuple[list[int], list[int], dict[str, int], dict[str, int]]:
    """Width and height of each picture, and how many have which mode and format; pixels are not read."""
    widths, heights = [], []
    modes, formats = Counter[str](), Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which is no matter here
        for path in counted(paths, f"looking at {name}", "image"):
            with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(path) as picture:
                widths.append(picture.width)
                heights.append(picture.height)
                modes[picture.mode] += 1
                formats[picture.format or "unknown"] += 1
    return widths, heights, dict(modes.most_common()), dict(formats.most_common())


def _notes(layout: Layout, train: Mapping[str, int], small: int, size: int) -> Iterator[str]:
    """Sentences on what is uneven or little."""
    if without := without_held_out(layout):
        yield f"classes of one image have no test images: {listed(without)}"
    if few := [f"{name} {count}" for name, count in train.items() if count < FEW]:
        yield f"classes with fewer than {FEW} training images: {listed(few)}"
    most, least = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
    if train[most] >= UNEVEN * train[least]:
        yield (
            f"the classes are uneven: {most} has {train[most]} training images, {least} {train[least]}; a distilled "
            "set has the same number for every class"
        )
    if small:
        yield f"{small} pictures are smaller than {size} pixels a side and are enlarged; size= can be less"


def _range(values: Sequence[int]) -> Range | None:
    return Range(min(values), statistics.median(values), max(values)) if values else None


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else str(path)
