"""Files and folders of the user: paths that know ``~``, YAML, whole writes, the cache."""

import contextlib
import itertools
import os
import re
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

__all__ = [
    "PACKAGE",
    "atomic_write",
    "cache_dir",
    "check_writable",
    "checkout",
    "load_yaml",
    "make_folders",
    "missing_folders",
    "place_of",
    "readable",
    "remove_empty",
    "remove_stale",
    "replaced",
    "set_aside",
    "unfinished",
    "user_path",
    "write_new",
]

PACKAGE = Path(__file__).resolve().parent
"""The folder that the package is installed in."""

STALE_SECONDS = 3600
"""A temporary file that has not changed for so long belongs to no process that is still writing."""


class _NoAliases(yaml.SafeLoader):
    """Reads plain data only: no objects, and no aliases, with which a few lines stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases such as *{self.peek_event().anchor} are not read")
        return super().compose_node(parent, index)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave; ``~`` and ``~name`` are resolved where there is such a user, else left alone."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, which raises where there is no such user


def checkout() -> Path | None:
    """The checkout of the repository that the package is imported from; None for an installed one.

    The package's parent is a checkout if ``pyproject.toml`` lies there; in an installation it is ``site-packages``.
    """
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None


def load_yaml(text: str) -> Any:
    """Plain data from YAML text: mappings, lists, texts, numbers, dates.

    Raises:
        ValueError: if it is not YAML, or more than plain data, or nested without end.
    """
    try:
        return yaml.load(text, _NoAliases)  # a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


@contextlib.contextmanager
def replaced(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to be written in the block, which takes the place of another when the block is done, or not at all.

    It is a temporary file beside the other, flushed to disk and renamed. A file that was there keeps its mode, and its
    owner where this user may give files away; a new one has the mode that the umask says.

    Args:
        path: the file; a link is replaced, not followed.
        private: a file of the cache, for this user alone (mode 0600) whatever the umask.

    Raises:
        OSError: if it cannot be written; what was there is as it was.
    """
    temporary = _temporary(path)
    try:
        with _created(temporary, 0o600 if private else 0o666) as file:
            _take_mode(file.fileno(), path, private=private)
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Writes a file whole or not at all, see `replaced`.

    Args:
        path: the file; a link is replaced, not followed.
        content: its bytes, or its text, which is written as UTF-8.
        private: a file of the cache, for this user alone (mode 0600) whatever the umask.

    Raises:
        OSError: if it cannot be written; what was there is as it was.
    """
    with replaced(path, private=private) as file:
        file.write(_encoded(content) if isinstance(content, str) else content)


def write_new(path: Path, content: bytes | str) -> Path:
    """Writes a file whole, and never over another one: if one is there, beside it under a name with a number.

    Args:
        path: the file that is meant; its folder is made.
        content: of the file, as for `atomic_write`.

    Returns:
        The file that was written.

    Raises:
        OSError: if it cannot be written; nothing is left of it.
    """
    make_folders(path.parent)
    temporary = _temporary(path)
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    try:
        with _created(temporary, 0o666) as file:
            file.write(_encoded(content) if isinstance(content, str) else content)
        return next(place for place in itertools.chain([path], numbered) if _renamed(temporary, place))
    finally:
        temporary.unlink(missing_ok=True)


def _renamed(temporary: Path, place: Path) -> bool:
    """Gives a file a name that no other file has; False where one has it."""
    try:
        os.link(temporary, place)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: an empty file takes the name, and is replaced
        try:
            with _created(place, 0o666):
                pass
        except FileExistsError:
            return False
        try:
            temporary.replace(place)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
    return True


def _temporary(path: Path) -> Path:
    """A name beside a file, for the time until it is written, that nobody can guess."""
    return path.with_name(f".{_cut(path.name)}.{os.getpid()}-{secrets.token_hex(8)}.unfinished")


@contextlib.contextmanager
def _created(path: Path, mode: int) -> Iterator[BinaryIO]:
    """A file that was not there, to be written in the block and then flushed to disk; removed where that fails.

    Nothing is opened that somebody else has put there, and no link is followed.

    Raises:
        FileExistsError: if it is there.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, mode)
    try:
        with open(descriptor, "w+b") as file:  # noqa: PTH123, a descriptor and no path
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def unfinished(name: str) -> str | None:
    """The name of the file that a temporary file of `atomic_write` was to become; None for any other file."""
    found = re.fullmatch(r"\.(.+)\.\d+-[0-9a-f]{16}\.unfinished", name, re.DOTALL)
    return found[1] if found else None


