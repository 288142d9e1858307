"""Compiled code on disk: a folder that the compiler's command line takes, and libraries that are whole when loaded."""

import atexit
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from iidlib.files import atomic_write
from iidlib.locks import locked
from iidlib.private import private_dir

__all__ = ["compiler_folder", "load_whole"]

logger = logging.getLogger("iidlib")


class _NotWhole(Exception):
    """A library whose checksum is missing, or another.

    Attributes:
        path: of the library.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is corrupted")
        self.path = Path(path)


def compiler_folder(folder: Path, variable: str) -> Path:
    """The folder, or a private one of this process where torch's command line, split at spaces, would break its name.

    Args:
        folder: where compiled code is to be kept.
        variable: what the user can set to change that, for the message.

    Raises:
        OSError: if the temporary folder has such a name too.
    """
    if os.name != "posix" or not _broken(folder):
        return folder
    reason = f"{folder} holds a space, a quote or a backslash, which the compiler is not given whole"
    if _broken(Path(tempfile.gettempdir())):
        raise OSError(f"{reason}, and so does the temporary folder")
    own = private_dir(Path(tempfile.mkdtemp(prefix="iidlib-compiled-")))  # made with mode 0700
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    logger.warning("compiled code is built anew by each process: %s; set %s to another folder", reason, variable)
    return own


def _broken(folder: Path) -> bool:
    return re.search(r"[\s'\"\\]", str(folder)) is not None


def load_whole(source: str, flags: Sequence[str], folder: Path) -> Any:
    """The library that torch builds from C++ code, or has built before if it is still whole; else it is built again.

    A checksum lies beside it: a library that was cut short can end the process that loads it.

    Args:
        source: the code.
        flags: further ones of the compiler.
        folder: where torch keeps what it compiles; one process at a time builds and loads there.
    """
    from torch._inductor.codecache import CppCodeCache

    fresh: list[bool] = []

    class Whole(CppCodeCache):
        cache: dict[str, Any] = {}  # noqa: RUF012, as in the class above, whose libraries are not looked at

        @staticmethod
        def _load_library_inner(path: str, key: str) -> Any:
            known, digest = Path(f"{path}.sha256"), hashlib.sha256(Path(path).read_bytes()).hexdigest()
            if fresh:
                atomic_write(known, digest)
            if not known.is_file() or known.read_text(encoding="utf-8") != digest:
                raise _NotWhole(path)
            return CppCodeCache._load_library_inner(path, key)

    def built_now(build: Any) -> "Future[None]":
        """Is called where there is no library yet, before torch builds it."""
        fresh.append(True)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def load() -> Any:
        return Whole.load(source, extra_flags=tuple(flags), submit_fn=built_now)

    with locked(folder / "kernels.lock"):
        try:
            return load()
        except _NotWhole as broken:
            broken.path.unlink()
            Whole.cache.clear()
            return load()
