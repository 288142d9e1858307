"""Detection of a dataset's split into training and test images, by the usual names of their folders."""

import re
from collections.abc import Sequence

from iidlib.data.image_tree import Tree
from iidlib.errors import InputError, listed

__all__ = ["find_split", "inside", "role_of"]

ROLES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
    "unlabelled": ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"),
}
"""Words in folder names that mark each role in a split."""

TAILS = {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "folder", "dir"}
"""Words after them without further meaning, as in ``test_set``."""

CONTAINERS = {"images", "image", "imgs", "img", "data"}
"""Folders between a split and its classes, as in ``train/images/cat``."""

WORDS = {"train": "training images", "test": "test images", "val": "validation images"}


def role_of(name: str) -> tuple[str, str] | None:
    """Returns the prefix of a folder's name and the role that the name marks, or None if it marks none.

    >>> role_of("Training"), role_of("test_set"), role_of("valid"), role_of("seg_train")
    (('', 'train'), ('', 'test'), ('', 'val'), ('seg', 'train'))
    >>> role_of("trains"), role_of("contest")
    (None, None)
    """
    # the years are those of COCO's train2017 and val2017
    words = [word for word in re.split(r"[\s_.\-]+", re.sub(r"(?<=[a-z])\d{4}$", "", name.casefold())) if word]
    while len(words) > 1 and words[-1] in TAILS:
        words.pop()
    if not words:
        return None
    last = re.sub(r"(?:set|data|images|imgs|split)$", "", words[-1])
    for role, known in ROLES.items():
        if words[-1] in known or last in known:
            return "_".join(words[:-1]), role
    return None


def find_split(tree: Tree) -> dict[str, Tree]:
    """Returns the folders of a split by role (train, test, val, unlabelled), or none if the folder holds classes.

    Single folders around the split are entered, at any depth (``archive/train``).

    Raises:
        InputError: if the layout is ambiguous, or has no training images.
    """
    place = tree
    while True:
        if roles := _roles(place):
            return roles
        folders = place.folders_with_images()
        split = [folder for folder in folders if _is_split(folder)]
        if len(folders) > 1 and split:
            one = split[0]
            parts = " and ".join(sub.name for sub in one.folders_with_images() if role_of(sub.name))
            raise InputError(
                f"{place.path} has the folders {listed([folder.name for folder in folders])}, and {one.name} contains "
                f"{parts}; if the folders are classes, put the split above them (train/{one.name}, test/{one.name}); "
                f"if {one.name} is the dataset, write folder:{one.path}"
            )
        if len(folders) != 1 or place.images:
            return {}
        place = folders[0]


def inside(tree: Tree, role: str) -> Tree:
    """Returns the folder that holds the classes, entering folders that repeat the part's name or are called images."""
    while True:
        folders = tree.folders_with_images()
        if len(folders) != 1 or tree.images:
            return tree
        (only,) = folders
        known = role_of(only.name)
        repeats = only.name == tree.name or (known is not None and known[1] == role)
        contains = only.name.casefold() in CONTAINERS and not only.images
        if not repeats and not contains:
            return tree
        tree = only


def _is_split(tree: Tree) -> bool:
    return _complete([role for folder in tree.folders_with_images() if (role := role_of(folder.name))], "")


def _complete(roles: Sequence[tuple[str, str]], front: str) -> bool:
    """Whether the folders whose names start with `front` are a split, as seg_train and seg_test are."""
    found = {role for prefix, role in roles if prefix == front}
    return "train" in found and bool(found & {"test", "val"})


def _roles(tree: Tree) -> dict[str, Tree]:
    """Returns the folders of a split directly in a folder, by role."""
    folders = tree.folders_with_images()
    named = [(folder, *role) for folder in folders if (role := role_of(folder.name))]
    if any(folder.name.casefold() == "invalid" for folder in folders):  # then valid is a class
        named = [one for one in named if one[0].name.casefold() != "valid"]
    meant = [(front, role) for _, front, role in named]
    fronts = [front for front in dict.fromkeys(front for front, _ in meant) if _complete(meant, front)]
    if any(front == "" and role in WORDS for front, role in meant):
        fronts = [""]
    if not fronts:
        return {}
    split = [(folder, role) for folder, front, role in named if front == fronts[0]]
    roles = {role: folder for folder, role in split}
    names = [folder.name for folder, _ in split]
    for one, words in WORDS.items():
        if len(both := [folder.name for folder, role in split if role == one]) > 1:
            raise InputError(
                f"{tree.path} has {' and '.join(both)}, each of which can be the {words}; merge them, or move one away"
            )
    beside = [folder.name for folder in folders if folder.name not in names]
    if "train" not in roles:
        (first, _), *_ = split
        alone = f"{tree.path} has a folder {first.name} but none with training images"
        if not beside:
            raise InputError(f"{alone}; put them into {tree.path / 'train'}, or use this one: folder:{first.path}")
        raise InputError(
            f"{alone}; if {first.name} holds test images, move the class folders into {tree.path / 'train'}, and if it "
            "is a class, give its folder another name"
        )
    train = roles["train"]
    if not beside:
        return roles
    numbered = [name for name in beside if role_of(re.sub(r"[\s_-]*\d+$", "", name))]  # Kaggle's test1
    if not {"test", "val"} & set(roles) and not numbered and train.images and not train.folders_with_images():
        return {}  # a class of trains next to buses and cars; a split without classes would be useless
    raise InputError(
        f"{tree.path} has {' and '.join(names)} next to other folders with images: {listed(beside)}; if those are "
        f"classes, move them into {train.path}; if {train.name} is a class, give its folder another name; otherwise "
        "move the other folders away"
    )
