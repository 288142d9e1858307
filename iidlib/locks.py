"""Locks: files that one process holds at a time, and that say which one it is."""

import contextlib
import errno
import logging
import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["check_lock", "is_lock", "locked"]

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What the system answers on a file system that has no locks."""

_LOCK = re.compile(rb"(\n?process \d+ on [^\n]*\n)?")
"""What a lock file holds: who took it, or nothing in the moment before that is written."""

logger = logging.getLogger("iidlib")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock for as long as the block or this process lasts; on a file system without locks it holds nothing.

    The system drops the lock of a process that died, so that what it left of its file stops nobody.

    Args:
        path: the lock file, made for the block and removed after it. It says which process holds it.
        wait: wait for another process or thread that holds it, which is logged once.

    Raises:
        BlockingIOError: naming the holder, where there is one and `wait` is false.
        FileExistsError: if something of that name is there that is no lock of this function; it stays as it is.
        OSError: if the file cannot be made.
    """
    import filelock  # takes too long to be imported for `iid --help`

    check_lock(path)

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)  # a process that died has left its name
        # behind the first byte, which is the one that is locked on Windows, and nobody else can read there then
        os.write(descriptor, f"\nprocess {os.getpid()} on {platform.node()}\n".encode())

    # not the file's mere existence in place of a lock: on another machine nobody can tell that its holder died
    lock, held = filelock.FileLock(path, fallback_to_soft=False, on_acquired=sign), True
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if not wait:
                raise BlockingIOError(_holder(path)) from None
            logger.info("waiting for %s, locked by %s", path, _holder(path))
            lock.acquire()
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
    """Finds out whether a file may be taken as a lock, which empties it; one that is absent may.

    Raises:
        FileExistsError: if something of that name is there that is no lock of `locked`: another file, a link, a folder.
        PermissionError: if it is a lock that another user has left, which this one cannot open.
    """
    try:
        found = path.lstat()
    except OSError:  # absent, or gone again
        return
    if not is_lock(path):
        raise FileExistsError(errno.EEXIST, f"{path} is needed as a lock and is {_kind(found)}; move it away")
    try:  # by opening it, because a lock may be gone and another there between two questions
        os.close(os.open(path, os.O_RDWR))
    except PermissionError:
        raise PermissionError(
            errno.EACCES, f"{path} is a lock that another user has left; have that user remove it"
        ) from None
    except OSError:
        return  # gone again


def is_lock(path: Path) -> bool:
    """Whether a path is a lock of `locked`, held or left by a process that died; no link, and nothing that blocks."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb", buffering=0) as file:
            return bool(_LOCK.fullmatch(file.read(1000)))
    except OSError:  # gone again, of another user, or held where locked files cannot be read (Windows)
        return True


def _kind(found: os.stat_result) -> str:
    """What is at the place of a lock, in words."""
    if stat.S_ISLNK(found.st_mode):
        return "a link"
    if stat.S_ISDIR(found.st_mode):
        return "a folder"
    return "another file"


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says, a moment after the lock was taken."""
    for _ in range(20):
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            file.seek(1)
            if name := file.read(200).decode(errors="replace").strip():
                return name
        time.sleep(0.05)
    return "another process"
