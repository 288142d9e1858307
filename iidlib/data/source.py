"""Where the real images come from: files found, and verified against their checksums before they are read.

Nothing is decoded or unpickled before its checksum has been compared, and a file that is missing or differs is
reported in one line that names it and says how to get it.
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
"""A path as text or as an object."""

Images = tuple[Tensor, Tensor]
"""Images, uint8 [N, K, H, W], and their labels, int64 [N]."""


@dataclass(frozen=True)
class FileCheck:
    """What became of one file of a dataset."""

    path: Path
    state: Literal["ok", "missing", "damaged"]
    detail: str = ""
    """How a damaged file differs."""


@dataclass(frozen=True)
class Remote:
    """A file that a dataset is fetched as."""

    url: str
    md5: str | None
    """Its published checksum, where there is one."""
    archive: bool
    """Whether it holds the dataset's folder; else it is one of the files in it."""
    name: str = ""
    """The file's name; the last part of the address when not given."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", posixpath.basename(self.url))


@dataclass(frozen=True)
class Size:
    """How large a dataset is known to be, by which what is fetched and unpacked is bounded."""

    download: int
    """Bytes of all files that are fetched."""
    unpacked: int = 0
    """Bytes of what the archive holds, where it is one."""
    members: int = 0
    """Files and folders in the archive."""


@dataclass(frozen=True)
class Source:
    """A dataset kept in files."""

    name: str
    folder: str
    """The folder that holds its files, inside a data root."""
    images: tuple[int, int]
    """How many training and test images it has."""
    embedded: bool
    """Whether it comes with the library."""
    get: str
    """What to do to get it; ``DIR`` stands for the data root."""
    checksums: Callable[[Path], Mapping[str, str]]
    """Checksums of the files in its folder, by relative path, as ``algorithm:hex``."""
    read: Callable[[Path], tuple[Images, Images]]
    """Training and test images from a folder whose files are known to be whole."""
    remotes: Callable[[], tuple[Remote, ...]] | None = None
    """The files that it is fetched as, where it can be."""
    size: Size = field(default=Size(0))
    """How large it is, where it is fetched."""
    classes: Callable[[Path], tuple[str, ...]] | None = None
    """Class names, where the files tell them."""
    problems: Callable[[Path], list[str]] | None = None
    """What is missing or too much, in words, where no checksums are published."""

    def find(self, data_root: PathLike | None = None) -> Path | None:
        """The folder, in the first place that has it, or None; places as for `data_dir`.

        An empty folder, which a download may have left, does not count where another place has one with files.
        """
        there = [place for place in self.places(data_root) if place.is_dir()]
        return next((place for place in there if any(place.iterdir())), there[0] if there else None)

    def locate(self, data_root: PathLike | None = None) -> Path:
        """As `find`, for a folder that must be there.

        Raises:
            InputError: when no place has it; the message lists the places and how to get it.
        """
        folder = self.find(data_root)
        if folder is None:
            places = self.places(data_root)
            looked, get = "neither --data-root nor IID_DATA names a folder to look in", self.get
            if places:
                wrong = in_the_way(places[0])
                looked = f"looked for {' and '.join(map(str, places))}{wrong}"
                get = get if wrong else get.replace("DIR", str(self.root_of(places[0])))
            raise InputError(f"{self.name} not found: {looked}; {get}")
        return folder

    def places(self, data_root: PathLike | None = None) -> list[Path]:
        """Where the folder may be, first the place to prefer."""
        return _places(self.folder, data_root, self.embedded)

    def root_of(self, folder: Path) -> Path:
        """The data root of a folder that is one of the places."""
        return folder.parents[len(Path(self.folder).parts) - 1]

    def check(self, folder: Path) -> list[FileCheck]:
        """The state of every file in `folder`, by checksum."""
        return [check_file(folder / name, checksum) for name, checksum in self.checksums(folder).items()]

    def lacks(self, folder: Path) -> list[str]:
        """What is not there of all that belongs into `folder`, in words; files are not read."""
        missing = [name for name in self.checksums(folder) if not (folder / name).exists()]
        return [*(self.problems(folder) if self.problems else []), *(f"{name} is missing" for name in missing)]

    def load(self, data_root: PathLike | None = None) -> tuple[Images, Images]:
        """Training and test images: found, verified, and read.

        Args:
            data_root: the folder to look in; the one in ``IID_DATA`` when not given.

        Raises:
            InputError: when the folder is in none of the places, or a file is missing or damaged.
        """
        folder = self.locate(data_root)
        get = self.get.replace("DIR", str(self.root_of(folder)))
        if self.problems and (told := self.problems(folder)):
            raise InputError(f"{self.name}: {folder} is not whole: {listed(told, 4, between='; ')}. {get}")
        for file in self.check(folder):
            if file.state == "missing":
                raise InputError(f"{self.name}: {file.path} is missing; {get}")
            if file.state == "damaged":
                raise InputError(f"{self.name}: {file.path} is damaged ({file.detail}); move it away and {get}")
        return self.read(folder)

    def whole(self, data_root: PathLike | None = None) -> bool:
        """Whether every file is there and as it should be."""
        folder = self.find(data_root)
        if folder is None or (self.problems and self.problems(folder)):
            return False
        return all(file.state == "ok" for file in self.check(folder))


def in_the_way(place: Path) -> str:
    """The end of a message, where a file stands where a folder above should be."""
    files = [above for above in place.parents if above.is_file()]
    return f", but {files[0]} is a file, not a folder" if files else ""


def data_dir(name: str = "cifar10-mini", data_root: PathLike | None = None) -> Path:
    """The folder `name` of what comes with the library: embedded images, distilled sets, measured numbers.

    Looks in `data_root` (or ``IID_DATA`` when not given), then the checkout's ``data/``, then the files installed with
    the package (which hold ``cifar10-mini`` only); the working folder plays no part.

    Raises:
        InputError: when none of them has it.
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
    """Where a folder of data may be, first the place to prefer."""
    # an IID_DATA set to nothing counts as not set
    named = data_root or os.environ.get("IID_DATA")
    roots = [user_path(named).absolute()] if named else []
    if embedded:
        # not simply beside the package: in an installation that is site-packages, whose "data" is not ours
        if (root := checkout()) is not None:
            roots.append(root / "data")
        roots.append(PACKAGE / "_data")
    parts = Path(folder).parts
    places = []
    for root in roots:
        # whoever names the dataset's own folder, or one between, instead of the one that holds it is understood
        own = [n for n in range(len(parts), 0, -1) if root.parts[-n:] == parts[:n]]
        places += [root.joinpath(*parts[own[0] :])] if own else []
        if not own or len(parts) > 1:  # torchvision.datasets.MNIST("MNIST") makes MNIST/MNIST/raw
            places.append(root / folder)
    return places


def file_checksum(path: Path, algorithm: str) -> str:
    """A file's checksum in hex digits."""
    with path.open("rb") as file:
        # many sets publish md5, which finds damage, and does so also where it is barred for security
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def check_file(path: Path, checksum: str) -> FileCheck:
    algorithm, expected = checksum.split(":")
    try:
        actual = file_checksum(path, algorithm)
    except FileNotFoundError:
        return FileCheck(path, "missing")
    except OSError as error:
        return FileCheck(path, "damaged", f"cannot be read: {error.strerror}")
    if actual != expected:
        return FileCheck(path, "damaged", f"{algorithm} {actual[:12]}, expected {expected[:12]}")
    return FileCheck(path, "ok")
