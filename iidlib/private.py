"""Private folders for code that will be executed, writable by this user only."""

import contextlib
import os
import stat
from pathlib import Path

__all__ = ["private_dir"]

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Permission bits that a private folder must not have."""


def private_dir(path: Path, *, readable: bool = False) -> Path:
    """Creates a folder for code that will be executed, with mode 0700, or checks an existing one.

    The folder must be a real one (no link), belong to this user and have mode 0700. Read permission for others would be
    harmless by itself, but this function never grants it: somebody else has created or opened the folder, and may have
    put something into it. As with ssh, each parent folder must belong to the user or to root and must not be writable
    for others, who could otherwise replace the folder. A sticky bit (as on ``/tmp``) prevents that too. The user's
    private group does not count as others.

    On systems without owners (Windows) the folder is created and not checked.

    Args:
        path: the folder; missing parents are created with modes from the umask, but never writable by others.
        readable: also accept a folder that others can read but not write to, as for one made by another program.

    Returns:
        The path with the links in its parents resolved, so that changing a link later has no effect.

    Raises:
        PermissionError: if others could write to the folder or replace it; the message names the folder at fault.
        OSError: if the folder cannot be created.
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
                above.chmod(above.lstat().st_mode | stat.S_IRWXU)  # the umask may restrict the owner too
        _check_above(above)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700)
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise PermissionError(f"{path} is a link, not a folder")
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{path} is not a folder")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to {_user(status.st_uid)}, not to {_user(os.geteuid())}")
    if readable and _others_write(status):
        raise PermissionError(f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so others can write to it")
    if not readable and status.st_mode & OTHERS:
        raise PermissionError(f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, not 0700")
    return path


def _check_above(folder: Path) -> None:
    """Raises PermissionError if another user can rename entries of a folder."""
    status = folder.lstat()
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{folder} belongs to {_user(status.st_uid)}, not to {_user(os.geteuid())} or root")
    if _others_write(status) and not status.st_mode & stat.S_ISVTX:
        raise PermissionError(f"{folder} has mode {stat.S_IMODE(status.st_mode):04o}, so others can write to it")


def _others_write(status: os.stat_result) -> bool:
    """Whether a folder is writable by anyone but its owner and root."""
    by_group = status.st_mode & stat.S_IWGRP and not _private_group(status.st_gid)
    return bool(status.st_mode & stat.S_IWOTH or by_group)


def _private_group(gid: int) -> bool:
    """Whether a group is the private one that many systems create for each user, with no other member."""
    try:
        import grp
        import pwd

        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == gid and user.pw_name == group.gr_name and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    """Name of a user, or the id if there is no name."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return f"user {uid}"
