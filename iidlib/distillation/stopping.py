"""How a run is stopped: a first signal lets it finish its iteration and keep what it has."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Stopped", "signals_noted"]


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal; the iteration was finished and a checkpoint written.

    Attributes:
        signal: the signal's number.
        iteration: iterations done.
        folder: the run's folder, or None where nothing is kept.
    """

    def __init__(self, signal_number: int, iteration: int, folder: Path | None) -> None:
        kept = f"kept in {folder}" if folder else "nothing kept, as no out folder was given"
        super().__init__(f"stopped after {iteration} iterations; {kept}")
        self.signal, self.iteration, self.folder = signal_number, iteration, folder


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Within the block, a first SIGINT or SIGTERM is only noted in the list; a second one acts as usual."""
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
