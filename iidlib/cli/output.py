"""Output of the commands: notes and results, ``--quiet``, ``--json``, and tables for narrow terminals.

Notes go to stdout by default, to stderr with ``--json``, and nowhere with ``--quiet``. The result, printed through
`result` and `report`, reaches stdout in every case.
"""

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iidlib.bars import hidden

__all__ = [
    "AsJson", "Kind", "Quiet", "columns_needed", "console", "print_table", "report", "result",
]  # fmt: skip

logger = logging.getLogger("iidlib")

console = Console(emoji=False)
"""Console that tables are printed to."""


@dataclass
class _Routing:
    """Destination of a command's output."""

    stdout: TextIO | None = None
    """Stdout of the process while notes are redirected, else None."""
    quiet: bool = False
    as_json: bool = False


_routing = _Routing()


@contextlib.contextmanager
def _notes_to(stream: TextIO) -> Iterator[None]:
    """Redirects notes to a stream within the block; the result still goes to stdout."""
    before = _routing.stdout
    _routing.stdout = before or sys.stdout
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        _routing.stdout = before


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Silences everything but warnings, errors and the result within the block."""
    level = logger.level
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, _notes_to(nowhere), hidden():
        logger.setLevel(logging.WARNING)
        _routing.quiet = True
        try:
            yield
        finally:
            logger.setLevel(level)
            _routing.quiet = False


@contextlib.contextmanager
def _result_as_json() -> Iterator[None]:
    """Redirects notes to stderr within the block and prints the result as one line of JSON."""
    with _notes_to(sys.stdout if _routing.quiet else sys.stderr):
        _routing.as_json = True
        try:
            yield
        finally:
            _routing.as_json = False


def _apply(ctx: typer.Context, param: Any, asked: bool) -> bool:
    """Applies ``--quiet`` or ``--json`` until the command ends."""
    if asked and not ctx.resilient_parsing:
        resource: Any = ctx
        resource.with_resource(_without_notes() if param.name == "quiet" else _result_as_json())
    return asked


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_apply, help="Print only the result; warnings still go to stderr."),
]

AsJson = Annotated[
    bool,
    typer.Option("--json", callback=_apply, help="Print the result as one JSON object; notes go to stderr."),
]


@contextlib.contextmanager
def result() -> Iterator[None]:
    """Marks what is printed within the block as the command's result, which ``--quiet`` keeps."""
    if _routing.stdout is None or _routing.as_json:
        yield
        return
    with contextlib.redirect_stdout(_routing.stdout):
        yield


def report(line: object | None, facts: Mapping[str, object]) -> None:
    """Prints the result for programs; does nothing without ``--json`` or ``--quiet``.

    Args:
        line: line that ``--quiet`` prints; None if the tables already show the result.
        facts: object that ``--json`` prints; numbers that are not finite become null.
    """
    if _routing.stdout is None:
        return
    if _routing.as_json:
        print(json.dumps(_for_json(facts)), file=_routing.stdout, flush=True)
    elif line is not None:
        print(line, file=_routing.stdout, flush=True)


def _for_json(value: Any) -> Any:
    """Converts a value to one that JSON can represent."""
    if isinstance(value, Mapping):
        return {str(key): _for_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    if hasattr(value, "item"):  # numpy scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def columns_needed(columns: "Mapping[str, Kind]", rows: Sequence[Sequence[str]]) -> int:
    """Minimum width of a table's columns in characters, without borders and padding."""
    longest = (max(map(len, cells)) for cells in zip(columns, *rows, strict=True))
    return sum(
        min(most, SHORTEST) if kind == "text" else most for kind, most in zip(columns.values(), longest, strict=True)
    )


Kind = Literal["text", "name", "number"]
"""Kind of a column: text, which may be wrapped; names and numbers, which are not; numbers are right-aligned."""


def print_table(columns: Mapping[str, Kind], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints a table without ever cutting a number.

    In a narrow terminal text is wrapped first; then the borders are dropped; then each row becomes a list of lines.

    Args:
        columns: names and kinds of the columns.
        rows: one text per column.
        title: title above the table.
    """
    title_text = escape(title) if title else None
    needed = columns_needed(columns, rows)
    if needed + 3 * len(columns) + 1 <= console.width:
        table = Table(title=title_text)
    elif needed + len(columns) <= console.width:  # without borders
        table = Table(title=title_text, box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    else:
        entries = [
            "\n".join(f"{name}: {text}" for name, text in zip(columns, row, strict=True) if text) for row in rows
        ]
        typer.echo("\n\n".join([title, *entries] if title else entries))
        return
    for name, kind in columns.items():
        justify: Literal["left", "right"] = "right" if kind == "number" else "left"
        table.add_column(name, justify=justify, no_wrap=kind != "text", overflow="fold")
    for row in rows:
        table.add_row(*(escape(text) for text in row))
    console.print(table)


SHORTEST = 10
"""Minimum width of a text column in characters; with less room, rows are printed as lines."""
