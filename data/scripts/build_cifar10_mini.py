"""Builds data/cifar10-mini from CIFAR-10: the first 400 training and 100 test images of each class, as mosaics.

    python data/scripts/build_cifar10_mini.py FOLDER

FOLDER is the folder that contains cifar-10-batches-py. The same input and versions of Pillow and libwebp produce the
same bytes. With other versions the files may differ, but the pixels do not; the manifest has checksums of both. The
manifest's own checksum, printed at the end, is pinned in iidlib/data/embedded.py.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from iidlib.data import RealSet, load_dataset
from iidlib.data.embedded import from_mosaic

IMAGES = {"train": 400, "test": 100}
TILES_PER_ROW = 20


def to_mosaic(images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, K, S, S] as tiles in reading order, uint8 [N / TILES_PER_ROW * S, TILES_PER_ROW * S, K]."""
    count, channels, size, _ = images.shape
    rows = images.reshape(count // TILES_PER_ROW, TILES_PER_ROW, channels, size, size)
    return rows.transpose(0, 3, 1, 4, 2).reshape(count // TILES_PER_ROW * size, TILES_PER_ROW * size, channels)


def write_split(real: RealSet, split: str, folder: Path) -> dict[str, dict[str, object]]:
    """Writes one mosaic per class and returns their entries in the manifest."""
    entries: dict[str, dict[str, object]] = {}
    (folder / split).mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(real.spec.classes):
        first = real.images[real.of_class(label)[: IMAGES[split]]]
        mosaic = to_mosaic(first.numpy())
        path = folder / split / f"{label}-{name}.webp"
        Image.fromarray(mosaic).save(path, lossless=True, quality=100, method=6)
        with Image.open(path) as written:
            if not from_mosaic(np.asarray(written.convert("RGB")), real.spec.image_size).equal(first):
                raise SystemExit(f"{path} differs from its images when read back")
        entries[f"{split}/{path.name}"] = {
            "split": split,
            "label": label,
            "images": len(first),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "pixels_sha256": hashlib.sha256(mosaic.tobytes()).hexdigest(),
        }
    return entries


def main() -> None:
    """Reads the source and writes the mosaics and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder that contains cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "cifar10-mini")
    arguments = parser.parse_args()

    cifar10 = load_dataset("cifar10", data_root=arguments.source)
    manifest = {
        "name": "cifar10-mini",
        "source": "CIFAR-10, python version (cifar-10-batches-py), https://www.cs.toronto.edu/~kriz/cifar.html",
        "citation": "Alex Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Technical report, "
        "University of Toronto, 2009.",
        "selection": f"train: the first {IMAGES['train']} images of each class in the order of data_batch_1 to "
        f"data_batch_5; test: the first {IMAGES['test']} of each class in the order of test_batch",
        "format": "lossless WebP, RGB; tiles row by row, in the original order",
        "tile_size": cifar10.spec.image_size,
        "tiles_a_row": TILES_PER_ROW,
        "images_a_class": IMAGES,
        "classes": cifar10.spec.classes,
        "checksums": "sha256: of the file; pixels_sha256: of the mosaic's RGB bytes, row by row",
        "files": write_split(cifar10.train, "train", arguments.out) | write_split(cifar10.test, "test", arguments.out),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (arguments.out / "manifest.json").write_text(text, "utf-8")
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 2**20:.2f} MiB, manifest sha256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
