"""MNIST and FashionMNIST in torchvision's files: ``MNIST/raw/train-images-idx3-ubyte`` and so on.

Each of the four files may be compressed, as published (``.gz``), or not; the checksums of both are known. The images
have one channel of 28 x 28 pixels and are padded with black to 32 x 32, because three pooling layers need a multiple of
8. This is the convention of the field (the convolution of DatasetCondensation's code pads grey images to 32).
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iidlib.data.source import Images, Remote
from iidlib.errors import InputError

__all__ = ["FILES", "mnist_checksums", "mnist_remotes", "read_mnist"]

SIDE = 32

_BORDER = 2

FILES: dict[str, dict[str, tuple[str, str]]] = {
    "mnist": {
        "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
        "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    },
    "fashionmnist": {
        "train-images-idx3-ubyte": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte": ("9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
        "t10k-images-idx3-ubyte": ("8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte": ("15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
    },
}
"""Files of each dataset with their md5, uncompressed and compressed (the latter as in torchvision)."""

_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashionmnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}


def mnist_checksums(name: str, folder: Path) -> Mapping[str, str]:
    """Returns checksums of the four files in the form found: uncompressed, as torchvision reads them, or compressed."""
    checksums = {}
    for file, (unpacked, packed) in FILES[name].items():
        as_packed = not (folder / file).exists() and (folder / f"{file}.gz").exists()
        checksums[f"{file}.gz" if as_packed else file] = f"md5:{packed if as_packed else unpacked}"
    return checksums


def mnist_remotes(name: str) -> tuple[Remote, ...]:
    """Returns the four files as published."""
    files = FILES[name].items()
    return tuple(Remote(f"{_URLS[name]}{file}.gz", packed, archive=False) for file, (_, packed) in files)


def read_mnist(name: str, folder: Path) -> tuple[Images, Images]:
    """Reads training and test images, uint8 [N, 1, 32, 32].

    Raises:
        InputError: if a file is not in the IDX format, or the numbers of images and labels differ.
    """

    def split(part: str) -> Images:
        images = _read_idx(name, folder / f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(name, folder / f"{part}-labels-idx1-ubyte", 1)
        if (
            len(images) != len(labels)
            or (labels > 9).any()
            or images.shape[1:] != (SIDE - 2 * _BORDER, SIDE - 2 * _BORDER)
        ):
            raise InputError(
                f"{name}: {folder} has {part} images {tuple(images.shape)} and {len(labels)} labels, expected images "
                "of 28 x 28 and as many labels from 0 to 9; fetch the dataset again"
            )
        return F.pad(images[:, None], (_BORDER,) * 4), labels.long()

    return split("train"), split("t10k")


def _read_idx(name: str, path: Path, axes: int) -> Tensor:
    """Reads an array of bytes in the IDX format: two zeros, the type, the number of axes, their lengths, the values."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: {path} cannot be read ({error}); fetch the dataset again") from None
    header = content[4 : 4 + 4 * axes]
    lengths = np.frombuffer(header, ">u4").tolist() if len(header) == 4 * axes else []
    values = np.frombuffer(content[4 + 4 * axes :], np.uint8)
    if content[:4] != bytes((0, 0, 8, axes)) or len(lengths) != axes or len(values) != math.prod(lengths):
        raise InputError(f"{name}: {path} is not in the IDX format; fetch the dataset again")
    return torch.from_numpy(values.reshape(lengths).copy())
