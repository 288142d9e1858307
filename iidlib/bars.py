"""Progress of long operations: a bar on a terminal, elsewhere a log line every minute."""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bar", "bar", "counted", "hidden", "view"]

logger = logging.getLogger("iidlib")

_Item = TypeVar("_Item")

EVERY = 60.0
"""Seconds between the log lines that replace a progress bar."""

_hiding: list[None] = []
"""One entry for each open `hidden` block."""


class Bar:
    """Progress of one operation.

    Args:
        drawn: the bar on the screen, if there is one.
        what: name of the operation.
        total: number of units; None if unknown.
        unit: what is counted.
        done: units that are already done.
        lines: log a line every minute.
    """

    def __init__(
        self, drawn: "tqdm[Any] | None", what: str, total: int | None, unit: str, done: int, *, lines: bool
    ) -> None:
        self._drawn, self._what, self._total, self._unit, self._lines = drawn, what, total, unit, lines
        self._done = self._initial = done
        self._started = self._logged = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Adds the units done since the last call."""
        self._done += steps
        if self._drawn is not None:
            self._drawn.update(steps)
        elif self._lines and self._done != self._total and time.monotonic() - self._logged >= EVERY:
            self._logged = time.monotonic()
            logger.info("%s: %s", self._what, self._progress(self._logged - self._started))

    def skip(self, steps: int) -> None:
        """Adds units that were done before, which say nothing about the time that the others take."""
        self._done += steps
        self._initial += steps
        if self._drawn is not None:
            self._drawn.initial += steps
            self._drawn.n += steps
            self._drawn.refresh()

    def note(self, text: str) -> None:
        """Shows a text after the bar, such as the last loss."""
        if self._drawn is not None:
            self._drawn.set_postfix_str(text, refresh=False)

    def rename(self, what: str) -> None:
        """Changes the name of the operation."""
        self._what = what
        if self._drawn is not None:
            self._drawn.set_description(what)

    def _progress(self, seconds: float) -> str:
        done, total, unit = self._done, self._total, self._unit + "s"
        if self._unit == "B":
            done, total, unit = done // 1_000_000, total and total // 1_000_000, "MB"
        text = f"{done} {unit}" if total is None else f"{done} of {total} {unit}"
        since_start = self._done - self._initial
        if self._total is None or since_start <= 0:
            return text
        left = seconds / since_start * (self._total - self._done)
        return f"{text}, about {math.ceil(left / 60)} min left"


@contextlib.contextmanager
def bar(what: str, total: int | None, unit: str, *, done: int = 0, shown: bool | None = None) -> Iterator[Bar]:
    """Shows the progress of the operation in the block.

    Args:
        what: name of the operation, such as "evaluating dm".
        total: number of units; None if unknown.
        unit: what is counted, in the singular; "B" for bytes.
        done: units that are already done.
        shown: True always draws a bar, as in a notebook; False shows nothing; None draws a bar on a terminal that can
            move its cursor and logs a line every minute elsewhere. Nothing is shown inside `hidden` or in a process
            without stderr.
    """
    how = view()
    if how == "none":
        shown = False
    if not (how == "drawn" if shown is None else shown):
        yield Bar(None, what, total, unit, done, lines=shown is None)
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=what, unit=unit, unit_scale=unit == "B") as drawn:
        yield Bar(drawn, what, total, unit, done, lines=False)


def view() -> Literal["drawn", "lines", "none"]:
    """How progress is to be shown: drawn on a terminal, as lines of text, or not at all."""
    if _hiding or sys.stderr is None:  # closed by the shell, or never opened
        return "none"
    return "drawn" if _on_terminal() else "lines"


def _on_terminal() -> bool:
    """Whether stderr is a terminal that can move its cursor and has room for a bar."""
    if not (hasattr(sys.stderr, "isatty") and sys.stderr.isatty()) or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).lines != 0  # in a container it may have no size
    except (OSError, ValueError, AttributeError):
        return True


def counted(items: Sequence[_Item], what: str, unit: str) -> Iterator[_Item]:
    """Yields the items and counts each as done when the next one is requested; arguments as for `bar`."""
    with bar(what, len(items), unit) as progress:
        for item in items:
            yield item
            progress.advance()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Hides all progress in the process within the block."""
    _hiding.append(None)
    try:
        yield
    finally:
        _hiding.pop()
