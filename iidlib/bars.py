"""How far long work has come: a progress bar on a terminal, a line every minute where there is none."""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bar", "bar", "counted", "hidden"]

logger = logging.getLogger("iidlib")

_Item = TypeVar("_Item")

EVERY = 60.0
"""Seconds between the lines that stand for a progress bar."""

_hiding: list[None] = []
"""One entry for each block of `hidden` that is open."""


class Bar:
    """How far one piece of work has come.

    Args:
        drawn: the bar on the screen, if there is one.
        what: is done.
        total: units in all; None if nobody knows.
        unit: what is counted.
        done: units that were done before.
        lines: log a line every minute.
    """

    def __init__(
        self, drawn: "tqdm[Any] | None", what: str, total: int | None, unit: str, done: int, *, lines: bool
    ) -> None:
        self._drawn, self._what, self._total, self._unit, self._lines = drawn, what, total, unit, lines
        self._done = self._before = done
        self._begun = self._told = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Counts what was done since the last call."""
        self._done += steps
        if self._drawn is not None:
            self._drawn.update(steps)
        elif self._lines and self._done != self._total and time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            logger.info("%s: %s", self._what, self._so_far(self._told - self._begun))

    def note(self, text: str) -> None:
        """Shows some words behind the bar, such as the last loss."""
        if self._drawn is not None:
            self._drawn.set_postfix_str(text, refresh=False)

    def rename(self, what: str) -> None:
        """Says what the work has gone over to."""
        self._what = what
        if self._drawn is not None:
            self._drawn.set_description(what)

    def _so_far(self, seconds: float) -> str:
        done, total, unit = self._done, self._total, self._unit + "s"
        if self._unit == "B":
            done, total, unit = done // 1_000_000, total and total // 1_000_000, "MB"
        far = f"{done} {unit}" if total is None else f"{done} of {total} {unit}"
        own = self._done - self._before
        if self._total is None or own <= 0:
            return far
        left = seconds / own * (self._total - self._done)
        return f"{far}, about {math.ceil(left / 60)} min left"


@contextlib.contextmanager
def bar(what: str, total: int | None, unit: str, *, done: int = 0, shown: bool | None = None) -> Iterator[Bar]:
    """Within the block, shows how far the work has come.

    Args:
        what: is done, such as "evaluating dm".
        total: units in all; None if nobody knows.
        unit: what is counted, in the singular; "B" for bytes.
        done: units that were done before.
        shown: True draws a bar whatever stderr is, as in a notebook; False shows nothing; None draws one on a terminal
            that can move its cursor, and elsewhere logs a line every minute. Inside `hidden`, and in a process without
            stderr, nothing is shown.
    """
    if _hiding or sys.stderr is None:  # closed by the shell, or never there
        shown = False
    if not (_on_terminal() if shown is None else shown):
        yield Bar(None, what, total, unit, done, lines=shown is None)
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=what, unit=unit, unit_scale=unit == "B") as drawn:
        yield Bar(drawn, what, total, unit, done, lines=False)


def _on_terminal() -> bool:
    """Whether stderr is a terminal that can move its cursor and has room for a bar."""
    if not (hasattr(sys.stderr, "isatty") and sys.stderr.isatty()) or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).lines != 0  # a container's may have no size
    except (OSError, ValueError, AttributeError):
        return True


def counted(items: Sequence[_Item], what: str, unit: str) -> Iterator[_Item]:
    """The items one by one, each counted as done when the next is asked for; arguments as of `bar`."""
    with bar(what, len(items), unit) as told:
        for item in items:
            yield item
            told.advance()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Within the block nothing is shown of how far work has come, in all of the process."""
    _hiding.append(None)
    try:
        yield
    finally:
        _hiding.pop()