def remove_stale(path: Path) -> None:
    """Removes the temporary files of a file that nobody has written to for an hour: their processes were killed."""
    with contextlib.suppress(OSError):  # a folder that is not there, or that another process clears as well
        for place in path.parent.glob(".*.unfinished"):
            if unfinished(place.name) == _cut(path.name) and time.time() - place.lstat().st_mtime > STALE_SECONDS:
                place.unlink(missing_ok=True)


def _cut(name: str) -> str:
    """A name as long as leaves room for what a temporary file's name has beside it, of 255 bytes in all."""
    return os.fsdecode(os.fsencode(name)[:180]) if len(os.fsencode(name)) > 180 else name


def _encoded(text: str) -> bytes:
    """Text as UTF-8, names of files included that Python could not decode where the locale knows ASCII only."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeError):
            raw = text.encode(errors="surrogateescape")
            raw.decode()  # the name's own bytes, where they are UTF-8
            return raw
        return text.encode(errors="backslashreplace")


def readable(text: str) -> str:
    """Text with names of files as they are, also those that Python could not decode where the locale is ASCII."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _take_mode(descriptor: int, path: Path, *, private: bool) -> None:
    """Gives a new file the mode and owner of the one that it replaces; what the system refuses stays undone."""
    if not hasattr(os, "fchmod"):
        return
    with contextlib.suppress(OSError):
        if private:
            os.fchmod(descriptor, 0o600)
            return
        before = path.lstat()
        if not stat.S_ISREG(before.st_mode):
            return
        new = os.fstat(descriptor)
        if (before.st_uid, before.st_gid) != (new.st_uid, new.st_gid):
            with contextlib.suppress(OSError):
                os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & 0o777)


def set_aside(path: Path) -> Path:
    """Gives a corrupted file another name beside it, with "corrupted" at its end, so that a new one can take its place.

    Returns:
        The new name, with a number where that is taken.

    Raises:
        OSError: if it cannot be renamed.
    """
    names = (f"{path.name}.corrupted{f'-{number}' if number else ''}" for number in itertools.count())
    place = next(place for place in map(path.with_name, names) if not os.path.lexists(place))
    path.rename(place)
    return place


def place_of(path: Path) -> Path:
    """Where a path leads once everything is made that is missing in it.

    ``new/..`` is the folder that holds ``new``, with all that lies there, although it does not exist yet. A link that
    leads nowhere, or in a circle, is left to whoever makes or opens the path.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def missing_folders(path: Path) -> list[Path]:
    """The path and the folders above it that are not there, innermost first.

    Raises:
        FileNotFoundError: if one of them is a link that leads nowhere, which cannot be made.
    """
    missing = list(itertools.takewhile(lambda place: not place.exists(), (path, *path.parents)))
    for place in missing:
        if place.is_symlink():
            raise FileNotFoundError(f"{place} is a link that leads nowhere (to {place.readlink()})")
    return missing


def check_writable(path: Path) -> None:
    """Finds out whether a file could be written, long before it is; leaves nothing behind.

    Args:
        path: the file; folders above it may be absent.

    Raises:
        OSError: if it could not be written, or is there and read-only.
    """
    missing = missing_folders(path.parent)
    with tempfile.TemporaryFile(dir=missing[-1].parent if missing else path.parent) as file:
        file.write(b"0")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError("it is read-only")


def make_folders(path: Path, *, private: bool = False) -> list[Path]:
    """Makes a folder and those above it that are missing.

    A link to a folder is taken for that folder.

    Args:
        path: the folder.
        private: for the cache: folders that are made are for this user alone (mode 0700) whatever the umask; those that
            are there stay as they are.

    Returns:
        The folders that were not there before, innermost first; none where the folder was there.

    Raises:
        OSError: if one cannot be made, or is a link that leads nowhere; those made before it are removed again.
    """
    made: list[Path] = []
    try:
        for place in reversed(missing_folders(path)):
            try:
                place.mkdir(mode=0o700 if private else 0o777)
            except FileExistsError:  # another process was faster, or the place is "..", a folder since a moment ago
                if not place.is_dir():
                    raise
            else:
                made.insert(0, place)
                if private:
                    place.chmod(0o700)  # the umask may have taken the owner's rights too
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those folders that are empty; one that holds something, or cannot be removed, stays without an error."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def cache_dir() -> Path:
    """Where pools are kept: ``IID_CACHE``, or ``iidlib`` in the user's cache folder."""
    if os.environ.get("IID_CACHE"):
        return user_path(os.environ["IID_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "iidlib"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "iidlib" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iidlib"
