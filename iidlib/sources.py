"""Where the real images come from: files found, verified against their checksums, and read into tensors.

Nothing is decoded or unpickled before its checksum has been compared, and a file that is missing or differs is
reported in one line that names it and says how to get it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iidlib.inputs import InputError, user_path
from iidlib.tinyimagenet import classes_of, fetch_tinyimagenet, problems, read_tinyimagenet
from iidlib.torchvision_sets import (
    cifar_checksums,
    cifar_classes,
    fetch_cifar,
    fetch_svhn,
    read_cifar,
    read_svhn,
    svhn_checksums,
)

__all__ = ["SHAPES", "SOURCES", "FileCheck", "Images", "PathLike", "Source", "data_dir", "draw_shapes", "from_mosaic"]

PathLike = str | os.PathLike[str]
"""A path as text or as an object."""

Images = tuple[Tensor, Tensor]
"""Images, uint8 [N, K, H, W], and their labels, int64 [N]."""

# Pins every byte of cifar10-mini, since the manifest holds the checksums of the other files: numbers measured on it
# stay comparable, and a damaged manifest is found like any other damaged file.
_MINI_MANIFEST_SHA256 = "1fd0204a253638f22529795b8f70c81010f58e6d4a30526a543f67850c3c59db"

_PACKAGE = Path(__file__).resolve().parent


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
        return [_check_file(folder / name, checksum) for name, checksum in self.checksums(folder).items()]

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
        # beside pyproject.toml: in an installation the package's parent is site-packages, whose "data" is not ours
        if (_PACKAGE.parent / "pyproject.toml").is_file():
            roots.append(_PACKAGE.parent / "data")
        roots.append(_PACKAGE / "_data")
    # whoever names the data set's own folder instead of the one that holds it is understood
    return [root if root.name == folder else root / folder for root in roots]


def _check_file(path: Path, checksum: str) -> FileCheck:
    algorithm, expected = checksum.split(":")
    try:
        with path.open("rb") as file:
            # CIFAR-10's published checksums are md5: they find damage, and where md5 is barred for security still do
            actual = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        return FileCheck(path, "missing")
    except OSError as error:
        return FileCheck(path, "damaged", f"cannot be read: {error.strerror}")
    if actual != expected:
        return FileCheck(path, "damaged", f"{algorithm} {actual[:12]}, expected {expected[:12]}")
    return FileCheck(path, "ok")


def from_mosaic(mosaic: np.ndarray, size: int) -> Tensor:
    """Cuts a picture of square tiles into images.

    Args:
        mosaic: uint8 [rows * size, columns * size, K], the tiles in reading order.
        size: pixels a side of a tile.

    Returns:
        uint8 [rows * columns, K, size, size].
    """
    height, width, channels = mosaic.shape
    tiles = mosaic.reshape(height // size, size, width // size, size, channels).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(np.ascontiguousarray(tiles).reshape(-1, channels, size, size))


def _mini_checksums(folder: Path) -> dict[str, str]:
    pinned = {"manifest.json": f"sha256:{_MINI_MANIFEST_SHA256}"}
    if _check_file(folder / "manifest.json", pinned["manifest.json"]).state != "ok":
        return pinned
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    return pinned | {name: f"sha256:{entry['sha256']}" for name, entry in manifest["files"].items()}


def _read_mini(folder: Path) -> tuple[Images, Images]:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))

    def split(part: str) -> Images:
        images, labels = [], []
        for name, entry in manifest["files"].items():
            if entry["split"] == part:
                with Image.open(folder / name) as mosaic:
                    images.append(from_mosaic(np.asarray(mosaic.convert("RGB")), manifest["tile_size"]))
                labels.append(torch.full((entry["images"],), entry["label"]))
        return torch.cat(images), torch.cat(labels)

    return split("train"), split("test")


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v: u * u + v * v < 1,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.85,
    "triangle": lambda u, v: (v < 0.8) & (v > 2 * u.abs() - 1),
    "plus": lambda u, v: (torch.minimum(u.abs(), v.abs()) < 0.3) & (torch.maximum(u.abs(), v.abs()) < 1),
    "ring": lambda u, v: (u * u + v * v < 1) & (u * u + v * v > 0.4),
    "diamond": lambda u, v: u.abs() + v.abs() < 1.1,
    "bar": lambda u, v: (v.abs() < 0.3) & (u.abs() < 1),
    "cross": lambda u, v: (torch.minimum((u + v).abs(), (u - v).abs()) < 0.4) & (torch.maximum(u.abs(), v.abs()) < 0.9),
    "crescent": lambda u, v: (u * u + v * v < 1) & ((u - 0.5) ** 2 + v * v > 0.6),
    "frame": lambda u, v: (torch.maximum(u.abs(), v.abs()) < 0.9) & (torch.maximum(u.abs(), v.abs()) > 0.5),
}
"""What is inside a shape, in coordinates where it spans about -1 to 1."""


def draw_shapes(counts: Sequence[int], image_size: int, generator: torch.Generator) -> Images:
    """Coloured shapes at random places and sizes on noisy grey grounds, class after class.

    Class c is a shape (the table's, over again after ten) in a hue around c / C, so that small networks learn it in
    seconds and it is not solved by one pixel.

    Args:
        counts: images of each class.
        image_size: pixels a side.
        generator: where the draws come from (CPU).
    """
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), *shape, generator=generator)

    axis = torch.linspace(-1, 1, image_size)
    radius = uniform(0.4, 0.7, 1, 1)
    u = (axis.view(1, 1, -1) - uniform(-0.3, 0.3, 1, 1)) / radius
    v = (axis.view(1, -1, 1) - uniform(-0.3, 0.3, 1, 1)) / radius
    kinds = list(SHAPES.values())
    inside = torch.stack([kinds[label % len(kinds)](u[i], v[i]) for i, label in enumerate(labels.tolist())])
    hue = (labels / len(counts)).view(-1, 1) + uniform(-0.2, 0.2, 1) + torch.tensor([0.0, 1 / 3, 2 / 3])
    colour = 0.5 + 0.4 * torch.cos(2 * torch.pi * hue)
    image = torch.where(inside[:, None], colour[:, :, None, None], uniform(0.2, 0.8, 1, 1, 1))
    image = image + uniform(-0.15, 0.15, 3, image_size, image_size)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _get(name: str, size: str, folder: str) -> str:
    return (
        f"fetch it ({size}) with: iid data fetch {name} --data-root DIR (or name with --data-root or IID_DATA the "
        f"folder that holds {folder})"
    )


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="cifar10-mini",
            folder="cifar10-mini",
            images=(4_000, 1_000),
            embedded=True,
            get="restore it from the repository (git checkout data/cifar10-mini) or reinstall iidlib",
            checksums=_mini_checksums,
            read=_read_mini,
        ),
        Source(
            name="cifar10",
            folder="cifar-10-batches-py",
            images=(50_000, 10_000),
            embedded=False,
            get=_get("cifar10", "170 MB", "cifar-10-batches-py"),
            checksums=lambda folder: cifar_checksums("CIFAR10"),
            read=partial(read_cifar, "CIFAR10"),
            download=partial(fetch_cifar, "CIFAR10"),
        ),
        Source(
            name="cifar100",
            folder="cifar-100-python",
            images=(50_000, 10_000),
            embedded=False,
            get=_get("cifar100", "169 MB", "cifar-100-python"),
            checksums=lambda folder: cifar_checksums("CIFAR100"),
            read=partial(read_cifar, "CIFAR100"),
            download=partial(fetch_cifar, "CIFAR100"),
            classes=partial(cifar_classes, "CIFAR100"),
        ),
        Source(
            name="svhn",
            folder="svhn",
            images=(73_257, 26_032),
            embedded=False,
            get=_get("svhn", "246 MB", "svhn with train_32x32.mat and test_32x32.mat"),
            checksums=lambda folder: svhn_checksums(),
            read=read_svhn,
            download=fetch_svhn,
        ),
        Source(
            name="tinyimagenet",
            folder="tiny-imagenet-200",
            images=(100_000, 10_000),
            embedded=False,
            get=_get("tinyimagenet", "248 MB", "tiny-imagenet-200")
            + "; part of it is a data set of its own as folder:PATH?size=64",
            checksums=lambda folder: {},
            read=read_tinyimagenet,
            download=fetch_tinyimagenet,
            classes=classes_of,
            problems=problems,
        ),
    )
}
"""Data sets kept in files, by name."""
