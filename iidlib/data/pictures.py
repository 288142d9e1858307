"""Decoding of an image file to the picture that a person sees, small and square: colours, depth, transparency.

Every file becomes RGB with 8 bits per channel: the first frame of an animation or the first page of a document, rotated
by its EXIF orientation, converted to sRGB if it has a colour profile, composited on white if it is transparent, and
resized so that the shorter side fits, with the centre kept.
"""

import contextlib
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from iidlib.data.depth import Found, Scale, ValueRange, rows_of, to_bytes, wide
from iidlib.data.pillow_settings import quiet
from iidlib.data.profiles import UnusableProfileError, in_srgb
from iidlib.errors import one_line

__all__ = ["LARGEST", "Picture", "decode", "read_picture"]

FEW_WORDS = 80
"""Maximum characters of the reason why a picture cannot be read."""

LARGEST = 50_000_000
"""Maximum pixels of a picture: a small file can decode to a picture that fills the memory."""

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
"""TIFF tag of the photometric interpretation, and its value if 0 is white."""

_TIFF, _PROFILE = 42, 34675
"""Magic number of TIFF files after the byte order mark, and the tag of their colour profile."""

_SAMPLE_FORMAT, _UNSIGNED = 339, 1
"""TIFF tag of the sample format, and its value for unsigned numbers, which is the default."""


@dataclass(frozen=True)
class Picture:
    """A decoded image file."""

    pixels: np.ndarray | None
    """uint8 [size, size, 3]; None for a picture of more than 8 bits that was read without a scale."""
    found: Found | None = None
    """Range of its values, if it has more than 8 bits."""
    profile: str = ""
    """Reason why its colour profile was ignored, if it was."""
    brightest: int | None = None
    """Largest value read from a file with 16 bits in each of several channels, of which Pillow reads the upper 8."""


def decode(path: Path, size: int, values: ValueRange | None = None) -> Tensor:
    """Decodes an image file to uint8 [3, size, size].

    Args:
        path: path of the file.
        size: pixels per side.
        values: values of black and white in a picture of more than 8 bits; derived from this picture alone by default.

    Raises:
        ValueError: with a short reason why it cannot be read.
    """
    with quiet():
        picture = read_picture(path, size)
        if picture.found is not None:
            picture = read_picture(path, size, Scale.of([picture.found], values))
    return torch.from_numpy(np.array(picture.pixels)).permute(2, 0, 1)


def read_picture(path: Path, size: int, scale: Scale | None = None) -> Picture:
    """Reads an image file inside a `quiet` block; thread-safe.

    Args:
        path: path of the file.
        size: pixels per side.
        scale: values of black and white in a picture of more than 8 bits; without it only the range of its values is
            determined.

    Raises:
        ValueError: with a short reason why it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _RefusedError("not a regular file")
        # opened here, because Pillow maps a file given by name, and truncating a mapped file kills the process
        with path.open("rb") as file:
            picture = Image.open(file)
            pixels = picture.width * picture.height
            if pixels > LARGEST:
                raise _RefusedError(f"{picture.width} x {picture.height} pixels are too many")
            if picture.format == "PNG":
                picture.verify()  # compares the checksums, which reading the pixels does not
                file.seek(0)
                picture = Image.open(file)
            if picture.format == "TIFF" and "icc_profile" not in picture.info and _lists_profile(file):
                raise _RefusedError("truncated")  # Pillow ignores a profile beyond the end of the file
            with _room.for_pixels(pixels):
                return _shown(picture, size, scale)
    except _RefusedError:
        raise
    except UnidentifiedImageError:
        raise _RefusedError(_unknown(path)) from None
    except Image.DecompressionBombError:
        raise _RefusedError("its pixels are too many") from None
    except MemoryError:
        raise _RefusedError("too large for the memory") from None
    except Exception as error:  # corrupted files make decoders raise anything
        if isinstance(error, OSError) and error.strerror:
            raise _RefusedError(one_line(error.strerror, FEW_WORDS)) from None
        text = one_line(error, FEW_WORDS)
        known = [reason for sign, reason in _KNOWN.items() if sign in text.lower()]
        raise _RefusedError(known[0] if known else f"corrupted: {text or type(error).__name__}") from None


class _RefusedError(ValueError):
    """Reason why a file cannot be read, in the wording of this module."""


_KNOWN = {
    "truncated": "truncated",
    "checksum": "corrupted: a checksum differs",
}
"""Replacements for Pillow's messages, by a part of them."""


