"""Safe unpacking of archives: no more than the known size of the dataset, and only files inside the target folder."""

import errno
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from iidlib.errors import InputError

__all__ = ["unpack"]


_OF_THE_ARCHIVE = (None, errno.EINVAL, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
"""System errors caused by the archive: a corrupted stream or offset, or a repeated name."""


class _Refused(Exception):
    """Reason why an archive is not unpacked."""


def unpack(archive: Path, folder: Path, *, most_bytes: int, most_members: int) -> None:
    """Unpacks a .zip or .tar.gz into a folder.

    Args:
        archive: the file.
        folder: folder for the members, which should be new because existing files are overwritten.
        most_bytes: maximum size of all members together.
        most_members: maximum number of files and folders.

    Raises:
        InputError: if it is corrupted or encrypted; if a member would be written outside the folder, or is a link or a
            device; or if it exceeds a maximum. Earlier members may be in the folder then.
        OSError: if the disk is full, or the folder cannot be written.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder, most_bytes, most_members)
        else:
            _untar(archive, folder, most_bytes, most_members)
    except _Refused as error:
        raise InputError(f"{archive} cannot be unpacked: it {error}") from None
    # corrupted and hostile archives make the readers raise all of these; RuntimeError and NotImplementedError come
    # from zipfile for unknown compression methods
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError,
        LookupError, ArithmeticError, MemoryError, struct.error, OSError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno not in _OF_THE_ARCHIVE:
            raise
        raise InputError(f"{archive} cannot be unpacked ({error or type(error).__name__})") from None


def _unzip(archive: Path, folder: Path, most_bytes: int, most_members: int) -> None:
    with zipfile.ZipFile(archive) as members:
        found = members.infolist()
        if len(found) > most_members:
            raise _Refused(f"has {len(found):,} members, more than the expected maximum of {most_members:,}")
        if (total := sum(member.file_size for member in found)) > most_bytes:
            raise _Refused(f"unpacks to {total:,} bytes, more than the expected maximum of {most_bytes:,}")
        for member in found:
            _check_name(member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Refused(f"holds {member.filename!r}, which is a link or a device")
            if member.flag_bits & 1:
                raise _Refused("is encrypted")
        for member in found:
            members.extract(member, folder)  # writes no more than the size summed above


def _untar(archive: Path, folder: Path, most_bytes: int, most_members: int) -> None:
    with archive.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        content: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
        # read as a bounded stream, since the header of a member may announce any length
        bounded = _Bounded(content, most_bytes + 2048 * most_members + (1 << 16))
        count = total = 0
        with tarfile.open(fileobj=bounded, mode="r|") as members:
            for member in members:
                count, total = count + 1, total + member.size
                if count > most_members:
                    raise _Refused(f"has more than {most_members:,} members, the expected maximum")
                if total > most_bytes:
                    raise _Refused(f"unpacks to more than {most_bytes:,} bytes, the expected maximum")
                _check_name(member.name)
                if not (member.isreg() or member.isdir()):
                    raise _Refused(f"holds {member.name!r}, which is a link or a device")
                members.extract(member, folder, filter="data")


def _check_name(name: str) -> None:
    path = name.replace("\\", "/")
    if path.startswith("/") or ".." in PurePosixPath(path).parts or re.match("[A-Za-z]:", path) or "\0" in path:
        raise _Refused(f"holds {name!r}, which leads out of its folder")


class _Bounded(io.RawIOBase):
    """A stream that raises after a maximum number of bytes."""

    def __init__(self, content: IO[bytes], most: int) -> None:
        self._content, self._left, self._most = content, most, most

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes."""
        block = self._content.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(block)
        if self._left < 0:
            raise _Refused(f"unpacks to more than {self._most:,} bytes, the expected maximum")
        return block
