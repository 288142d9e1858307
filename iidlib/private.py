"""Folders for code that will be run, in which nobody else can put any."""

import contextlib
import os
import stat
from pathlib import Path

__all__ = ["private_dir"]

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""What the mode of a folder must not grant for it to be private."""


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
                above.chmod(above.lstat().st_mode | stat.S_IRWXU)  # a umask may take the owner's rights too
        _check_above(above)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise PermissionError(f"{path} is a link, not a folder")
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{path} is not a folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to {_user(found.st_uid)}, not to {_user(os.geteuid())}")
    if readable and _others_write(found):
        raise PermissionError(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, so that others can write in it")
    if not readable and found.st_mode & OTHERS:
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
