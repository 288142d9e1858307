"""Files from the network, on request only: resumed where a download broke off, checked, unpacked in their folder."""

import tarfile
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from iidlib.data.source import file_checksum
from iidlib.errors import InputError

__all__ = ["fetch", "fetch_archive", "unpack"]

_BLOCK = 1 << 20


def fetch(url: str, target: Path, md5: str | None = None) -> bool:
    """Downloads a file, with a progress bar, unless it is there.

    What has arrived is kept as ``<name>.part``, and asked for no second time.

    Args:
        url: where it is.
        target: where it goes.
        md5: its published checksum; without one nothing can be compared.

    Returns:
        Whether it was downloaded now; False for a file that was there, which may be the user's own.

    Raises:
        InputError: if what arrived has another checksum; it is removed. If the file that is there has another one; it
            stays.
        OSError: if there is no network, or the disk is full; what has arrived stays.
    """
    if target.is_file():
        if md5 is None or (found := file_checksum(target, "md5")) == md5:
            return False
        raise InputError(f"{target} is not what {url} holds (md5 is {found}, not {md5}); move it away and fetch again")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if have and answer.status != 206:  # a server that cannot go on begins anew
                have = 0
            total = int(answer.headers.get("Content-Length") or 0) + have
            bar = tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=target.name)
            with part.open("ab" if have else "wb") as file, bar:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
            if total and part.stat().st_size < total:
                raise OSError(f"the connection broke off after {part.stat().st_size} of {total} bytes; fetch it again")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to ask for
            raise
    if md5 is not None and file_checksum(part, "md5") != md5:
        part.unlink()
        raise InputError(f"{url} arrived damaged (md5 is not {md5}); it was removed: fetch it again")
    if target.is_file():  # somebody has put one there meanwhile, and it is theirs
        fetch(url, target, md5)
        part.unlink()
        return False
    part.replace(target)
    return True


def fetch_archive(url: str, folder: Path, md5: str | None = None) -> None:
    """Downloads an archive into a folder, unless it is there, and unpacks it.

    An archive that was there stays. One that was downloaded is removed once it is unpacked; it stays where that fails.

    Raises:
        InputError: as `fetch` and `unpack` do.
        OSError: if there is no network, or the disk is full.
    """
    archive = folder / url.rsplit("/", 1)[-1]
    downloaded = fetch(url, archive, md5)
    unpack(archive, folder)
    if downloaded:
        archive.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a .zip or .tar.gz into a folder.

    Raises:
        InputError: if it is damaged, or a member would leave the folder; then nothing of it is used.
    """
    root = folder.resolve()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    if not (root / name).resolve().is_relative_to(root):
                        raise InputError(f"{archive} holds {name!r}, which leads out of {folder}; it is not unpacked")
                members.extractall(folder)
        else:
            with tarfile.open(archive) as members:
                members.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive} cannot be unpacked ({error}); remove it and fetch it again") from None
