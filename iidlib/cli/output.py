"""What a command prints: notes on the way and its result; ``--quiet``, ``--json`` and narrow terminals.

What a command says goes to stdout. Under ``--json`` it goes to stderr, and under ``--quiet`` nowhere; what the command
was asked for comes through `result` and `report`, and reaches stdout all the same.
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
"""Where tables are printed."""


@dataclass
class _Heard:
    """What of a command is heard."""

    stdout: TextIO | None = None
    """The stdout of the process, where notes go elsewhere."""
    quiet: bool = False
    as_json: bool = False


_heard = _Heard()


@contextlib.contextmanager
def _notes_to(stream: TextIO) -> Iterator[None]:
    """Within the block, what is printed goes to a stream; the result still goes to stdout."""
    before = _heard.stdout
    _heard.stdout = before or sys.stdout
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        _heard.stdout = before


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Within the block, only warnings, errors and the result are heard."""
    level = logger.level
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, _notes_to(nowhere), hidden():
        logger.setLevel(logging.WARNING)
        _heard.quiet = True
        try:
            yield
        finally:
            logger.setLevel(level)
            _heard.quiet = False


@contextlib.contextmanager
def _result_as_json() -> Iterator[None]:
    """Within the block, notes go to stderr, and the result is one line of JSON."""
    with _notes_to(sys.stdout if _heard.quiet else sys.stderr):
        _heard.as_json = True
        try:
            yield
        finally:
            _heard.as_json = False


def _listen(ctx: typer.Context, param: Any, asked: bool) -> bool:
    """Turns on what an option of the command asks for, until the command ends."""
    if asked and not ctx.resilient_parsing:
        resource: Any = ctx
        resource.with_resource(_without_notes() if param.name == "quiet" else _result_as_json())
    return asked


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_listen, help="Print the result only: no notes, no progress; warnings stay on stderr."
    ),
]

AsJson = Annotated[
    bool,
    typer.Option("--json", callback=_listen, help="Print the result as one JSON object; all else goes to stderr."),
]


@contextlib.contextmanager
def result() -> Iterator[None]:
    """Within the block, what is printed is the command's result: heard under ``--quiet`` too."""
    if _heard.stdout is None or _heard.as_json:
        yield
        return
    with contextlib.redirect_stdout(_heard.stdout):
        yield


def report(line: object | None, facts: Mapping[str, object]) -> None:
    """Prints the result once more for programs; nothing without ``--json`` or ``--quiet``.

    Args:
        line: what ``--quiet`` prints of it; None where its tables say all.
        facts: what ``--json`` prints; numbers that are not finite become null.
    """
    if _heard.stdout is None:
        return
    if _heard.as_json:
        print(json.dumps(_for_json(facts)), file=_heard.stdout, flush=True)
    elif line is not None:
        print(line, file=_heard.stdout, flush=True)


def _for_json(value: Any) -> Any:
    """A value that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _for_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def columns_needed(columns: "Mapping[str, Kind]", rows: Sequence[Sequence[str]]) -> int:
    """Letters that the columns of a table take at least, without frame and space between them."""
    longest = (max(map(len, cells)) for cells in zip(columns, *rows, strict=True))
    return sum(
        min(most, SHORTEST) if kind == "text" else most for kind, most in zip(columns.values(), longest, strict=True)
    )


Kind = Literal["text", "name", "number"]
"""What a column holds: texts, which may be wrapped; names and numbers, which stay whole; numbers stand to the right."""


def print_table(columns: Mapping[str, Kind], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints a table whose numbers stay whole.

    In a narrow terminal texts are wrapped, then the frame goes, then each row becomes some lines.

    Args:
        columns: names, and what they hold.
        rows: a text for each column.
        title: above it.
    """
    title_text = escape(title) if title else None
    needed = columns_needed(columns, rows)
    if needed + 3 * len(columns) + 1 <= console.width:
        table = Table(title=title_text)
    elif needed + len(columns) <= console.width:  # without frame and lines
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
"""Letters that a text keeps on a line of a narrow table; with less room there is no table."""
