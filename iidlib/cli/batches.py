"""What the commands that run batches share: options for the workers, and the view of a batch while it runs."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from iidlib.bars import view
from iidlib.errors import InputError

if TYPE_CHECKING:
    from iidlib.scale import Batch

__all__ = [
    "Cluster", "Gpus", "Retries", "Scheduler", "SchedulerFile", "Timeout", "time_of", "watched",
]  # fmt: skip

logger = logging.getLogger("iidlib")

Scheduler = Annotated[
    str, typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler to use, e.g. tcp://10.0.0.1:8786.")
]

SchedulerFile = Annotated[
    Path | None, typer.Option("--scheduler-file", metavar="FILE", help="File that names the Dask scheduler to use.")
]

Cluster = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="FILE", help="YAML file of a cluster's queue, whose jobs are the workers."),
]

Retries = Annotated[int, typer.Option("--retries", metavar="N", min=0, help="How often what fails is tried again.")]

Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="Time after which a task is stopped, e.g. 30m.")
]

Gpus = Annotated[
    float, typer.Option("--gpus", metavar="N", min=0, help="GPUs for each task; start workers with --resources GPU=N.")
]

_EVERY = 60.0
"""Seconds between two lines where there is no terminal."""

_SHOWN = 12
"""Maximum number of running, and of failed, tasks that the table names."""

_UNITS = {"s": 1, "m": 60, "h": 3600}


def time_of(text: str, option: str) -> float:
    """Seconds of a duration such as ``8h``, ``30m`` or ``90s``, given to an option."""
    number, unit = text.strip()[:-1], text.strip()[-1:]
    try:
        value = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        raise InputError(f"{option} takes a time, e.g. 8h, 30m or 90s, got {text!r}") from None
    if not 0 < value < math.inf:
        raise InputError(f"{option} must be above zero, got {text!r}")
    return value


def _summary_line(batch: "Batch") -> str:
    """How far a batch is, in one line."""
    parts = [f"{len(batch.finished)} of {batch.total} done", f"{len(batch.running)} running"]
    parts += [f"{len(batch.failed)} failed"] if batch.failed else []
    left = batch.seconds_left
    parts += [f"about {max(1, round(left / 60))} min left"] if left else []
    return ", ".join(parts)


@contextlib.contextmanager
def watched() -> Iterator[Callable[["Batch"], None]]:
    """A function that shows a batch: as one table on a terminal, elsewhere by a line at each change of a number.

    Nothing is shown with ``--quiet``.
    """
    how = view()
    if how == "none":
        yield lambda batch: None
    elif how == "lines":
        yield _Lines().show
    else:
        with Live(console=Console(stderr=True, emoji=False), auto_refresh=False, transient=True) as live:
            yield lambda batch: live.update(_table(batch), refresh=True)


class _Lines:
    """A batch as lines of the log."""

    def __init__(self) -> None:
        self._shown, self._at = (0, 0), -math.inf

    def show(self, batch: "Batch") -> None:
        """Logs a line if a task has ended since the last one, or a minute has passed."""
        if self._at == -math.inf and batch.dashboard:
            logger.info("dashboard: %s", batch.dashboard)
        ended = (len(batch.finished), len(batch.failed))
        if ended == self._shown and time.monotonic() - self._at < _EVERY:
            return
        self._shown, self._at = ended, time.monotonic()
        logger.info("%s", _summary_line(batch))


def _table(batch: "Batch") -> Table:
    """A batch as a table: what runs where, and what has failed."""
    table = Table(title=_summary_line(batch), box=box.SIMPLE, caption=f"dashboard: {escape(batch.dashboard)}")
    for name in ("task", "state", ""):
        table.add_column(name, overflow="fold")
    for name, worker in [*batch.running.items()][:_SHOWN]:
        table.add_row(escape(name), "running", escape(worker))
    for name, ended in [*batch.failed.items()][-_SHOWN:]:
        table.add_row(escape(name), "failed", escape(ended.error[:200]))
    return table
