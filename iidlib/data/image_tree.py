"""Contents of a folder: image files, other files, folders, and what cannot be read; nothing is skipped silently.

Links to folders are followed, each folder once. A link to one of its own parent folders is recorded but not followed,
and a link to a folder that is read elsewhere is reported as unusable, because its images would count twice.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ENDINGS", "UNREAD_PICTURES", "Tree", "Unreadable", "scan"]

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .j2k .jpx .jpf "
    ".j2c .jpc .avif .mpo .pcx .sgi .qoi .dds .psd".split()
)
"""File name endings of images, in lower case; formats that Pillow opens without plugins."""

UNREAD_PICTURES = frozenset(
    ".heic .heif .jxl .svg .svgz .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .raw .exr .hdr .dcm .nii .fits .npy".split()
)
"""Endings of unsupported pictures. A class with nothing else must not be left out silently."""

NO_CONTENT = {"__MACOSX", "$RECYCLE.BIN", "System Volume Information"}
"""Folders created by operating systems and archivers, treated as hidden."""

KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Unreadable:
    """A file or folder that cannot be read, with the reason."""

    path: Path
    reason: str
    is_folder: bool = False

    @property
    def is_image(self) -> bool:
        """Whether its name ends like an image's; anything that is neither an image nor a folder is a link."""
        return not self.is_folder and self.path.suffix.lower() in ENDINGS


@dataclass(eq=False)
class Tree:
    """A folder and its contents, each list in order of names."""

    path: Path
    folders: list["Tree"] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    """Image files directly in it, by their endings; they are not opened."""
    others: list[Path] = field(default_factory=list)
    """Files directly in it whose endings are not those of images."""
    hidden: list[Path] = field(default_factory=list)
    """Hidden folders, and hidden files with an image's ending."""
    circles: list[Path] = field(default_factory=list)
    """Links to one of their own parent folders."""
    unreadable: list[Unreadable] = field(default_factory=list)
    """Unreadable entries directly in it, or the folder itself."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    def walk(self) -> Iterator["Tree"]:
        """Yields the folder and all folders below it, parents first."""
        stack = [self]
        while stack:  # no recursion, since folders can be nested more deeply than Python's call stack allows
            tree = stack.pop()
            yield tree
            stack += reversed(tree.folders)

    def all_images(self) -> list[Path]:
        """Lists the image files in it at any depth; those directly in a folder come before those in its folders."""
        return [path for tree in self.walk() for path in tree.images]

    def all_unreadable(self) -> list[Unreadable]:
        """Lists what cannot be read in it at any depth."""
        return [found for tree in self.walk() for found in tree.unreadable]

    def has_images(self) -> bool:
        """Whether it contains an image file at any depth."""
        return any(tree.images for tree in self.walk())

    def folders_with_images(self) -> list["Tree"]:
        """Lists the folders directly in it that contain images at any depth."""
        return [tree for tree in self.folders if tree.has_images()]


def scan(root: Path) -> Tree:
    """Reads the names in a folder and in all folders below it; no file is opened.

    Args:
        root: a folder; if it cannot be read, the tree records that.
    """
    first, real = Tree(root), os.path.realpath(root)
    seen, stack = {real: root}, [(first, real)]
    while stack:
        tree, real = stack.pop()
        below: list[tuple[Tree, str]] = []
        for entry in _entries(tree):
            target = _sort(tree, entry, real)
            if target is None:
                continue
            path = tree.path / entry.name
            if _holds(target, real):
                tree.circles.append(path)
            elif target in seen:
                reason = f"the same folder as {_shown(seen[target], root)}, so that its images would count twice"
                tree.unreadable.append(Unreadable(path, reason, is_folder=True))
            else:
                seen[target] = path
                tree.folders.append(Tree(path))
                below.append((tree.folders[-1], target))
        stack += reversed(below)
    return first


def _entries(tree: Tree) -> list[os.DirEntry[str]]:
    """Lists the entries of a folder in order of names; records an error if it cannot be read."""
    try:
        with os.scandir(tree.path) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        tree.unreadable.append(Unreadable(tree.path, _reason(error), is_folder=True))
        return []


def _sort(tree: Tree, entry: "os.DirEntry[str]", real: str) -> str | None:
    """Adds an entry that is not a folder to its list; returns the real path of a folder, or None.

    Args:
        tree: folder that contains the entry.
        entry: one of its entries.
        real: real path of the folder, with links resolved.
    """
    path, ending = tree.path / entry.name, os.path.splitext(entry.name)[1].lower()  # noqa: PTH122, for speed
    try:
        linked = entry.is_symlink() or (hasattr(entry, "is_junction") and entry.is_junction())
        is_folder = entry.is_dir()
        if entry.name.startswith(".") or (is_folder and entry.name in NO_CONTENT):
            if is_folder or ending in ENDINGS:
                tree.hidden.append(path)
        elif is_folder:
            return os.path.realpath(path) if linked else os.path.join(real, entry.name)  # noqa: PTH118
        elif entry.is_file():
            (tree.images if ending in ENDINGS else tree.others).append(path)
        elif linked and not path.exists():
            tree.unreadable.append(Unreadable(path, "a link that leads nowhere"))
        elif ending in ENDINGS:
            mode = path.stat().st_mode
            kind = next((name for is_kind, name in KINDS if is_kind(mode)), "something else")
            tree.unreadable.append(Unreadable(path, f"{kind}, not a file"))
        else:
            tree.others.append(path)
    except OSError as error:
        tree.unreadable.append(Unreadable(path, _reason(error)))
    return None


def _holds(target: str, real: str) -> bool:
    """Whether `target` is the folder `real` or one of its parents, both given as real paths."""
    return real == target or real.startswith(target.rstrip(os.sep) + os.sep)


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else str(root)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
