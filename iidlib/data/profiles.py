"""Colour profiles that cameras, screens and scanners write into image files, converted to sRGB.

A photograph in Display P3 or AdobeRGB holds other numbers than sRGB for the same colour. Networks see numbers, so that
a dataset with both would show them two kinds of red.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

__all__ = ["UnusableProfileError", "in_srgb"]

ALIKE = 3
"""Steps of 255 that a profile may move a colour by and still count as sRGB, of which there are many tellings."""

_KEPT = 64
"""Profiles whose conversion is kept; a dataset's files tend to have few."""


class UnusableProfileError(ValueError):
    """A profile that is damaged or is one for other channels than the picture has."""


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """A picture's colours as sRGB.

    Args:
        picture: of mode L, RGB or CMYK.
        profile: the ICC profile that its file holds.

    Returns:
        A picture of mode RGB, or `picture` itself where its profile is sRGB.

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
    """From a profile to sRGB; None where both are the same, so that rounding changes nothing then."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        exactly = (
            ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        )  # else dark greys are some steps off
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=exactly)
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
    """Colours from all over a space; None for inks, which have no own tones that could be the same."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3))
    return None
