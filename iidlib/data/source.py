"""Where the real images come from: files found, and verified against their checksums before they are read.

Nothing is decoded or unpickled before its checksum has been compared, and a file that is missing or differs is
reported in one line that names it and says how to get it.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from iidlib.errors import InputError
from iidlib.files import PACKAGE, checkout, user_path

__all__ = ["FileCheck", "Images", "PathLike", "Source", "data_dir"]

PathLike = str | os.PathLike[str]
"""A path as text or as an object."""

Images = tuple[Tensor, Tensor]
"""Images, uint8 [N, K, H, W], and their labels, int64 [N]."""


@dataclass(frozen=True)
class FileCheck:
    """What became of one file of a data set."""

    path: Path
    state: Literal["ok", "missing", "damaged"]
    detail: str = ""
    """How a damaged file differs."""


@dataclass(frozen=True)
class Source:
    """A data set kept in files."""

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
    download: Callable[[Path], None] | None = None
    """Puts the folder into a data root."""
    classes: Callable[[Path], tuple[str, ...]] | None = None
    """Class names, where the files tell them."""
    problems: Callable[[Path], list[str]] | None = None
    """What is missing or too much, in words, where no checksums are published."""

    def find(self, data_root: PathLike | None = None) -> Path | None:
        """The folder, in the first place that has it, or None; places as for `data_dir`."""
        return next((place for place in self._places(data_root) if place.is_dir()), None)

    def locate(self, data_root: PathLike | None = None) -> Path:
        """As `find`, for a folder that must be there.

        Raises:
            InputError: when no place has it; the message lists the places and how to get it.
        """
        folder = self.find(data_root)
        if folder is None:
            places = " and ".join(str(place) for place in self._places(data_root))
            looked = f"looked for {places}" if places else "neither --data-root nor IID_DATA names a folder to look in"
            raise InputError(f"{self.name} not found: {looked}; {self.get}")
        return folder

    def check(self, folder: Path) -> list[FileCheck]:
        """The state of every file in `folder`, by checksum."""
        return [check_file(folder / name, checksum) for name, checksum in self.checksums(folder).items()]

    def load(self, data_root: PathLike | None = None, *, download: bool = False) -> tuple[Images, Images]:
        """Training and test images: found (or downloaded), verified, and read.

        Args:
            data_root: the folder to look in; the one in ``IID_DATA`` when not given.
            download: fetch first what is missing or damaged, where the source can (with a progress bar).

        Raises:
            InputError: when the folder is in none of the places, a file is missing or damaged, or the download fails.
        """
        if download and self.download and not self._whole(data_root):
            self._fetch(self.download, data_root)
        folder = self.locate(data_root)
        if self.problems and (told := self.problems(folder)):
            more = f" and {len(told) - 4} more" if len(told) > 4 else ""
            get = self.get.replace("DIR", str(folder.parent))
            raise InputError(f"{self.name}: {folder} is not whole: {'; '.join(told[:4])}{more}. {get}")
        for file in self.check(folder):
            if file.state != "ok":
                state = "is missing" if file.state == "missing" else f"is damaged ({file.detail})"
                get = self.get.replace("DIR", str(folder.parent))
                raise InputError(f"{self.name}: {file.path} {state}; remove {folder} and {get}")
        return self.read(folder)

    def _whole(self, data_root: PathLike | None) -> bool:
        folder = self.find(data_root)
        if folder is None or (self.problems and self.problems(folder)):
            return False
        return all(file.state == "ok" for file in self.check(folder))

    def _places(self, data_root: PathLike | None) -> list[Path]:
        return _places(self.folder, data_root, self.embedded)

    def _fetch(self, download: Callable[[Path], None], data_root: PathLike | None) -> None:
        places = self._places(data_root)
        if not places:
            raise InputError(f"no folder to download {self.name} to: name one with --data-root or IID_DATA")
        root = places[0].parent
        try:
            download(root)
        except OSError as error:  # no network, no room, no right to write
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.name} could not be downloaded to {root} ({reason}); check the network and that the folder can "
                f"be written, or put {self.folder} there by other means"
            ) from None


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
    # whoever names the data set's own folder instead of the one that holds it is understood
    return [root if root.name == folder else root / folder for root in roots]


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
