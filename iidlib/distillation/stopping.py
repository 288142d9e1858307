"""Stopping a run: after a first signal it finishes the current iteration and saves a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Stopped", "signals_noted"]


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal, after the iteration was finished and a checkpoint written.

    Attributes:
        signal: number of the signal.
        iteration: number of iterations done.
        folder: folder of the run, or None if nothing is saved.
    """

    def __init__(self, signal_number: int, iteration: int, folder: Path | None) -> None:
        kept = f"kept in {folder}" if folder else "nothing kept, as no out folder was given"
        super().__init__(f"stopped after {iteration} iterations; {kept}")
        self.signal, self.iteration, self.folder = signal_number, iteration, folder


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Within the block, a first SIGINT or SIGTERM is only added to the list; a second one acts as usual."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
