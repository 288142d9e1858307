"""Conversion to sRGB of the colour profiles that cameras, screens and scanners write into image files.

A photograph in Display P3 or AdobeRGB holds other numbers than one in sRGB for the same colour. Networks only see
numbers, so a dataset with both would show them two kinds of red.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

__all__ = ["UnusableProfileError", "in_srgb"]

ALIKE = 3
"""Maximum change of a colour, out of 255, by a profile that counts as sRGB, of which many variants exist."""

_KEPT = 64
"""Number of profiles whose conversion is cached; the files of a dataset usually have few."""


class UnusableProfileError(ValueError):
    """Raised for a profile that is corrupted or does not fit the picture's channels."""


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Converts a picture's colours to sRGB.

    Args:
        picture: picture of mode L, RGB or CMYK.
        profile: ICC profile in its file.

    Returns:
        A picture of mode RGB, or `picture` itself if its profile is sRGB.

    Raises:
        UnusableProfileError: if the profile cannot be used for this picture.
    """
    space = _space(profile)
    if space == "RGB" and picture.mode == "L":
        picture = picture.convert("RGB")
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != picture.mode:
        raise UnusableProfileError(f"a profile for {space} in a picture of mode {picture.mode}")
    transform = _transform(profile, picture.mode)
    return picture if transform is None else _applied(transform, picture)


@functools.lru_cache(_KEPT)
def _space(profile: bytes) -> str:
    try:
        return str(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space).strip()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
        raise UnusableProfileError(str(error)) from None


@functools.lru_cache(_KEPT)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion from a profile to sRGB, or None if they are the same, to avoid changes by rounding."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # with optimization, dark greys are some steps off
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
        probe = _probe(mode)
        if probe is None:
            return transform
        moved = np.asarray(_applied(transform, probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
        raise UnusableProfileError(str(error)) from None
    return transform if np.abs(moved).max() > ALIKE else None


def _applied(transform: ImageCms.ImageCmsTransform, picture: Image.Image) -> Image.Image:
    return transform.apply(picture)


def _probe(mode: str) -> Image.Image | None:
    """Returns colours from the whole space, or None for inks, which cannot be compared with sRGB."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3))
    return None
