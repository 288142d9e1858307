"""What a folder of class folders is: which folders hold training images, which test images, and what is left out.

A folder has its classes in it, or a split: ``train`` with ``test`` or ``val``, under the names that people give them
(``Training``, ``test_set``, ``validation``; see `splits`), and the classes in each. What can be understood in two ways
is refused, with what to do about it. Only names are looked at; no file is opened.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iidlib.data.image_tree import UNREAD_PICTURES, Tree
from iidlib.data.splits import find_split, inside, role_of
from iidlib.errors import InputError, listed

__all__ = ["Layout", "LeftOut", "Part", "layout_of"]


@dataclass(frozen=True)
class Part:
    """Training or test images: the class folders of one folder."""

    path: Path
    classes: tuple[str, ...]
    """Names of the classes, in Unicode's composed form, in the order of the folders' names."""
    images: tuple[tuple[Path, ...], ...]
    """Image files of each class."""

    @property
    def counts(self) -> dict[str, int]:
        """Images per class."""
        return {name: len(paths) for name, paths in zip(self.classes, self.images, strict=True)}

    @property
    def paths(self) -> list[Path]:
        """All image files, class by class."""
        return [path for paths in self.images for path in paths]


@dataclass(frozen=True)
class LeftOut:
    """Something that is not read."""

    path: Path
    """The folder, or the one that it is in."""
    reason: str
    images: int = 0
    """Files with endings of images among it."""


@dataclass(frozen=True)
class Layout:
    """What a folder holds."""

    train: Part
    test: Part | None
    """None where there are no test images with labels; then a share of the training images is held out."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    """What is read and may be another thing than it is taken for."""


def layout_of(tree: Tree) -> Layout:
    """Says what of a folder is for training, what for testing, and what is left out.

    Labelled test images are taken before labelled validation images, and these before a share of the training images.
    Images are labelled if one of the folders that they lie in is called like a class. A ``test`` without classes, as
    ImageNet and Kaggle have it, is left out.

    Args:
        tree: what `scan` found in the folder.

    Raises:
        InputError: if there are fewer than two classes, or what is there can be understood in two ways.
    """
    split = find_split(tree)
    if not split:
        train = _part(tree)
        roles = [name for name in train.classes if role_of(name) == ("", "train")]
        notes = [f"{name} is taken as a class, as it has images beside other classes" for name in roles]
        return Layout(train, None, tuple(_left_out(tree, [tree], {})), (*notes, *_alike(train), *_same_inside(tree)))
    place = next(one for one in tree.walk() if any(folder in one.folders for folder in split.values()))
    _check_kinds([folder for folder in place.folders if role_of(folder.name)])
    inner = {role: inside(folder, role) for role, folder in split.items()}
    train = _part(inner["train"])
    tests = {role: inner[role] for role in ("test", "val") if role in inner}
    labelled = [role for role, folder in tests.items() if _names(folder) & set(train.classes)]
    reasons = {}
    for role, folder in tests.items():
        if role not in labelled:
            _check_unlabelled(folder, train, alone=not labelled)
            reasons[split[role].path] = "is left out: its images have no labels, as they lie in no folders of classes"
        elif role != labelled[0]:
            reasons[split[role].path] = f"is not used, as {split[labelled[0]].name} is what is tested on"
    if "unlabelled" in split:
        reasons[split["unlabelled"].path] = "is left out: by its name it has no labels"
    if not labelled:
        return Layout(train, None, tuple(_left_out(tree, [inner["train"]], reasons)), tuple(_alike(train)))
    chosen = inner[labelled[0]]
    test, notes = _part(chosen, train), _alike(train)
    if missing := [name for name in train.classes if name not in test.classes]:
        have = "class has" if len(missing) == 1 else "classes have"
        notes.append(f"{len(missing)} {have} no test images: {listed(missing)}")
    return Layout(train, test, tuple(_left_out(tree, [inner["train"], chosen], reasons)), tuple(notes))


def _names(tree: Tree) -> set[str]:
    return {_class_name(folder) for folder in tree.folders_with_images()}


def _class_name(folder: Tree) -> str:
    return unicodedata.normalize("NFC", folder.name)


def _part(tree: Tree, train: Part | None = None) -> Part:
    """The classes of a folder; test images are given the training images, too.

    Raises:
        InputError: for fewer than two classes, two of one name, or test images of a class that `train` lacks.
    """
    folders = tree.folders_with_images()
    names = tuple(map(_class_name, folders))
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{tree.path} has two folders {name!r}, made of different characters; rename one")
        if name != name.encode(errors="replace").decode():
            raise InputError(f"the name of the folder {str(folder.path)!r} is not valid UTF-8; rename it")
    _check_kinds(tree.folders)
    if train is not None:
        for name in names:
            if name not in train.classes:
                hint = _other_case(name, train.classes) or "give it training images, or move its test images away"
                raise InputError(f"{tree.path} has the class {name!r}, which {train.path} has not; {hint}")
    elif len(folders) < 2:
        raise InputError(_too_few(tree, folders))
    return Part(tree.path, names, tuple(tuple(folder.all_images()) for folder in folders))


def _check_kinds(folders: Iterable[Tree]) -> None:
    """Refuses a folder that would be left out as empty although it is full of pictures, of a kind that is not read."""
    for folder in folders:
        pictures = [path for one in folder.walk() for path in one.others if path.suffix.lower() in UNREAD_PICTURES]
        if pictures and not folder.has_images():
            raise InputError(
                f"the pictures in {folder.path} are of a kind that is not read ({_endings(pictures)}); convert them to "
                "PNG or JPEG, or remove the folder"
            )


def _too_few(tree: Tree, folders: Sequence[Tree]) -> str:
    """What to say of a folder with fewer than two classes."""
    which = f"1 folder with images ({folders[0].name})" if folders else "0 folders with images"
    loose = f" and {len(tree.images)} images directly in it" if tree.images else ""
    inner = [sub.name for sub in folders[0].folders_with_images()] if folders else []
    hint = f"; did you mean folder:{folders[0].path}, which has {listed(inner)}?" if len(inner) > 1 else ""
    return f"{tree.path} has {which}{loose}; a dataset needs one folder for each class, and at least two{hint}"


def _other_case(name: str, classes: Iterable[str]) -> str:
    """What to do about a name that differs from a class only by capitals, or nothing."""
    near = [known for known in classes if known.casefold() == name.casefold()]
    return f"the class there is {near[0]!r}: capitals count, so give both folders one name" if near else ""


def _alike(part: Part) -> list[str]:
    """A note on classes whose names differ by capitals only, as one often does from the other by mistake."""
    count = Counter(name.casefold() for name in part.classes)
    alike = [name for name in part.classes if count[name.casefold()] > 1]
    return [f"classes that differ by capitals only are taken as different ones: {listed(alike)}"] if alike else []


def _same_inside(tree: Tree) -> list[str]:
    """A note on classes that all have the same folders in them: perhaps a split, under names that are not known here.

    It may be right, too: ``cat/{female,male}`` and ``dog/{female,male}`` are two classes.
    """
    folders = tree.folders_with_images()
    inner = {tuple(sorted(_names(folder))) for folder in folders if not folder.images}
    if len(inner) != 1 or any(folder.images for folder in folders) or len(shared := inner.pop()) < 2:
        return []
    names = listed([folder.name for folder in folders])
    return [
        f"all classes ({names}) have the same folders in them: {listed(shared)}; if these are the classes and {names} "
        f"are a split, name its folders train and test, or take one of them, as in folder:{folders[0].path}"
    ]


def _check_unlabelled(tree: Tree, train: Part, *, alone: bool) -> None:
    """Refuses test images that seem to have labels, other ones than the training images.

    Args:
        tree: the folder of test images, none of whose folders is called like a class.
        train: the training images.
        alone: whether there are no other test images.
    """
    names = sorted(_names(tree))
    for name in names:
        if hint := _other_case(name, train.classes):
            raise InputError(f"{tree.path} has the class {name!r}, which {train.path} has not; {hint}")
    if alone and len(names) > 1:
        raise InputError(
            f"{tree.path} has the folders {listed(names)}, none of which is a class of {train.path} "
            f"({listed(train.classes)}); give them the names of the classes, or move {tree.name} away"
        )


def _left_out(tree: Tree, read: Sequence[Tree], reasons: Mapping[Path, str]) -> list[LeftOut]:
    """All that is not read in a folder, from the outside to the inside.

    Args:
        tree: the folder.
        read: folders in it whose folders are classes.
        reasons: why some of the others are not read.
    """
    if any(tree is root for root in read):
        return [*_loose(tree), *_empty(tree), *_files(tree, list(tree.walk()))]
    if any(tree.path in root.path.parents for root in read):
        inner = [out for folder in tree.folders for out in _left_out(folder, read, reasons)]
        return [*_loose(tree), *_empty(tree), *_files(tree, [tree]), *inner]
    if not tree.has_images():
        return []  # among the empty ones
    return [LeftOut(tree.path, reasons.get(tree.path, "is left out"), len(tree.all_images()))]


def _loose(tree: Tree) -> list[LeftOut]:
    count = len(tree.images)
    what = f"{count} images directly in it are left out, which lie"
    if count == 1:
        what = "1 image directly in it is left out, which lies"
    reason = f"{what} in no folder of a class"
    return [LeftOut(tree.path, reason, count)] if count else []


def _empty(tree: Tree) -> list[LeftOut]:
    # in what cannot be read there may be images, and it is told as such
    empty = [folder.name for folder in tree.folders if not folder.has_images() and not folder.all_unreadable()]
    return [LeftOut(tree.path, f"left out, as there are no images in them: {listed(empty)}")] if empty else []


def _files(tree: Tree, trees: Sequence[Tree]) -> list[LeftOut]:
    """Files that are no images, what is hidden, and links that lead back, in one line each."""
    found = []
    if others := [path for one in trees for path in one.others]:
        found.append(
            f"{len(others)} files that are no images are left out ({_endings(others)}), "
            f"the first is {others[0].relative_to(tree.path)}"
        )
    if hidden := [path for one in trees for path in one.hidden]:
        found.append(f"hidden files and folders are left out: {_relative(hidden, tree)}")
    if circles := [path for one in trees for path in one.circles]:
        found.append(f"links to a folder that they lie in are left out: {_relative(circles, tree)}")
    return [LeftOut(tree.path, reason) for reason in found]


def _relative(paths: Sequence[Path], tree: Tree) -> str:
    return listed([str(path.relative_to(tree.path)) for path in paths])


def _endings(paths: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() or "without an ending" for path in paths)
    return listed([f"{count} {ending}" for ending, count in counts.most_common()])
