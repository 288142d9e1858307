"""Installation of datasets into a data root: fetched or unpacked from a local archive, verified, and then moved there.

All work is done in a private folder next to the dataset, ``.iidlib-fetch-NAME``. An interrupted download leaves its
files there, complete or not; the next one resumes from them, and they are removed when the dataset is complete. Files
of the user are never overwritten or removed, whether an archive placed in the data root or the contents of the
dataset's folder, unless that folder was created here (it then contains ``.iidlib-fetched``).
"""

import contextlib
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iidlib.data.archives import unpack
from iidlib.data.download import fetch, from_mirror
from iidlib.data.source import PathLike, Remote, Source, file_checksum, in_the_way
from iidlib.errors import InputError, listed
from iidlib.files import make_folders, remove_empty
from iidlib.locks import locked

__all__ = ["install"]

MARK = ".iidlib-fetched"

_SLACK = 2
"""Factor by which a download may exceed the known size: mirrors pack the same files in other ways."""


def install(source: Source, data_root: PathLike | None = None, *, mirror: str | None = None) -> None:
    """Fetches missing files of a dataset into the data root, unless it is complete.

    Args:
        source: the dataset.
        data_root: folder for the dataset's folder; ``IID_DATA`` by default.
        mirror: another address to fetch from, see `download.from_mirror`; the checksums stay the same.

    Raises:
        InputError: if no data root is given, the dataset cannot be fetched, or the fetched files are not the dataset;
            if a file of the user is in the way; if the disk has too little space; if another process is fetching it.
    """
    if source.remotes is None:
        if mirror is not None:
            raise InputError(f"{source.name} comes with iidlib; there is nothing to fetch from {mirror!r}")
        return
    remotes = source.remotes()
    if mirror is not None:
        remotes = from_mirror(remotes, mirror)
    if source.complete(data_root):
        return
    places = source.places(data_root)
    if not places:
        raise InputError(f"no folder to download {source.name} to: name one with --data-root or IID_DATA")
    target = source.find(data_root) or places[0]
    root = source.root_of(target)
    made: list[Path] = []
    try:
        made = make_folders(root)
        with _workshop(root, source.name) as workshop:
            _check_room(source, remotes, target, workshop)
            for remote in remotes:
                if remote.archive:
                    _from_archive(source, remote, root, target, workshop)
                else:
                    _one_file(source, remote, root, target, workshop)
    except OSError as error:  # no network, no space, no permission to write
        reason = " ".join(str(error).split()) + in_the_way(target)
        names = " and ".join(remote.name for remote in remotes)
        by_hand = f"put {names} into {root} and fetch again" if remotes[0].archive else f"put {names} into {target}"
        raise InputError(
            f"{source.name} could not be downloaded to {root} ({reason}); check the network and that the folder can be "
            f"written, name another address with --mirror URL, or {by_hand}"
        ) from None
    finally:
        remove_empty(made)


@contextlib.contextmanager
def _workshop(root: Path, name: str) -> Iterator[Path]:
    """Creates the private folder for the block and locks it against other processes."""
    place = root / f".iidlib-fetch-{name}"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(place.with_name(f"{place.name}.lock"), wait=False))
        except BlockingIOError as error:
            raise InputError(f"{name} is being fetched into {root} by {error}; wait for it") from None
        except FileExistsError as error:  # a file of the user in place of the lock
            what = error.strerror if root.is_dir() else f"{root} is a file, not a folder"
            raise InputError(f"{name} cannot be fetched into {root}: {what}") from None
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise InputError(f"{place} must be a folder for temporary files and is something else; move it away")
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            _remove_unpacked(place)  # left by a process that was killed while unpacking
            yield place
        finally:
            _remove_unpacked(place)
            remove_empty([place])


_UNPACKED = "unpacked-"


def _remove_unpacked(place: Path) -> None:
    for left in place.glob(f"{_UNPACKED}*"):
        shutil.rmtree(left, ignore_errors=True)


