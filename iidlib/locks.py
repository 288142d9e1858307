"""Lock files, each held by one process at a time and naming its holder."""

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
"""Error codes of file systems without locks."""

_LOCK = re.compile(rb"(\n?process \d+ on [^\n]*\n)?")
"""Content of a lock file: its holder, or nothing until that is written."""

logger = logging.getLogger("iidlib")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock while the block runs; does nothing on a file system without locks.

    The system releases the lock of a process that died, so a leftover file blocks nobody.

    Args:
        path: the lock file, created for the block and removed afterwards. It names the process that holds it.
        wait: wait for another process or thread to release it, and log that once.

    Raises:
        BlockingIOError: if the lock is held and `wait` is false; the message names the holder.
        FileExistsError: if the path is anything but a lock of this function; it stays unchanged.
        OSError: if the file cannot be created.
    """
    import filelock  # too slow to import for `iid --help`

    check_lock(path)

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)  # a process that died may have left its name
        # after the first byte: Windows locks that one, and then nobody else can read it
        os.write(descriptor, f"\nprocess {os.getpid()} on {platform.node()}\n".encode())

    # the existence of a file does not replace a lock: other machines cannot tell whether its holder died
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
            if os.name == "posix":  # before the release; a waiting process notices and creates another file
                with contextlib.suppress(OSError):  # must not hide an error of the block
                    path.unlink(missing_ok=True)
            lock.release()  # on Windows this removes the file


def check_lock(path: Path) -> None:
    """Checks that a path can be used as a lock: it is absent, or a lock whose content may be overwritten.

    Raises:
        FileExistsError: if the path is not a lock of `locked` but another file, a link or a folder.
        PermissionError: if it is a lock left by another user, which this user cannot open.
    """
    try:
        status = path.lstat()
    except OSError:  # absent, or removed meanwhile
        return
    if not is_lock(path):
        raise FileExistsError(errno.EEXIST, f"{path} is needed as a lock and is {_kind(status)}; move it away")
    try:  # by opening it: between two checks the lock may be replaced by another
        os.close(os.open(path, os.O_RDWR))
    except PermissionError:
        raise PermissionError(
            errno.EACCES, f"{path} is a lock left by another user; ask that user to remove it"
        ) from None
    except OSError:
        return  # removed meanwhile


def is_lock(path: Path) -> bool:
    """Whether a path is a lock of `locked`, held or left by a dead process; never follows links or blocks."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb", buffering=0) as file:
            return bool(_LOCK.fullmatch(file.read(1000)))
    except OSError:  # removed meanwhile, owned by another user, or held on Windows, where locked files are unreadable
        return True


def _kind(status: os.stat_result) -> str:
    """Kind of the file found in place of a lock."""
    if stat.S_ISLNK(status.st_mode):
        return "a link"
    if stat.S_ISDIR(status.st_mode):
        return "a folder"
    return "another file"


def _holder(path: Path) -> str:
    """Holder of a lock, read from its file, which is written a moment after the lock is taken."""
    for _ in range(20):
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            file.seek(1)
            if name := file.read(200).decode(errors="replace").strip():
                return name
        time.sleep(0.05)
    return "another process"
