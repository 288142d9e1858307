"""Files and folders of the user: paths that know ``~``, YAML, whole writes, locks, the cache, folders for code."""

import contextlib
import errno
import itertools
import os
import platform
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "PACKAGE",
    "atomic_write",
    "cache_dir",
    "check_lock",
    "checkout",
    "load_yaml",
    "locked",
    "make_folders",
    "place_of",
    "private_dir",
    "remove_empty",
    "user_path",
]

PACKAGE = Path(__file__).resolve().parent
"""The folder that the package is installed in."""

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""What the mode of a folder must not grant for it to be private."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What the system answers on a file system that has no locks."""

_LOCK = re.compile(rb"(\n?process \d+ on [^\n]*\n)?")
"""What a lock file holds: who took it, or nothing in the moment before that is written."""


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


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all: temporary file beside it, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def place_of(path: Path) -> Path:
    """Where a path leads once everything is made that is missing in it.

    ``new/..`` is the folder that holds ``new``, with all that lies there, although it does not exist yet. A link that
    leads nowhere, or in a circle, is left to whoever makes or opens the path.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def make_folders(path: Path) -> list[Path]:
    """Makes a folder and those above it that are missing.

    A link to a folder is taken for that folder.

    Returns:
        The folders that were not there before, innermost first; none where the folder was there.

    Raises:
        OSError: if one cannot be made, or is a link that leads nowhere; those made before it are removed again.
    """
    made: list[Path] = []
    missing = list(itertools.takewhile(lambda place: not place.exists(), (path, *path.parents)))
    try:
        for place in reversed(missing):
            if place.is_symlink():
                raise FileNotFoundError(f"{place} is a link that leads nowhere (to {place.readlink()})")
            try:
                place.mkdir()
            except FileExistsError:  # another process was faster, or the place is "..", a folder since a moment ago
                if not place.is_dir():
                    raise
            else:
                made.insert(0, place)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those folders that are empty; one that holds something, or cannot be removed, stays without an error."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock for as long as the block or this process lasts; on a file system without locks it holds nothing.

    The system drops the lock of a process that died, so that what it left of its file stops nobody.

    Args:
        path: the lock file, made for the block and removed after it. It says which process holds it.
        wait: wait for another process or thread that holds it.

    Raises:
        BlockingIOError: naming the holder, where there is one and `wait` is false.
        FileExistsError: if a file of that name is there that is no lock of this function; it stays as it is.
        OSError: if the file cannot be made.
    """
    import filelock  # takes too long to be imported for `iid --help`

    check_lock(path)

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)  # a process that died has left its name
        # behind the first byte, which is the one that is locked on Windows, and nobody else can read there then
        os.write(descriptor, f"\nprocess {os.getpid()} on {platform.node()}\n".encode())

    # not the file's mere existence in place of a lock: on another machine nobody can tell that its holder died
    lock, held = filelock.FileLock(path, blocking=wait, fallback_to_soft=False, on_acquired=sign), True
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(_holder(path)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        path.unlink(missing_ok=True)
        held = False
    try:
        yield
    finally:
        if held:
            if os.name == "posix":  # while it is held; who waits for it sees that it is gone, and makes another
                with contextlib.suppress(OSError):  # the block may have an error of its own to tell
                    path.unlink(missing_ok=True)
            lock.release()  # which removes the file on Windows


def check_lock(path: Path) -> None:
    """Finds out whether a file may be taken as a lock, which empties it.

    Raises:
        FileExistsError: if a file of that name is there that is no lock of `locked`.
    """
    content = b""
    with contextlib.suppress(OSError):  # gone again, or held where locked files cannot be read (Windows)
        content = path.read_bytes()[:1000]
    if not _LOCK.fullmatch(content):
        raise FileExistsError(errno.EEXIST, f"{path} is needed as a lock and is another file; move it away")


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        file.seek(1)
        return file.read(200).decode(errors="replace").strip() or "another process"
    return "another process"


def cache_dir() -> Path:
    """Where pools are kept: ``IID_CACHE``, or ``iidlib`` in the user's cache folder."""
    if os.environ.get("IID_CACHE"):
        return user_path(os.environ["IID_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "iidlib"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "iidlib" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iidlib"


def private_dir(path: Path, *, readable: bool = False) -> Path:
    """A folder for code that will be run: made with mode 0700, or checked if it is there already.

    The folder must be a real one (no link), belong to this user and have mode 0700. A mode that only lets others read
    would do no harm by itself, but a folder that we made never has it: somebody else has made or opened this one, and
    may have put something into it. As ssh does, each folder above must belong to the user or to root, and others must
    not be able to write in it, unless its sticky bit keeps them from renaming what is not theirs (as in ``/tmp``);
    otherwise they could put another folder in the place of this one. A group that is the user's own does not count as
    others.

    Where the system knows no owners (Windows), the folder is made and not checked.

    Args:
        path: of the folder; folders above that are missing are made too, as the umask says but never writable for
            others.
        readable: accept also what others can read but not write in, as for a folder that another program has made.

    Returns:
        The path with the links above it followed, so that a link that is changed later leads nowhere else.

    Raises:
        PermissionError: if the folder or one above it does not keep others out; the text names it.
        OSError: if the folder cannot be made.
    """
    if not hasattr(os, "geteuid"):
        path.mkdir(parents=True, exist_ok=True)
        return path
    path = path.absolute()
    path = path.parent.resolve() / path.name
    for above in reversed(path.parents):
        with contextlib.suppress(FileExistsError):
            if not above.exists():
                above.mkdir(mode=0o755)
        _check_above(above)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise PermissionError(f"{path} is a link, not a folder")
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{path} is not a folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to {_user(found.st_uid)}, not to {_user(os.geteuid())}")
    if _others_write(found) if readable else found.st_mode & OTHERS:
        raise PermissionError(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, not 0700")
    return path


def _check_above(folder: Path) -> None:
    """Raises PermissionError if somebody else can rename what is in a folder."""
    found = folder.lstat()
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{folder} belongs to {_user(found.st_uid)}, not to {_user(os.geteuid())} or root")
    if _others_write(found) and not found.st_mode & stat.S_ISVTX:
        raise PermissionError(f"{folder} has mode {stat.S_IMODE(found.st_mode):04o}, so that others can write in it")


def _others_write(found: os.stat_result) -> bool:
    """Whether a mode lets somebody write who is neither the owner nor root."""
    by_group = found.st_mode & stat.S_IWGRP and not _own_group(found.st_gid)
    return bool(found.st_mode & stat.S_IWOTH or by_group)


def _own_group(gid: int) -> bool:
    """Whether a group is the one that many systems make for each user, with the user's name and nobody else in it."""
    try:
        import grp
        import pwd

        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == gid and user.pw_name == group.gr_name and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    """A user's name, or the number of one without a name."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return f"user {uid}"
