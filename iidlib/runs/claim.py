"""A run's claim on its folder: created for the run, locked against other processes, undone if the run cannot start."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from iidlib.errors import InputError
from iidlib.files import atomic_write, make_folders, remove_empty, resolved_path, unfinished
from iidlib.locks import is_lock, locked
from iidlib.runs.contents import CHECKPOINT_FILE, LOCK, RUN_FILE

__all__ = ["Claim"]


class Claim:
    """What one process holds and has created of a run's folder, see `iidlib.runs.RunFolder`.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = False
        self._made: list[Path] = []
        self._written: dict[Path, tuple[int, int]] = {}

    @contextlib.contextmanager
    def begin(self, files: Callable[[], Mapping[str, str]]) -> Iterator[None]:
        """Creates the folder with its first files, and locks it against other processes within the block.

        Args:
            files: returns their contents by name; called once the folder is locked.

        Raises:
            InputError: if the folder is not empty, is in use, or cannot be written; everything that was written is then
                removed.
        """
        with contextlib.ExitStack() as held:
            try:
                self.refuse_full()  # before a lock is put into what may be the user's own folder
                self._made = make_folders(self.path)
                held.callback(self._remove_made)  # after the lock, a file in the folder, is gone
                held.enter_context(self.lock())
                self.refuse_full()
                self.remove_unfinished()
                for name, content in files().items():
                    self._write_new(name, content)
            except BaseException as error:
                self.take_back()
                if isinstance(error, OSError):
                    reason = error.strerror or error
                    raise InputError(f"cannot write the run folder {self.path}: {reason}") from None
                raise
            yield

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder against other processes until the block, or this process, ends.

        Raises:
            InputError: if another process is using it; the message names that process.
            OSError: if the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.path / LOCK, wait=False))
            except BlockingIOError as holder:
                raise InputError(f"{self.path} is in use by {holder}; wait for it, or give another --out") from None
            except FileExistsError as error:
                raise InputError(str(error.strerror)) from None
            self._held = True
            held.callback(setattr, self, "_held", False)
            yield

    def refuse_full(self) -> None:
        """Raises InputError if a new run would overwrite something; a folder in use has its own message."""
        folder = resolved_path(self.path)
        if not folder.exists() or (folder.is_dir() and not self._holds_something(folder)):
            return
        if folder.is_dir() and not self._held and self._signed(folder / LOCK):
            # held by another process, which the error names, or left by one that died
            with contextlib.suppress(OSError), self.lock():
                pass
        remedy = ", or resume it with --resume" if (folder / "config.yaml").is_file() else ""
        raise InputError(f"{self.path} already exists; nothing was overwritten: give another --out{remedy}")

    @staticmethod
    def _signed(lock: Path) -> bool:
        """Whether a lock names a process; an empty file may be the user's and must stay."""
        return os.path.lexists(lock) and lock.lstat().st_size > 0 and is_lock(lock)

    @staticmethod
    def _holds_something(folder: Path) -> bool:
        """Whether there is more than a lock and what a process left that was killed while writing the settings."""
        return any(
            unfinished(path.name) != "config.yaml" and not (path.name == LOCK and is_lock(path))
            for path in folder.iterdir()
        )

    def _write_new(self, name: str, content: str) -> None:
        """Writes a file and remembers it, so that `take_back` can remove it."""
        path = self.path / name
        atomic_write(path, content)
        self._written[path] = _version(path)

    def take_back(self) -> None:
        """Removes the first files, unless they have been changed, and the folders that were created, if empty."""
        for path, version in self._written.items():
            with contextlib.suppress(OSError):
                if _version(path) == version:
                    path.unlink()
        self._remove_made()

    def _remove_made(self) -> None:
        """Removes the folders that were created, if they are empty."""
        remove_empty(self._made)

    def remove_unfinished(self) -> None:
        """Removes temporary files of processes that were killed while writing; only the lock's holder may call it."""
        for folder, names in ((self.path, RUN_FILE), (self.path / "checkpoints", CHECKPOINT_FILE)):
            for path in folder.glob(".*"):
                if names.fullmatch(unfinished(path.name) or "") and path.is_file():
                    path.unlink(missing_ok=True)


def _version(path: Path) -> tuple[int, int]:
    """Size and modification time of a file, which reveal that it was changed or replaced."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
