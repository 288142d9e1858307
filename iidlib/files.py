"""Files and folders of the user: paths with ``~``, YAML, atomic writes, the cache."""

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
    "readable",
    "remove_empty",
    "remove_stale",
    "replaced",
    "resolved_path",
    "set_aside",
    "unfinished",
    "user_path",
    "write_new",
]

PACKAGE = Path(__file__).resolve().parent
"""Folder of the installed package."""

STALE_SECONDS = 3600
"""Age at which an unchanged temporary file is taken for abandoned by its process."""


class _NoAliases(yaml.SafeLoader):
    """Loads plain data only: no objects, and no aliases, which can expand a few lines to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases such as *{self.peek_event().anchor} are not supported")
        return super().compose_node(parent, index)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path given by the user, with ``~`` and ``~name`` expanded if that user exists."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, pathlib raises for an unknown user


def checkout() -> Path | None:
    """Root of the repository that the package is imported from; None for an installed package.

    The parent of the package is a checkout if it contains ``pyproject.toml``; otherwise it is ``site-packages``.
    """
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None


def load_yaml(text: str) -> Any:
    """Parses YAML into plain data: mappings, lists, strings, numbers, dates.

    Raises:
        ValueError: if the text is not valid YAML, holds more than plain data, or is nested too deeply.
    """
    try:
        return yaml.load(text, _NoAliases)  # a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


@contextlib.contextmanager
def replaced(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing that replaces `path` when the block succeeds, and leaves it alone otherwise.

    The data goes to a temporary file in the same folder, which is flushed to disk and renamed. An existing file keeps
    its mode, and its owner if this user may change owners; a new file gets its mode from the umask.

    Args:
        path: the file; a link is replaced, not followed.
        private: for files of the cache: only this user can read it (mode 0600), whatever the umask.

    Raises:
        OSError: if it cannot be written; an existing file stays unchanged.
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
    """Writes a file atomically; see `replaced`.

    Args:
        path: the file; a link is replaced, not followed.
        content: bytes, or text, which is encoded as UTF-8.
        private: for files of the cache: only this user can read it (mode 0600), whatever the umask.

    Raises:
        OSError: if it cannot be written; an existing file stays unchanged.
    """
    with replaced(path, private=private) as file:
        file.write(_encoded(content) if isinstance(content, str) else content)


def write_new(path: Path, content: bytes | str) -> Path:
    """Writes a new file atomically; if the name is taken, appends a number to it.

    Args:
        path: the desired path; its folder is created.
        content: bytes or text, as for `atomic_write`.

    Returns:
        Path of the written file.

    Raises:
        OSError: if it cannot be written; no partial file is left.
    """
    make_folders(path.parent)
    temporary = _temporary(path)
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    try:
        with _created(temporary, 0o666) as file:
            file.write(_encoded(content) if isinstance(content, str) else content)
        return next(target for target in itertools.chain([path], numbered) if _renamed(temporary, target))
    finally:
        temporary.unlink(missing_ok=True)


def _renamed(temporary: Path, target: Path) -> bool:
    """Renames a file unless the name is taken; returns whether it did."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: reserve the name with an empty file, then replace it
        try:
            with _created(target, 0o666):
                pass
        except FileExistsError:
            return False
        try:
            temporary.replace(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return True


def _temporary(path: Path) -> Path:
    """An unpredictable temporary name in the same folder."""
    return path.with_name(f".{_cut(path.name)}.{os.getpid()}-{secrets.token_hex(8)}.unfinished")


@contextlib.contextmanager
def _created(path: Path, mode: int) -> Iterator[BinaryIO]:
    """Creates a file for the block and flushes it to disk; removes it if that fails.

    Never opens an existing file or follows a link.

    Raises:
        FileExistsError: if the path exists.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, mode)
    try:
        with open(descriptor, "w+b") as file:  # noqa: PTH123, a descriptor, not a path
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def unfinished(name: str) -> str | None:
    """Final name of a temporary file of `atomic_write`; None for any other file."""
    match = re.fullmatch(r"\.(.+)\.\d+-[0-9a-f]{16}\.unfinished", name, re.DOTALL)
    return match[1] if match else None


def remove_stale(path: Path) -> None:
    """Removes temporary files of `path` unchanged for an hour; the processes that wrote them were killed."""
    with contextlib.suppress(OSError):  # the folder is absent, or another process is cleaning it too
        for leftover in path.parent.glob(".*.unfinished"):
            age = time.time() - leftover.lstat().st_mtime
            if unfinished(leftover.name) == _cut(path.name) and age > STALE_SECONDS:
                leftover.unlink(missing_ok=True)


def _cut(name: str) -> str:
    """A name cut so that the temporary file's name stays within 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:180]) if len(os.fsencode(name)) > 180 else name


def _encoded(text: str) -> bytes:
    """Text as UTF-8, including file names that Python could not decode in an ASCII locale."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeError):
            raw = text.encode(errors="surrogateescape")
            raw.decode()  # the name's original bytes, if they are UTF-8
            return raw
        return text.encode(errors="backslashreplace")


def readable(text: str) -> str:
    """Text that can be printed, including file names that Python could not decode in an ASCII locale."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _take_mode(descriptor: int, path: Path, *, private: bool) -> None:
    """Gives a new file the mode and owner of the one it replaces, as far as the system permits."""
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
    """Appends ``.corrupted`` to the name of a corrupted file, so that a new one can replace it.

    Returns:
        The new path, with a number appended if that name is taken.

    Raises:
        OSError: if it cannot be renamed.
    """
    names = (f"{path.name}.corrupted{f'-{number}' if number else ''}" for number in itertools.count())
    target = next(target for target in map(path.with_name, names) if not os.path.lexists(target))
    path.rename(target)
    return target


def resolved_path(path: Path) -> Path:
    """The resolved path, as if all missing folders existed.

    ``new/..`` is the parent of ``new`` even before ``new`` exists. Broken and circular links are left for the caller to
    report on opening or creating the path.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def missing_folders(path: Path) -> list[Path]:
    """The path and its parents that do not exist, innermost first.

    Raises:
        FileNotFoundError: if one of them is a broken link, where no folder can be created.
    """
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    for folder in missing:
        if folder.is_symlink():
            raise FileNotFoundError(f"{folder} is a link that leads nowhere (to {folder.readlink()})")
    return missing


def check_writable(path: Path) -> None:
    """Checks in advance that a file can be written; leaves nothing behind.

    Args:
        path: the file; its parent folders may be missing.

    Raises:
        OSError: if it cannot be written, or exists and is read-only.
    """
    missing = missing_folders(path.parent)
    with tempfile.TemporaryFile(dir=missing[-1].parent if missing else path.parent) as file:
        file.write(b"0")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError("it is read-only")


def make_folders(path: Path, *, private: bool = False) -> list[Path]:
    """Creates a folder and its missing parents.

    A link to a folder counts as the folder.

    Args:
        path: the folder.
        private: for the cache: created folders are accessible to this user only (mode 0700), whatever the umask;
            existing ones stay unchanged.

    Returns:
        The created folders, innermost first; empty if the folder existed.

    Raises:
        OSError: if one cannot be created or is a broken link; those already created are removed again.
    """
    made: list[Path] = []
    try:
        for folder in reversed(missing_folders(path)):
            try:
                folder.mkdir(mode=0o700 if private else 0o777)
            except FileExistsError:  # another process was faster, or the path ends in "..", which exists by now
                if not folder.is_dir():
                    raise
            else:
                made.insert(0, folder)
                if private:
                    folder.chmod(0o700)  # the umask may restrict the owner too
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes the folders that are empty; the others stay, without an error."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def cache_dir() -> Path:
    """Folder for what can be made again, such as pools: ``IID_CACHE``, or ``iidlib`` in the user's cache folder."""
    if os.environ.get("IID_CACHE"):
        return user_path(os.environ["IID_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "iidlib"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "iidlib" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iidlib"
