"""Decoding of image files of any format and size to one array of small square images, on all cores and with a cache.

Unreadable files are reported together. The readable ones are cached even then, so that the next attempt is fast.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from iidlib.bars import bar
from iidlib.cores import available_cores
from iidlib.data.decoded import DecodedImages, file_keys
from iidlib.data.depth import Found, Scale, ValueRange
from iidlib.data.pictures import read_picture
from iidlib.data.pillow_settings import quiet
from iidlib.errors import InputError, listed
from iidlib.notes import log_once

__all__ = ["DecodedFiles", "decode_all", "decode_files", "decode_whole"]

BLOCK = 16
"""Files per task of a thread."""

MOST_THREADS = 16
"""Maximum number of threads: more would wait for the disk, or for each other."""

DARK = 64
"""Upper bound, out of 255, of colours with 14 bits in a file with 16 bits per channel."""


@dataclass(frozen=True)
class DecodedFiles:
    """Images decoded from a list of files."""

    images: Tensor
    """uint8 [N, 3, size, size]; undefined for unreadable files."""
    unreadable: dict[Path, str]
    """Files that cannot be read, in order, with a short reason."""
    scale: Scale = field(default_factory=Scale)
    """Values of black and white in the pictures of more than 8 bits."""


def decode_all(name: str, root: Path, paths: Sequence[Path], size: int, *, values: ValueRange | None = None) -> Tensor:
    """Decodes image files to uint8 [N, 3, size, size], or reads them from the cache.

    Arguments and errors are those of `decode_whole`.
    """
    return decode_whole(name, root, paths, size, values=values).images


def decode_whole(
    name: str, root: Path, paths: Sequence[Path], size: int, *, values: ValueRange | None = None
) -> DecodedFiles:
    """Decodes image files, all of which must be readable.

    Arguments are those of `decode_files`.

    Raises:
        InputError: listing the files that cannot be read, the first three with the reason.
    """
    decoded = decode_files(name, root, paths, size, values=values)
    if unreadable := [f"{path.relative_to(root)} ({reason})" for path, reason in decoded.unreadable.items()]:
        raise InputError(
            f"{name}: {len(unreadable)} of {len(paths)} images in {root} cannot be read: {listed(unreadable, 3)}; "
            "replace or remove them"
        )
    return decoded


def decode_files(
    name: str, root: Path, paths: Sequence[Path], size: int, *, values: ValueRange | None = None
) -> DecodedFiles:
    """Decodes image files to one array and lists those that cannot be read; uses the cache in ``IID_CACHE``.

    Pass all files of a dataset in one call, for training and for testing: pictures of more than 8 bits share one scale,
    which depends on the values of all of them.

    Args:
        name: name of the dataset, for messages and progress bars.
        root: folder to which paths in messages are relative.
        paths: the files.
        size: pixels per side.
        values: values of black and white in pictures of more than 8 bits.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    work = _Work(name, root, paths, size, images)
    keys, cache = file_keys(root, paths), DecodedImages(root, size, values)
    kept = cache.read(keys, work.rows)
    work.done = dict(kept.found)
    new = [index for index in range(len(paths)) if index not in work.done]
    given = Scale(values, values) if values else None
    scale, redone = given or kept.scale, False
    try:
        with quiet():
            work.read(new, f"decoding {name}", given)
            # pictures of more than 8 bits wait until the values of all are known, unless the user gave a range
            deep = {index: found for index, found in (work.done | work.waiting).items() if found is not None}
            scale = given or Scale.of(list(deep.values()))
            # cached pictures may have been decoded with another scale
            other = [index for index in deep if index in kept.found] if scale != kept.scale else []
            redone, stale = bool(other), sorted({*work.waiting, *other})
            for index in stale:
                work.done.pop(index, None)
            work.read(stale, f"decoding {name}, more than 8 bits", scale)
    finally:  # keeps images decoded before an error or an interruption
        if work.done and (redone or work.done != kept.found):
            cache.write(keys, work.rows, work.done, scale)
    work.report(deep, values)
    unreadable = {paths[index]: work.unreadable[index] for index in sorted(work.unreadable)}
    return DecodedFiles(images, unreadable, Scale.of(list(deep.values()), values))


