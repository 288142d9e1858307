"""Image files of any kind and size as one array of small square images, decoded once and kept.

A file is opened only if its picture has a bearable size, is turned the way it was taken, laid on white where it is
transparent, and resized so that the shorter side fits; the middle is kept. What cannot be read is reported together.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor
from tqdm import tqdm

from iidlib.errors import InputError
from iidlib.files import atomic_write, cache_dir

__all__ = ["LARGEST", "decode", "decode_all"]

LARGEST = 50_000_000
"""Pixels of a picture at most: a small file can stand for a picture that fills the memory."""

logger = logging.getLogger("iidlib")


def decode(path: Path, size: int) -> Tensor:
    """An image file as uint8 [3, size, size].

    Raises:
        ValueError: saying in few words why it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > LARGEST:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return _tensor(ImageOps.fit(_rgb(upright), (size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("its pixels are too many") from None
    # whatever a damaged file makes of a decoder
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, MemoryError, ArithmeticError) as error:
        raise ValueError(" ".join(str(error).split())[:80] or type(error).__name__) from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits and more, which `convert` would cut off
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        above = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return picture.convert("RGB")


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def decode_all(name: str, root: Path, paths: Sequence[Path], size: int, *, keep: bool = True) -> Tensor:
    """Image files as uint8 [N, 3, size, size], from the cache where they have been decoded before.

    Args:
        name: of the data set, for messages and the progress bar.
        root: the folder that the files are told relative to.
        paths: the files.
        size: pixels a side.
        keep: write what was decoded to the cache (``IID_CACHE``), with a checksum.

    Raises:
        InputError: listing the files that cannot be read, the first three with the reason.
    """
    kept = cache_dir() / "images" / f"{_key(root, paths, size)}.safetensors"
    if (found := _read_kept(kept, len(paths), size)) is not None:
        return found
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    damaged: list[str] = []
    # a bar on a terminal only
    for number, path in enumerate(tqdm(paths, desc=f"decoding {name}", unit="image", disable=None)):
        try:
            images[number] = decode(path, size)
        except ValueError as error:
            damaged.append(f"{path.relative_to(root)} ({error})")
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise InputError(
            f"{name}: {len(damaged)} of {len(paths)} images in {root} cannot be read: {', '.join(damaged[:3])}{more}; "
            "replace or remove them"
        )
    if keep:
        _write_kept(kept, images)
    return images


def _key(root: Path, paths: Sequence[Path], size: int) -> str:
    """Names the files as they are now: relative path, length and time of each."""
    digest = hashlib.sha256(str(size).encode())
    for path in paths:
        try:
            facts = path.stat()
        except OSError:  # a link that leads nowhere; decoding says so
            continue
        digest.update(
            f"{path.relative_to(root)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:24]


def _read_kept(path: Path, count: int, size: int) -> Tensor | None:
    try:
        content, known = path.read_bytes(), path.with_suffix(".sha256").read_text(encoding="utf-8").strip()
        if hashlib.sha256(content).hexdigest() == known:
            images = from_bytes(content)["images"]
            if images.shape == (count, 3, size, size):
                return images
        logger.warning("%s is damaged; the images are decoded again", path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError, ValueError):
        logger.warning("%s is damaged; the images are decoded again", path)
    return None


def _write_kept(path: Path, images: Tensor) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = to_bytes({"images": images})
        atomic_write(path, content)
        atomic_write(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest() + "\n")
    except OSError as error:
        logger.warning("cannot keep the decoded images in %s (%s)", path.parent, error.strerror or error)
