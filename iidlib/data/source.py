"""Sources of real images: their files are located, and verified against their checksums before they are read.

Nothing is decoded or unpickled before its checksum has been verified. A missing or corrupted file is reported in one
line that names it and explains how to get it.
"""

import hashlib
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from iidlib.errors import InputError, listed
from iidlib.files import PACKAGE, checkout, user_path

__all__ = ["FileCheck", "Images", "PathLike", "Remote", "Size", "Source", "data_dir"]

PathLike = str | os.PathLike[str]
"""Path as text or as an object."""

Images = tuple[Tensor, Tensor]
"""Images, uint8 [N, K, H, W], and their labels, int64 [N]."""


@dataclass(frozen=True)
class FileCheck:
    """State of one file of a dataset."""

    path: Path
    state: Literal["ok", "missing", "corrupted"]
    detail: str = ""
    """Difference that was found in a corrupted file."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch for a dataset."""

    url: str
    md5: str | None
    """Published checksum, or None if there is none."""
    archive: bool
    """Whether it is an archive of the dataset's folder, rather than one of the files in the folder."""
    name: str = ""
    """File name; the last part of the address by default."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", posixpath.basename(self.url))


@dataclass(frozen=True)
class Size:
    """Known size of a dataset, which limits how much is fetched and unpacked."""

    download: int
    """Total bytes of the files to fetch."""
    unpacked: int = 0
    """Bytes of the unpacked archive, if it is one."""
    members: int = 0
    """Files and folders in the archive."""


@dataclass(frozen=True)
class Source:
    """A dataset stored in files."""

    name: str
    folder: str
    """Folder that holds its files, inside a data root."""
    images: tuple[int, int]
    """Numbers of training and test images."""
    embedded: bool
    """Whether it comes with the library."""
    get: str
    """Instructions for getting it; ``FOLDER`` stands for the data root."""
    checksums: Callable[[Path], Mapping[str, str]]
    """Function that returns the checksums of the files in a folder, by relative path, as ``algorithm:hex``."""
    read: Callable[[Path], tuple[Images, Images]]
    """Function that reads the training and test images from a folder whose files have been verified."""
    remotes: Callable[[], tuple[Remote, ...]] | None = None
    """Function that returns the files to fetch; None for a dataset that is not fetched."""
    size: Size = field(default=Size(0))
    """Size of a dataset that is fetched."""
    classes: Callable[[Path], tuple[str, ...]] | None = None
    """Function that reads the class names from the files, if they hold them."""
    problems: Callable[[Path], list[str]] | None = None
    """Function that lists missing and unexpected files, in words, if no checksums are published."""

    def find(self, data_root: PathLike | None = None) -> Path | None:
        """Returns the dataset's folder in the first place that has it, or None; places as for `data_dir`.

        An empty folder, which a download may have left, is used only if no other place has a folder with files.
        """
        there = [place for place in self.places(data_root) if place.is_dir()]
        return next((place for place in there if any(place.iterdir())), there[0] if there else None)

    def locate(self, data_root: PathLike | None = None) -> Path:
        """Returns the dataset's folder, which must exist, see `find`.

        Raises:
            InputError: if no place has it; the message lists the places and explains how to get it.
        """
        folder = self.find(data_root)
        if folder is None:
            places = self.places(data_root)
            looked, get = "neither --data-root nor IID_DATA names a folder to look in", self.get
            if places:
                wrong = in_the_way(places[0])
                looked = f"looked for {' and '.join(map(str, places))}{wrong}"
                get = get if wrong else get.replace("FOLDER", str(self.root_of(places[0])))
            raise InputError(f"{self.name} not found: {looked}; {get}")
        return folder

    def places(self, data_root: PathLike | None = None) -> list[Path]:
        """Returns the possible locations of the folder, the preferred one first."""
        return _places(self.folder, data_root, self.embedded)

    def root_of(self, folder: Path) -> Path:
        """Returns the data root of a folder that is one of the places."""
        return folder.parents[len(Path(self.folder).parts) - 1]

    def check(self, folder: Path) -> list[FileCheck]:
        """Verifies the checksum of every file in `folder`."""
        return [check_file(folder / name, checksum) for name, checksum in self.checksums(folder).items()]

    def lacks(self, folder: Path) -> list[str]:
        """Lists in words what `folder` lacks, without reading files."""
        missing = [name for name in self.checksums(folder) if not (folder / name).exists()]
        return [*(self.problems(folder) if self.problems else []), *(f"{name} is missing" for name in missing)]

    def load(self, data_root: PathLike | None = None) -> tuple[Images, Images]:
        """Finds, verifies and reads the training and test images.

        Args:
            data_root: folder to look in; ``IID_DATA`` by default.

        Raises:
            InputError: if the folder cannot be found, or a file is missing or corrupted.
        """
        folder = self.locate(data_root)
        get = self.get.replace("FOLDER", str(self.root_of(folder)))
        if self.problems and (problems := self.problems(folder)):
            raise InputError(f"{self.name}: {folder} is incomplete: {listed(problems, 4, between='; ')}. {get}")
        for file in self.check(folder):
            if file.state == "missing":
                raise InputError(f"{self.name}: {file.path} is missing; {get}")
            if file.state == "corrupted":
                raise InputError(f"{self.name}: {file.path} is corrupted ({file.detail}); move it away and {get}")
        return self.read(folder)

    def complete(self, data_root: PathLike | None = None) -> bool:
        """Whether every file is present and intact."""
        folder = self.find(data_root)
        if folder is None or (self.problems and self.problems(folder)):
            return False
        return all(file.state == "ok" for file in self.check(folder))


def in_the_way(place: Path) -> str:
    """Returns the end of a message about a file in place of a parent folder, empty if there is none."""
    files = [above for above in place.parents if above.is_file()]
    return f", but {files[0]} is a file, not a folder" if files else ""


def data_dir(name: str = "cifar10-mini", data_root: PathLike | None = None) -> Path:
    """Returns the folder `name` of the data that comes with the library: images, distilled sets, measured numbers.

    Looks in `data_root` (``IID_DATA`` by default), then the checkout's ``data/``, then the files installed with the
    package (``cifar10-mini`` only), but never in the working folder.

    Raises:
        InputError: if none of them has it.
    """
    places = _places(name, data_root, embedded=True)
    for place in places:
        if place.is_dir():
            return place
    raise InputError(
        f"no folder {name!r}: looked for {' and '.join(map(str, places))}; set IID_DATA to the folder that holds it "
        "or install the library from a checkout (pip install -e .)"
    )


def _places(folder: str, data_root: PathLike | None, embedded: bool) -> list[Path]:
    """Returns the possible locations of a folder of data, the preferred one first."""
    # an empty IID_DATA counts as unset
    named = data_root or os.environ.get("IID_DATA")
    roots = [user_path(named).absolute()] if named else []
    if embedded:
        # not simply next to the package: in an installation that is site-packages, whose "data" is not ours
        if (root := checkout()) is not None:
            roots.append(root / "data")
        roots.append(PACKAGE / "_data")
    parts = Path(folder).parts
    places = []
    for root in roots:
        # the root may also be the dataset's folder itself, or a folder on the path to it
        overlaps = [n for n in range(len(parts), 0, -1) if root.parts[-n:] == parts[:n]]
        places += [root.joinpath(*parts[overlaps[0] :])] if overlaps else []
        if not overlaps or len(parts) > 1:  # torchvision.datasets.MNIST("MNIST") makes MNIST/MNIST/raw
            places.append(root / folder)
    return places


def file_checksum(path: Path, algorithm: str) -> str:
    """Returns a file's checksum in hex digits."""
    with path.open("rb") as file:
        # many datasets publish md5, which detects corruption; usedforsecurity lets it run where policies forbid it
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def check_file(path: Path, checksum: str) -> FileCheck:
    algorithm, expected = checksum.split(":")
    try:
        actual = file_checksum(path, algorithm)
    except FileNotFoundError:
        return FileCheck(path, "missing")
    except OSError as error:
        return FileCheck(path, "corrupted", f"cannot be read: {error.strerror}")
    if actual != expected:
        return FileCheck(path, "corrupted", f"{algorithm} {actual[:12]}, expected {expected[:12]}")
    return FileCheck(path, "ok")