def _check_room(source: Source, remotes: tuple[Remote, ...], target: Path, workshop: Path) -> None:
    root, there = source.root_of(target), [*workshop.iterdir()]
    there += [(root if remote.archive else target) / remote.name for remote in remotes]
    have = sum(path.stat().st_size for path in there if path.is_file())
    needed = source.size.unpacked + max(0, source.size.download - have)
    with contextlib.suppress(OSError):  # some systems do not report free space
        free = shutil.disk_usage(root).free
        if free < needed:
            raise InputError(
                f"{source.name} needs {needed / 1e6:,.0f} MB in {root}, but only {free / 1e6:,.0f} MB are free; free "
                "some space, or name another folder with --data-root or IID_DATA"
            )


def _fetched(remote: Remote, workshop: Path, most: int) -> Path:
    """Returns a file in the workshop, downloaded now or by an earlier attempt."""
    path = workshop / remote.name
    if path.is_file() and remote.md5 is not None and file_checksum(path, "md5") != remote.md5:
        path.unlink()
    fetch(remote.url, path, remote.md5, most=most)
    return path


def _from_archive(source: Source, remote: Remote, root: Path, target: Path, workshop: Path) -> None:
    size, local = source.size, root / remote.name
    if users := local.is_file():
        fetch(remote.url, local, remote.md5)  # raises if its checksum differs
    archive = local if users else _fetched(remote, workshop, _SLACK * size.download)
    try:
        if archive.stat().st_size > _SLACK * size.download:
            raise InputError(
                f"{archive} has {archive.stat().st_size:,} bytes, more than the expected maximum of "
                f"{_SLACK * size.download:,}"
            )
        unpacked = Path(tempfile.mkdtemp(prefix=_UNPACKED, dir=workshop))
        unpack(archive, unpacked, most_bytes=_SLACK * size.unpacked, most_members=_SLACK * size.members)
        found = unpacked / source.folder
        problems = source.lacks(found)
        problems += [f"{file.path.name} is corrupted" for file in source.check(found) if file.state == "corrupted"]
        if problems:
            raise InputError(
                f"{source.name}: {archive} is incomplete or corrupted: {listed(problems, 4, between='; ')}"
            )
    except InputError as error:
        if users:
            raise InputError(f"{error}; move it away and fetch again") from None
        archive.unlink(missing_ok=True)
        raise InputError(f"{error}; it was removed: fetch it again, or name another address with --mirror") from None
    try:
        _place(found, target, archive)
    except InputError as error:
        kept = "" if users else f"; the download is kept in {workshop} until then"
        raise InputError(f"{error}{kept}") from None
    if not users:
        archive.unlink()


def _one_file(source: Source, remote: Remote, root: Path, target: Path, workshop: Path) -> None:
    """Installs a file of the dataset's folder, unless it already exists, compressed or not."""
    stem = remote.name.removesuffix(".gz")
    known = [file for file in source.check(target) if file.path.name in (remote.name, stem)]
    if all(file.state == "ok" for file in known):
        return
    for file in known:
        if file.state == "corrupted" and not (file.path.name == remote.name and _is_ours(target)):
            raise InputError(f"{file.path} does not match {remote.url} ({file.detail}); move it away and fetch again")
    new = Path(tempfile.mkdtemp(prefix=_UNPACKED, dir=workshop)) / target.name
    new.mkdir()
    _fetched(remote, workshop, _SLACK * source.size.download).rename(new / remote.name)
    _place(new, target, root / remote.name)


def _is_ours(target: Path) -> bool:
    return (target / MARK).is_file()


def _place(new: Path, target: Path, origin: Path) -> None:
    """Moves files into a dataset's folder: all or none, replacing only files that were installed before.

    Raises:
        InputError: if a file of the user is in the way.
    """
    if not os.path.lexists(target):
        (new / MARK).write_text("iid data fetch created this folder, and may replace corrupted files in it\n", "utf-8")
        make_folders(target.parent)
        new.rename(target)
        return
    moves = []
    for file in sorted(path for path in new.rglob("*") if path.is_file()):
        place = target / file.relative_to(new)
        if not os.path.lexists(place):
            moves.append((file, place))
        elif not place.is_file() or not filecmp.cmp(file, place, shallow=False):
            if not (_is_ours(target) and place.is_file()):
                raise InputError(
                    f"{place} already exists and does not match {origin.name}; move it away and fetch again"
                )
            moves.append((file, place))
    for file, place in moves:
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
