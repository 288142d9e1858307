"""Layout of a folder of class folders: which folders hold training images and test images, and what is left out.

A folder contains its classes, or a split with the classes in each part: ``train`` with ``test`` or ``val``, under
their usual names (``Training``, ``test_set``, ``validation``; see `splits`). Ambiguous layouts are rejected with
advice. Only names are examined; no file is opened.
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
    """Names of the classes, in Unicode's composed form (NFC), in the order of the folders' names."""
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
    """Files or folders that are not read."""

    path: Path
    """Folder that is left out, or that contains what is."""
    reason: str
    images: int = 0
    """Number of files left out that have an image's ending."""


@dataclass(frozen=True)
class Layout:
    """Contents of a folder."""

    train: Part
    test: Part | None
    """Test images; None if there are none with labels, so that a share of the training images is held out."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    """Notes on content that is read but may be misinterpreted."""


def layout_of(tree: Tree) -> Layout:
    """Determines which images are for training, which for testing, and what is left out.

    Labelled test images are preferred to labelled validation images, and these to a share of the training images.
    Images are labelled if one of the folders around them is named like a class. A ``test`` without classes, as in
    ImageNet and on Kaggle, is left out.

    Args:
        tree: result of `scan` for the folder.

    Raises:
        InputError: if there are fewer than two classes, or the layout is ambiguous.
    """
    split = find_split(tree)
    if not split:
        train = _part(tree)
        roles = [name for name in train.classes if role_of(name) == ("", "train")]
        notes = [f"{name} is taken as a class, because it holds images next to other classes" for name in roles]
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
            reasons[split[role].path] = "is left out: its images have no labels, because they are not in class folders"
        elif role != labelled[0]:
            reasons[split[role].path] = f"is not used, because {split[labelled[0]].name} holds the test images"
    if "unlabelled" in split:
        reasons[split["unlabelled"].path] = "is left out: its name marks it as unlabelled"
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
    """Returns the classes of a folder.

    Args:
        tree: the folder.
        train: for test images, the training images.

    Raises:
        InputError: for fewer than two classes, two of the same name, or test images of a class that `train` lacks.
    """
    folders = tree.folders_with_images()
    names = tuple(map(_class_name, folders))
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{tree.path} has two folders {name!r}, written in different Unicode forms; rename one")
        if name != name.encode(errors="replace").decode():
            raise InputError(f"the name of the folder {str(folder.path)!r} is not valid UTF-8; rename it")
    _check_kinds(tree.folders)
    if train is not None:
        for name in names:
            if name not in train.classes:
                hint = _other_case(name, train.classes) or "give it training images, or move its test images away"
                raise InputError(f"{tree.path} has the class {name!r}, which {train.path} does not have; {hint}")
    elif len(folders) < 2:
        raise InputError(_too_few(tree, folders))
    return Part(tree.path, names, tuple(tuple(folder.all_images()) for folder in folders))


def _check_kinds(folders: Iterable[Tree]) -> None:
    """Rejects a folder of pictures that would be left out as empty because their format is not supported."""
    for folder in folders:
        pictures = [path for one in folder.walk() for path in one.others if path.suffix.lower() in UNREAD_PICTURES]
        if pictures and not folder.has_images():
            raise InputError(
                f"the pictures in {folder.path} are in an unsupported format ({_endings(pictures)}); convert them to "
                "PNG or JPEG, or remove the folder"
            )


def _too_few(tree: Tree, folders: Sequence[Tree]) -> str:
    """Returns the message for a folder with fewer than two classes."""
    which = f"1 folder with images ({folders[0].name})" if folders else "0 folders with images"
    loose = f" and {len(tree.images)} images directly in it" if tree.images else ""
    inner = [sub.name for sub in folders[0].folders_with_images()] if folders else []
    hint = f"; did you mean folder:{folders[0].path}, which has {listed(inner)}?" if len(inner) > 1 else ""
    return f"{tree.path} has {which}{loose}; a dataset needs one folder for each class, and at least two classes{hint}"


def _other_case(name: str, classes: Iterable[str]) -> str:
    """Returns advice on a name that differs from a class only in case, empty if there is no such class."""
    near = [known for known in classes if known.casefold() == name.casefold()]
    return f"the class there is {near[0]!r}: names are case-sensitive, so rename one of the folders" if near else ""


def _alike(part: Part) -> list[str]:
    """Returns a note on classes whose names differ only in case, which is often a mistake."""
    count = Counter(name.casefold() for name in part.classes)
    alike = [name for name in part.classes if count[name.casefold()] > 1]
    return [f"class names that differ only in case are taken as different classes: {listed(alike)}"] if alike else []


def _same_inside(tree: Tree) -> list[str]:
    """Returns a note if all classes contain the same folders, as a split with unknown names would.

    They may also be intended as classes: ``cat/{female,male}`` and ``dog/{female,male}`` are two classes.
    """
    folders = tree.folders_with_images()
    inner = {tuple(sorted(_names(folder))) for folder in folders if not folder.images}
    if len(inner) != 1 or any(folder.images for folder in folders) or len(shared := inner.pop()) < 2:
        return []
    names = listed([folder.name for folder in folders])
    return [
        f"all classes ({names}) contain the same folders: {listed(shared)}; if these are the classes and {names} are a "
        f"split, rename its folders to train and test, or use one of them, as in folder:{folders[0].path}"
    ]


def _check_unlabelled(tree: Tree, train: Part, *, alone: bool) -> None:
    """Rejects test images whose labels seem to differ from those of the training images.

    Args:
        tree: folder of test images that has no folder named like a class.
        train: the training images.
        alone: whether there are no other test images.
    """
    names = sorted(_names(tree))
    for name in names:
        if hint := _other_case(name, train.classes):
            raise InputError(f"{tree.path} has the class {name!r}, which {train.path} does not have; {hint}")
    if alone and len(names) > 1:
        raise InputError(
            f"{tree.path} has the folders {listed(names)}, none of which is a class of {train.path} "
            f"({listed(train.classes)}); give them the names of the classes, or move {tree.name} away"
        )


def _left_out(tree: Tree, read: Sequence[Tree], reasons: Mapping[Path, str]) -> list[LeftOut]:
    """Lists everything in a folder that is not read, outermost first.

    Args:
        tree: the folder.
        read: folders in it whose folders are classes.
        reasons: reasons for leaving out some of the others.
    """
    if any(tree is root for root in read):
        return [*_loose(tree), *_empty(tree), *_files(tree, list(tree.walk()))]
    if any(tree.path in root.path.parents for root in read):
        inner = [out for folder in tree.folders for out in _left_out(folder, read, reasons)]
        return [*_loose(tree), *_empty(tree), *_files(tree, [tree]), *inner]
    if not tree.has_images():
        return []  # listed among the empty folders
    return [LeftOut(tree.path, reasons.get(tree.path, "is left out"), len(tree.all_images()))]


def _loose(tree: Tree) -> list[LeftOut]:
    count = len(tree.images)
    reason = f"{count} images directly in it are left out, because they are not in a class folder"
    if count == 1:
        reason = "1 image directly in it is left out, because it is not in a class folder"
    return [LeftOut(tree.path, reason, count)] if count else []


def _empty(tree: Tree) -> list[LeftOut]:
    # unreadable folders may hold images, and are reported separately
    empty = [folder.name for folder in tree.folders if not folder.has_images() and not folder.all_unreadable()]
    return [LeftOut(tree.path, f"folders without images are left out: {listed(empty)}")] if empty else []


def _files(tree: Tree, trees: Sequence[Tree]) -> list[LeftOut]:
    """Lists files that are not images, hidden ones, and links to parent folders, in one line each."""
    reasons = []
    if others := [path for one in trees for path in one.others]:
        what = "1 file that is not an image is" if len(others) == 1 else f"{len(others)} files that are not images are"
        reasons.append(f"{what} left out ({_endings(others)}), the first is {others[0].relative_to(tree.path)}")
    if hidden := [path for one in trees for path in one.hidden]:
        reasons.append(f"hidden files and folders are left out: {_relative(hidden, tree)}")
    if circles := [path for one in trees for path in one.circles]:
        reasons.append(f"links to their own parent folders are left out: {_relative(circles, tree)}")
    return [LeftOut(tree.path, reason) for reason in reasons]


def _relative(paths: Sequence[Path], tree: Tree) -> str:
    return listed([str(path.relative_to(tree.path)) for path in paths])


def _endings(paths: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() or "without an ending" for path in paths)
    return listed([f"{count} {ending}" for ending, count in counts.most_common()])
