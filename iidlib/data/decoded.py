"""Cache of decoded images: one file per folder and size, in which every image is identified by its source file.

Reading a folder again decodes only new and changed files, even if the last attempt failed or was interrupted. The cache
is a safetensors file whose metadata identify the images.
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
"""Version of the decoder, increased when it produces different pixels, so that older caches are ignored."""

LONGEST_HEADER = 1 << 28
"""Maximum bytes of a header; a file with a longer one is treated as corrupted."""

logger = logging.getLogger("iidlib")


@dataclass(frozen=True)
class Kept:
    """Cached images of the requested files."""

    found: dict[int, Found | None] = field(default_factory=dict)
    """Values of each cached picture by the file's index, None for 8 bits."""
    scale: Scale = field(default_factory=Scale)
    """Scale of the pictures with more than 8 bits."""


class DecodedImages:
    """The cache of a folder's images at one size."""

    def __init__(self, root: Path, size: int, values: ValueRange | None) -> None:
        """Locates the cache without reading or writing it.

        Args:
            root: the folder.
            size: pixels per side.
            values: values of black and white in pictures of more than 8 bits, if given by the user.
        """
        name = json.dumps([str(root.resolve()), size, values, DECODER])
        key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:24]
        self.path = cache_dir() / "images" / f"{key}.safetensors"
        self._size = size

    def read(self, keys: Sequence[str | None], rows: np.ndarray) -> Kept:
        """Fills in the cached images.

        Args:
            keys: keys of the files, see `file_keys`.
            rows: uint8 [N, 3, size, size], one image per key; may be changed even if nothing is returned.
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
        metadata = header["__metadata__"]
        files, scale = json.loads(metadata["files"]), json.loads(metadata["scale"])
        if header["images"]["shape"] != [len(files), 3, self._size, self._size]:
            raise ValueError("the shape does not match the list of files")
        index_of = {key: index for index, key in enumerate(keys) if key is not None}
        digest = hashlib.sha256((metadata["files"] + metadata["scale"]).encode())
        other, found = np.empty_like(rows[:1]), {}
        for key, *values in files:
            index = index_of.get(key)
            row = (other if index is None else rows[index : index + 1]).reshape(-1).data
            if file.readinto(row) != len(row):
                raise ValueError("too short")
            digest.update(row)
            if index is not None:
                found[index] = Found(*values) if values else None
        if digest.hexdigest() != metadata["sha256"]:
            raise ValueError("the checksum does not match")
        return Kept(found, Scale(*(tuple(values) if values else None for values in scale)))

    def write(
        self, keys: Sequence[str | None], rows: np.ndarray, found: Mapping[int, Found | None], scale: Scale
    ) -> None:
        """Caches the images of the files in `found`, with a warning if the cache cannot be written.

        Args:
            keys: keys of the files.
            rows: uint8 [N, 3, size, size], one image per key.
            found: values of the images to cache, as in `Kept`.
            scale: scale with which images of more than 8 bits were decoded.
        """
        kept = [index for index in sorted(found) if keys[index] is not None]
        files = json.dumps([[keys[index], *(astuple(values) if (values := found[index]) else ())] for index in kept])
        shape = [len(kept), *rows.shape[1:]]
        metadata = {"files": files, "scale": json.dumps(astuple(scale))}

        def header(checksum: str) -> bytes:
            size = int(np.prod(shape, dtype=np.int64))
            tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}
            text = json.dumps({"__metadata__": metadata | {"sha256": checksum}, "images": tensor}).encode()
            text += b" " * (-len(text) % 8)
            return len(text).to_bytes(8, "little") + text

        try:
            # images may be confidential; the permissions of an existing folder are kept
            make_folders(self.path.parent, private=True)
            remove_stale(self.path)
            with replaced(self.path, private=True) as file:  # written row by row, to avoid a copy of all images
                digest = hashlib.sha256((files + metadata["scale"]).encode())
                file.write(header(digest.hexdigest()))
                for index in kept:
                    row = rows[index].reshape(-1).data
                    digest.update(row)
                    file.write(row)
                file.seek(0)
                file.write(header(digest.hexdigest()))  # has the same length
        except OSError as error:
            logger.warning("cannot keep the decoded images in %s (%s)", self.path.parent, error.strerror or error)


def file_keys(root: Path, paths: Sequence[Path]) -> list[str | None]:
    """Returns keys of the files' current versions, from relative path, size and time; None for inaccessible files."""
    keys: list[str | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # a broken link, which decoding reports
            keys.append(None)
            continue
        text = f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}"
        keys.append(hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:20])
    return keys
