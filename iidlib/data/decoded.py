"""Decoded images, kept: one file for each folder and size, in which every image goes by the file that it was made from.

Whoever reads a folder again decodes only what is new or changed in it, also when the last attempt failed or was
stopped halfway. What is kept is a safetensors file, whose metadata say which image is whose.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np

from iidlib.data.depth import Found, Scale, ValueRange
from iidlib.files import cache_dir, make_folders, remove_stale, replaced

__all__ = ["DecodedImages", "Kept", "file_keys"]

DECODER = 2
"""Goes up when the same file is decoded to other pixels than before, so that what was kept is not used."""

LONGEST_HEADER = 1 << 28
"""Bytes of a header at most; a file that says more is taken for corrupted."""

logger = logging.getLogger("iidlib")


@dataclass(frozen=True)
class Kept:
    """What was found in the cache for the files that were asked for."""

    found: dict[int, Found | None] = field(default_factory=dict)
    """By the place of a file among them: its values where it has more than 8 bits."""
    scale: Scale = field(default_factory=Scale)
    """What is black and white in those."""


class DecodedImages:
    """The cache of a folder's images at one size."""

    def __init__(self, root: Path, size: int, values: ValueRange | None) -> None:
        """Nothing is read or written yet.

        Args:
            root: the folder.
            size: pixels a side.
            values: what is black and white in pictures of more than 8 bits, where the user says so.
        """
        name = json.dumps([str(root.resolve()), size, values, DECODER])
        key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:24]
        self.path = cache_dir() / "images" / f"{key}.safetensors"
        self._size = size

    def read(self, keys: Sequence[str | None], rows: np.ndarray) -> Kept:
        """Fills in the images that are kept.

        Args:
            keys: of the files, as `file_keys` gives them.
            rows: uint8 [N, 3, size, size], an image for each key; changed also where nothing is returned.
        """
        try:
            with self.path.open("rb") as file:
                return self._read(file, keys, rows)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("%s cannot be read (%s); the images are decoded again", self.path, error.strerror or error)
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
            logger.warning("%s is corrupted; the images are decoded again", self.path)
        return Kept()

    def _read(self, file, keys: Sequence[str | None], rows: np.ndarray) -> Kept:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
        facts = header["__metadata__"]
        files, scale = json.loads(facts["files"]), json.loads(facts["scale"])
        if header["images"]["shape"] != [len(files), 3, self._size, self._size]:
            raise ValueError("another shape than the list of files says")
        place_of = {key: place for place, key in enumerate(keys) if key is not None}
        digest, other, found = hashlib.sha256((facts["files"] + facts["scale"]).encode()), np.empty_like(rows[:1]), {}
        for key, *values in files:
            place = place_of.get(key)
            row = (other if place is None else rows[place : place + 1]).reshape(-1).data
            if file.readinto(row) != len(row):
                raise ValueError("too short")
            digest.update(row)
            if place is not None:
                found[place] = Found(*values) if values else None
        if digest.hexdigest() != facts["sha256"]:
            raise ValueError("another checksum")
        return Kept(found, Scale(*(tuple(values) if values else None for values in scale)))

    def write(
        self, keys: Sequence[str | None], rows: np.ndarray, found: Mapping[int, Found | None], scale: Scale
    ) -> None:
        """Keeps the images of the files in `found`; a cache that cannot be written is a warning.

        Args:
            keys: of the files.
            rows: uint8 [N, 3, size, size], an image for each key.
            found: as in `Kept`, for the images that are to be kept.
            scale: that images of more than 8 bits were decoded with.
        """
        kept = [place for place in sorted(found) if keys[place] is not None]
        files = json.dumps([[keys[place], *(astuple(values) if (values := found[place]) else ())] for place in kept])
        shape = [len(kept), *rows.shape[1:]]
        facts = {"files": files, "scale": json.dumps(astuple(scale))}

        def header(checksum: str) -> bytes:
            size = int(np.prod(shape, dtype=np.int64))
            tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}
            text = json.dumps({"__metadata__": facts | {"sha256": checksum}, "images": tensor}).encode()
            text += b" " * (-len(text) % 8)
            return len(text).to_bytes(8, "little") + text

        try:
            # what is decoded may be nobody else's business; a folder that is there stays as its owner wants it
            make_folders(self.path.parent, private=True)
            remove_stale(self.path)
            with replaced(self.path, private=True) as file:  # the images are never all in memory twice
                digest = hashlib.sha256((files + facts["scale"]).encode())
                file.write(header(digest.hexdigest()))
                for place in kept:
                    row = rows[place].reshape(-1).data
                    digest.update(row)
                    file.write(row)
                file.seek(0)
                file.write(header(digest.hexdigest()))  # of the same length
        except OSError as error:
            logger.warning("cannot keep the decoded images in %s (%s)", self.path.parent, error.strerror or error)


def file_keys(root: Path, paths: Sequence[Path]) -> list[str | None]:
    """Names files as they are now, by relative path, length and time; None for one that cannot be looked at."""
    keys: list[str | None] = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError:  # a link that leads nowhere; decoding says so
            keys.append(None)
            continue
        text = f"{path.relative_to(root)}\0{facts.st_size}\0{facts.st_mtime_ns}"
        keys.append(hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:20])
    return keys
