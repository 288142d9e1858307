"""Downloads, only on request: resumed after an interruption, and verified."""

import contextlib
import http.client
import posixpath
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from iidlib.bars import bar
from iidlib.data.source import Remote, file_checksum
from iidlib.errors import InputError
from iidlib.files import user_path

__all__ = ["fetch", "from_mirror"]

_BLOCK = 1 << 20

_SCHEMES = ("http", "https", "file")

_ENDINGS = (".zip", ".tar.gz", ".tgz", ".tar", ".gz", ".mat")
"""Endings that distinguish the address of a file from that of a folder."""


def from_mirror(remotes: Sequence[Remote], mirror: str) -> tuple[Remote, ...]:
    """Returns the files of a dataset at another address, with the same checksums.

    Args:
        remotes: the files.
        mirror: http(s) or file address of the folder that holds them, or of one of them. A file with another name is
            accepted for a dataset that is a single file.

    Raises:
        InputError: for another kind of address, or for the address of a single file if there are several.
    """
    mirror, names = mirror.strip(), ", ".join(remote.name for remote in remotes)
    wrong = f"--mirror takes an http://, https:// or file:// address, got {mirror!r}"
    try:
        parts = urlsplit(mirror)
    except ValueError as error:
        raise InputError(f"{wrong} ({error})") from None
    if parts.scheme not in _SCHEMES or not (parts.path if parts.scheme == "file" else parts.netloc):
        instead, local = "", user_path(mirror)
        with contextlib.suppress(OSError, ValueError):  # not a path either
            instead = f"; did you mean {local.resolve().as_uri()}?" if mirror and local.exists() else ""
        raise InputError(wrong + instead)
    if "@" in parts.netloc:
        raise InputError(
            f"--mirror takes an address without user name and password; download {names} by other means and put it "
            "into the data root"
        )
    last = unquote(posixpath.basename(parts.path))
    if last in {remote.name for remote in remotes}:
        base = mirror[: mirror.rindex("/") + 1] if not parts.query else None
    elif parts.query or last.endswith(_ENDINGS):
        base = None
    else:
        base = mirror.rstrip("/") + "/"
    if base is not None:
        return tuple(replace(remote, url=base + remote.name) for remote in remotes)
    if len(remotes) > 1:
        raise InputError(
            f"--mirror must be the address of the folder that holds {names}, since there are {len(remotes)} files, "
            f"got {mirror!r}"
        )
    return (replace(remotes[0], url=mirror),)


def fetch(url: str, target: Path, md5: str | None = None, *, most: int | None = None) -> bool:
    """Downloads a file, with a progress bar, unless it exists.

    Partial downloads are kept as ``<name>.part`` next to the target and resumed. The target must therefore be in a
    private folder, where no file of that name can belong to the user.

    Args:
        url: address of the file.
        target: path of the downloaded file.
        md5: published checksum; without one, the file is not verified.
        most: maximum number of bytes, if the size is known.

    Returns:
        Whether it was downloaded now; False for an existing file, which may belong to the user.

    Raises:
        InputError: if the download has another checksum or is too large (it is removed), or if the existing file has
            another checksum (it is kept).
        OSError: if there is no network, or the disk is full; the partial download is kept.
    """
    if target.is_file():
        if md5 is None or (found := file_checksum(target, "md5")) == md5:
            return False
        raise InputError(f"{target} does not match {url} (md5 is {found}, not {md5}); move it away and fetch again")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _receive(url, part, target.name, most)
    except (http.client.HTTPException, ValueError) as error:  # the answer is not HTTP, or the address is invalid
        if isinstance(error, InputError):
            raise
        raise OSError(f"{url}: {error or type(error).__name__}") from None
    if md5 is not None and file_checksum(part, "md5") != md5:
        part.unlink()
        raise InputError(f"{url} arrived corrupted (md5 is not {md5}); it was removed: fetch it again")
    if target.is_file():  # created by somebody else meanwhile, and so not ours to replace
        fetch(url, target, md5)
        part.unlink()
        return False
    part.replace(target)
    return True


def _receive(url: str, part: Path, name: str, most: int | None) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if have and answer.status != 206:  # a server that cannot resume starts from the beginning
                have = 0
            total = int(answer.headers.get("Content-Length") or 0) + have
            with part.open("ab" if have else "wb") as file, bar(name, total or None, "B", done=have) as progress:
                size = have
                while (most is None or max(size, total) <= most) and (block := answer.read(_BLOCK)):
                    file.write(block)
                    size += len(block)
                    progress.advance(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: nothing is left to download
            raise
        return
    if most is not None and max(size, total) > most:
        part.unlink()
        raise InputError(f"{url} is larger than {most:,} bytes, the maximum for {name}; it was removed")
    if total and size < total:
        raise OSError(f"the connection broke off after {size} of {total} bytes; fetch it again")
