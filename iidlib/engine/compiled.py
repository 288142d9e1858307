"""Compiled code on disk: a folder that the compiler's command line accepts, and libraries verified before loading."""

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

__all__ = ["compiler_folder", "load_verified"]

logger = logging.getLogger("iidlib")


class _Corrupted(Exception):
    """A library whose checksum is missing or does not match.

    Attributes:
        path: path of the library.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is corrupted")
        self.path = Path(path)


def compiler_folder(folder: Path, variable: str) -> Path:
    """The folder, or a temporary one for this process if torch's command line, split at spaces, would break its path.

    Args:
        folder: folder for compiled code.
        variable: environment variable that sets the folder, for the warning.

    Raises:
        OSError: if the path of the temporary folder would break as well.
    """
    if os.name != "posix" or not _broken(folder):
        return folder
    reason = f"{folder} contains a space, a quote or a backslash, which breaks the compiler's command line"
    if _broken(Path(tempfile.gettempdir())):
        raise OSError(f"{reason}, and so does the path of the temporary folder")
    temporary = private_dir(Path(tempfile.mkdtemp(prefix="iidlib-compiled-")))  # made with mode 0700
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    logger.warning("each process compiles the kernels again: %s; set %s to another folder", reason, variable)
    return temporary


def _broken(folder: Path) -> bool:
    return re.search(r"[\s'\"\\]", str(folder)) is not None


def load_verified(source: str, flags: Sequence[str], folder: Path) -> Any:
    """Loads the library that torch builds from C++ code; builds it if it is missing or its checksum does not match.

    The checksum is stored next to the library: loading a truncated one can crash the process.

    Args:
        source: C++ source code.
        flags: additional compiler flags.
        folder: torch's folder for compiled code; one process at a time builds and loads there.
    """
    from torch._inductor.codecache import CppCodeCache

    built: list[bool] = []

    class Verified(CppCodeCache):
        cache: dict[str, Any] = {}  # noqa: RUF012, as in the base class; its own, so that no unverified library is reused

        @staticmethod
        def _load_library_inner(path: str, key: str) -> Any:
            known, digest = Path(f"{path}.sha256"), hashlib.sha256(Path(path).read_bytes()).hexdigest()
            if built:
                atomic_write(known, digest)
            if not known.is_file() or known.read_text(encoding="utf-8") != digest:
                raise _Corrupted(path)
            return CppCodeCache._load_library_inner(path, key)

    def built_now(build: Any) -> "Future[None]":
        """Called before torch builds a library that does not exist yet."""
        built.append(True)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def load() -> Any:
        return Verified.load(source, extra_flags=tuple(flags), submit_fn=built_now)

    with locked(folder / "kernels.lock"):
        try:
            return load()
        except _Corrupted as error:
            error.path.unlink()
            Verified.cache.clear()
            return load()
