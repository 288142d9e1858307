"""The claim of a run on its folder: made for the run, kept from other processes, given back where it cannot begin."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from iidlib.errors import InputError
from iidlib.files import atomic_write, make_folders, place_of, remove_empty, unfinished
from iidlib.locks import is_lock, locked
from iidlib.runs.contents import CHECKPOINT_FILE, LOCK, RUN_FILE

__all__ = ["Claim"]


class Claim:
    """What one process holds and has made of a run's folder, see `iidlib.runs.RunFolder`.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = False
        self._made: list[Path] = []
        self._begun: dict[Path, tuple[int, int]] = {}

    @contextlib.contextmanager
    def begin(self, files: Callable[[], Mapping[str, str]]) -> Iterator[None]:
        """Makes the folder with its first files, and keeps it from other processes for as long as the block lasts.

        Args:
            files: gives their contents by name, once the folder is held.

        Raises:
            InputError: if there is something else, the folder is in use, or it cannot be written; what was written is
                taken back.
        """
        with contextlib.ExitStack() as held:
            try:
                self.refuse_full()  # before a lock is put into what may be a folder of the user's
                self._made = make_folders(self.path)
                held.callback(self._remove_made)  # runs after the lock is gone, which is a file in the folder
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
        """Keeps other processes from working in the folder, for as long as the block or this process lasts.

        Raises:
            InputError: if another process works there; it is named.
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
        """Raises InputError where there is something that a new run must not write over; in use is told as such."""
        place = place_of(self.path)
        if not place.exists() or (place.is_dir() and not self._holds_something(place)):
            return
        if place.is_dir() and not self._held and self._signed(place / LOCK):
            # held by another process, which it names, or left by one that died
            with contextlib.suppress(OSError), self.lock():
                pass
        begun = ", or resume it with --resume" if (place / "config.yaml").is_file() else ""
        raise InputError(f"{self.path} exists already; nothing was overwritten: give another --out{begun}")

    @staticmethod
    def _signed(lock: Path) -> bool:
        """Whether a process has put its name into a lock; an empty file may be the user's, and stays."""
        return os.path.lexists(lock) and lock.lstat().st_size > 0 and is_lock(lock)

    @staticmethod
    def _holds_something(place: Path) -> bool:
        """Whether there is more than a lock, and what a process left that was killed while it wrote the settings."""
        return any(
            unfinished(path.name) != "config.yaml" and not (path.name == LOCK and is_lock(path))
            for path in place.iterdir()
        )

    def _write_new(self, name: str, content: str) -> None:
        """Writes a file and remembers it, so that `take_back` can remove it."""
        path = self.path / name
        atomic_write(path, content)
        self._begun[path] = _version(path)

    def take_back(self) -> None:
        """Removes the first files, unless somebody has changed them, and the folders that were made, where empty."""
        for path, written in self._begun.items():
            with contextlib.suppress(OSError):
                if _version(path) == written:
                    path.unlink()
        self._remove_made()

    def _remove_made(self) -> None:
        """Removes the folders that were made, where they are empty."""
        remove_empty(self._made)

    def remove_unfinished(self) -> None:
        """Removes the temporary files of processes that were killed while writing; of use to whoever holds the lock."""
        for folder, names in ((self.path, RUN_FILE), (self.path / "checkpoints", CHECKPOINT_FILE)):
            for path in folder.glob(".*"):
                if names.fullmatch(unfinished(path.name) or "") and path.is_file():
                    path.unlink(missing_ok=True)


def _version(path: Path) -> tuple[int, int]:
    """Length and time of a file, by which one that was changed or put in its place is told apart."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
