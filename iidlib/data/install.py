"""Datasets put into a data root: fetched or taken out of an archive laid there, verified, and only then in place.

All work is done in a private folder beside, ``.iidlib-fetch-NAME``. What a download that was stopped leaves there (a
part of a file, or a whole one) is taken up by the next one, and goes when the dataset is complete. Files of the user
are never overwritten or removed: neither an archive that was laid into the data root, nor what is in the dataset's
folder, unless that folder was made here (then ``.iidlib-fetched`` lies in it).
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
"""How many times the known size is taken at most: mirrors pack the same files in other ways."""


def install(source: Source, data_root: PathLike | None = None, *, mirror: str | None = None) -> None:
    """Fetches what is missing of a dataset into the data root; nothing where it is whole.

    Args:
        source: the dataset.
        data_root: the folder that gets the dataset's folder; the one in ``IID_DATA`` when not given.
        mirror: another address to fetch from, see `download.from_mirror`; the checksums stay the same.

    Raises:
        InputError: if no data root is named, nothing can be fetched, or what was fetched is not the dataset; if a file
            of the user's is in the way; if the disk has too little room; if another process is fetching it.
    """
    if source.remotes is None:
        if mirror is not None:
            raise InputError(f"{source.name} comes with iidlib; there is nothing to fetch from {mirror!r}")
        return
    remotes = source.remotes()
    if mirror is not None:
        remotes = from_mirror(remotes, mirror)
    if source.whole(data_root):
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
    except OSError as error:  # no network, no room, no right to write
        reason = " ".join(str(error).split()) + in_the_way(target)
        names = " and ".join(remote.name for remote in remotes)
        lay = f"lay {names} into {root} and fetch again" if remotes[0].archive else f"put {names} into {target}"
        raise InputError(
            f"{source.name} could not be downloaded to {root} ({reason}); check the network and that the folder can be "
            f"written, name another address with --mirror URL, or {lay}"
        ) from None
    finally:
        remove_empty(made)


@contextlib.contextmanager
def _workshop(root: Path, name: str) -> Iterator[Path]:
    """The private folder for the block, which no other process works in meanwhile."""
    place = root / f".iidlib-fetch-{name}"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(place.with_name(f"{place.name}.lock"), wait=False))
        except BlockingIOError as error:
            raise InputError(f"{name} is being fetched into {root} by {error}; wait for it") from None
        except FileExistsError as error:  # a file of the user's in the lock's place
            what = error.strerror if root.is_dir() else f"{root} is a file, not a folder"
            raise InputError(f"{name} cannot be fetched into {root}: {what}") from None
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise InputError(f"{place} is needed as a folder to work in and is something else; move it away")
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            _remove_unpacked(place)  # what a process that was killed while unpacking left
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
    with contextlib.suppress(OSError):  # where the system does not tell
        free = shutil.disk_usage(root).free
        if free < needed:
            raise InputError(
                f"{source.name} needs {needed / 1e6:,.0f} MB in {root}, and {free / 1e6:,.0f} MB are free; make room, "
                "or name another folder with --data-root or IID_DATA"
            )


def _fetched(remote: Remote, workshop: Path, most: int) -> Path:
    """A file in the workshop: left there by a download that was stopped, or downloaded now."""
    path = workshop / remote.name
    if path.is_file() and remote.md5 is not None and file_checksum(path, "md5") != remote.md5:
        path.unlink()
    fetch(remote.url, path, remote.md5, most=most)
    return path


def _from_archive(source: Source, remote: Remote, root: Path, target: Path, workshop: Path) -> None:
    size, own = source.size, root / remote.name
    if users := own.is_file():
        fetch(remote.url, own, remote.md5)  # refused if it has another checksum
    archive = own if users else _fetched(remote, workshop, _SLACK * size.download)
    try:
        if archive.stat().st_size > _SLACK * size.download:
            raise InputError(
                f"{archive} has {archive.stat().st_size:,} bytes, and {_SLACK * size.download:,} are expected at most"
            )
        unpacked = Path(tempfile.mkdtemp(prefix=_UNPACKED, dir=workshop))
        unpack(archive, unpacked, most_bytes=_SLACK * size.unpacked, most_members=_SLACK * size.members)
        found = unpacked / source.folder
        told = source.lacks(found)
        told += [f"{file.path.name} is damaged" for file in source.check(found) if file.state == "damaged"]
        if told:
            raise InputError(f"{source.name}: what {archive} holds is not whole: {listed(told, 4, between='; ')}")
    except InputError as error:
        if users:
            raise InputError(f"{error}; move it away and fetch again") from None
        archive.unlink(missing_ok=True)
        raise InputError(f"{error}; it was removed: fetch it again, or name another address with --mirror") from None
    try:
        _place(found, target, archive)
    except InputError as error:
        kept = "" if users else f"; what was downloaded is kept in {workshop} until then"
        raise InputError(f"{error}{kept}") from None
    if not users:
        archive.unlink()


def _one_file(source: Source, remote: Remote, root: Path, target: Path, workshop: Path) -> None:
    """A file that belongs into the dataset's folder as it is; packed or not, one of them is enough."""
    stem = remote.name.removesuffix(".gz")
    known = [file for file in source.check(target) if file.path.name in (remote.name, stem)]
    if all(file.state == "ok" for file in known):
        return
    for file in known:
        if file.state == "damaged" and not (file.path.name == remote.name and _is_ours(target)):
            raise InputError(
                f"{file.path} is not what {remote.url} holds ({file.detail}); move it away and fetch again"
            )
    new = Path(tempfile.mkdtemp(prefix=_UNPACKED, dir=workshop)) / target.name
    new.mkdir()
    _fetched(remote, workshop, _SLACK * source.size.download).rename(new / remote.name)
    _place(new, target, root / remote.name)


def _is_ours(target: Path) -> bool:
    return (target / MARK).is_file()


def _place(new: Path, target: Path, origin: Path) -> None:
    """Moves files into a dataset's folder: all or none, and only over files that were put there before.

    Raises:
        InputError: if a file of the user's is in the way.
    """
    if not os.path.lexists(target):
        (new / MARK).write_text(
            "iid data fetch made this folder, and may replace files in it that are damaged\n", "utf-8"
        )
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
                    f"{place} is there already and is not what {origin.name} holds; move it away and fetch again"
                )
            moves.append((file, place))
    for file, place in moves:
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