class _Work:
    """Image files being decoded, and the results so far."""

    def __init__(self, name: str, root: Path, paths: Sequence[Path], size: int, images: Tensor) -> None:
        self._name, self._root, self._paths, self._size = name, root, paths, size
        self.rows = images.numpy()
        self.done: dict[int, Found | None] = {}
        self.waiting: dict[int, Found | None] = {}  # more than 8 bits, with known values but no pixels yet
        self.unreadable: dict[int, str] = {}
        self._profiles: dict[int, str] = {}
        self._brightest: dict[int, int] = {}

    def read(self, indices: Sequence[int], title: str, scale: Scale | None) -> None:
        """Decodes files in parallel threads, since Pillow releases the GIL."""
        if not indices:
            return
        # smaller blocks for few pictures, which may be large, so that all threads have work
        step = min(BLOCK, 1 + len(indices) // (4 * _decoding_threads()))
        blocks = [indices[start : start + step] for start in range(0, len(indices), step)]
        with bar(title, len(indices), "image") as progress, ThreadPoolExecutor(_decoding_threads()) as pool:
            try:
                for done in as_completed([pool.submit(self._block, block, scale) for block in blocks]):
                    progress.advance(done.result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _block(self, indices: Sequence[int], scale: Scale | None) -> int:
        for index in indices:
            try:
                picture = read_picture(self._paths[index], self._size, scale)
            except ValueError as error:
                self.unreadable[index] = str(error)
                continue
            if picture.profile:
                self._profiles[index] = picture.profile
            if picture.brightest is not None:
                self._brightest[index] = picture.brightest
            if picture.pixels is None:
                self.waiting[index] = picture.found
            else:
                self.rows[index] = picture.pixels.transpose(2, 0, 1)
                self.done[index] = picture.found
        return len(indices)

    def report(self, deep: dict[int, Found], values: ValueRange | None) -> None:
        """Logs the decisions about colours and depth."""
        if self._profiles:
            first = min(self._profiles)
            log_once(
                logging.WARNING,
                f"{self._name}: the colour profiles of {len(self._profiles)} images cannot be used, so their colours "
                f"are read as sRGB; the first is {self._paths[first].relative_to(self._root)} "
                f"({self._profiles[first]})",
            )
        if 0 < len(self._brightest) == len(self._paths) and (top := max(self._brightest.values())) < DARK:
            log_once(
                logging.WARNING,
                f"{self._name}: all images are nearly black: they use {8 + top.bit_length()} of 16 bits per channel, "
                "of which only the upper 8 are read; save them with 8 bits per channel",
            )
        if deep:
            scale = Scale.of(list(deep.values()), values)
            low, high = min(one.low for one in deep.values()), max(one.high for one in deep.values())
            rest = len(self._paths) - len(deep) - len(self.unreadable)
            log_once(
                logging.INFO,
                f"{self._name}: {len(deep)} images have more than 8 bits and values from {low:.9g} to {high:.9g}, of "
                f"which {scale}"
                + (f"; the other {rest} have 8 bits, 0 to 255" if rest else "")
                + (
                    ""
                    if values
                    else f"; if this is wrong, give the values in the dataset's name, as in range={_example(scale)}"
                ),
            )
        elif values:
            log_once(logging.WARNING, f"{self._name}: no image has more than 8 bits, so range= has no effect")


def _example(scale: Scale) -> str:
    low, high = scale.whole or scale.floating or (0.0, 4095.0)
    return f"{low:.9g},{high:.9g}"


def _decoding_threads() -> int:
    """Returns the number of threads for decoding: limited by torch's threads, the process's cores and a maximum."""
    return max(1, min(available_cores(), torch.get_num_threads(), MOST_THREADS))
