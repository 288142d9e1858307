"""cifar10-mini, which comes with the library as mosaics of images, every byte of them pinned by checksums."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iidlib.data.source import Images, check_file

__all__ = ["from_mosaic"]

# Pins every byte of cifar10-mini, since the manifest holds the checksums of the other files. Numbers measured on it
# therefore stay comparable, and a corrupted manifest is detected like any other corrupted file.
_MINI_MANIFEST_SHA256 = "1fd0204a253638f22529795b8f70c81010f58e6d4a30526a543f67850c3c59db"


def from_mosaic(mosaic: np.ndarray, size: int) -> Tensor:
    """Cuts a picture of square tiles into images.

    Args:
        mosaic: uint8 [rows * size, columns * size, K], the tiles in reading order.
        size: pixels per side of a tile.

    Returns:
        uint8 [rows * columns, K, size, size].
    """
    height, width, channels = mosaic.shape
    tiles = mosaic.reshape(height // size, size, width // size, size, channels).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(np.ascontiguousarray(tiles).reshape(-1, channels, size, size))


def mini_checksums(folder: Path) -> dict[str, str]:
    pinned = {"manifest.json": f"sha256:{_MINI_MANIFEST_SHA256}"}
    if check_file(folder / "manifest.json", pinned["manifest.json"]).state != "ok":
        return pinned
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    return pinned | {name: f"sha256:{entry['sha256']}" for name, entry in manifest["files"].items()}


def read_mini(folder: Path) -> tuple[Images, Images]:
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