def _unknown(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(4) in (b"II*\0", b"MM\0*"):
            return "a TIFF that is corrupted or of an unsupported kind, such as floats in three channels"
    return "not an image"


def _lists_profile(file: BinaryIO) -> bool:
    """Whether the first directory of a TIFF names a colour profile."""
    place = file.tell()
    file.seek(0)
    head = file.read(8)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"

    def number(content: bytes) -> int:
        return int.from_bytes(content, order)

    entries = b""
    if number(head[2:4]) == _TIFF:
        file.seek(number(head[4:]))
        entries = file.read(12 * number(file.read(2)))
    file.seek(place)
    return _PROFILE in (number(entries[start : start + 2]) for start in range(0, len(entries), 12))


class _Room:
    """Limits the pictures that threads decode at the same time to a total of `LARGEST` pixels."""

    def __init__(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def for_pixels(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._taken + pixels <= LARGEST)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_room = _Room()


def _shown(picture: Image.Image, size: int, scale: Scale | None) -> Picture:
    """Returns an open picture as it is seen."""
    tags = getattr(picture, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    unsigned = bool(tags) and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
    halved = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    picture.load()
    with contextlib.suppress(Exception):  # an unreadable orientation does not make the picture unreadable
        ImageOps.exif_transpose(picture, in_place=True)
    if wide(picture.mode):
        found, seen = _deep(picture, scale, inverted, unsigned)
        return Picture(_fitted(seen, size) if seen else None, found)
    seen, problem = _in_colour(picture)
    brightest = int(np.asarray(picture)[..., :3].max()) if halved and len(picture.getbands()) > 1 else None
    return Picture(_fitted(seen, size), None, problem, brightest)


def _fitted(picture: Image.Image, size: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR))


def _deep(
    picture: Image.Image, scale: Scale | None, inverted: bool = False, unsigned: bool = False
) -> tuple[Found, Image.Image | None]:
    """Returns the range of values of a picture with one channel, and the picture as it is seen."""
    values = np.asarray(picture)
    if unsigned and values.dtype == np.int32:  # Pillow's type for all 32-bit numbers
        values = values.view(np.uint32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _RefusedError("has NaN values" if np.isnan(low + high) and _any_nan(values) else "has infinite values")
    found = Found(picture.mode == "F", low, high)
    if scale is None:
        return found, None
    shown = to_bytes(values, scale.range_for(found))
    if inverted:  # Pillow inverts only 8 bits
        np.subtract(255, shown, out=shown)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        shown[values == transparent] = 255  # white background
    return found, Image.fromarray(shown).convert("RGB")


def _any_nan(values: np.ndarray) -> bool:
    return any(bool(np.isnan(values[rows]).any()) for rows in rows_of(values))


def _in_colour(picture: Image.Image) -> tuple[Image.Image, str]:
    """Returns a picture of 8 bits per channel as RGB, and the problem with its colour profile, if any."""
    if picture.mode in ("La", "RGBa"):  # premultiplied alpha
        picture = picture.convert(picture.mode.upper())
    profile, problem = picture.info.get("icc_profile"), ""
    transparent = "A" in picture.getbands() or "transparency" in picture.info
    above = picture.convert("RGBA") if transparent else None
    flat = picture if above is None else above.convert("RGB")
    if profile and picture.mode != "LAB":  # LAB is device-independent
        if picture.mode in ("1", "L", "LA"):
            flat = picture.convert("L")
        elif picture.mode != "CMYK":
            flat = flat.convert("RGB")
        try:
            flat = in_srgb(flat, profile)
        except UnusableProfileError as error:
            problem = one_line(error, FEW_WORDS) or "unusable"
    flat = flat if flat.mode == "RGB" else flat.convert("RGB")
    if above is None:
        return flat, problem
    flat = flat.convert("RGBA")
    flat.putalpha(above.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", flat.size, "white"), flat).convert("RGB"), problem
