"""Output of ``iid data check folder:PATH``."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from iidlib.cli.output import report, result
from iidlib.errors import InputError
from iidlib.names import on_one_line

if TYPE_CHECKING:
    from iidlib.data import FolderReport
    from iidlib.data.inspection import Range

__all__ = ["print_folder_report"]

MOST_LINES = 20
"""Maximum number of classes, and of pairs of images, that are printed; ``--json`` lists all of them."""


def print_folder_report(found: "FolderReport") -> None:
    """Prints the report on a folder of images.

    Raises:
        InputError: if the folder cannot be used as it is.
    """
    report(None, dataclasses.asdict(found) | {"ok": found.ok})
    with result():
        for line in _lines(found):
            typer.echo(on_one_line(line))
    if found.unreadable:
        count = "1 file or folder" if len(found.unreadable) == 1 else f"{len(found.unreadable)} files or folders"
        also = f"; also, {found.problem}" if found.problem else ""
        raise InputError(f"{found.name}: {count} cannot be read (listed above); replace or remove them{also}")
    if found.problem:
        raise InputError(found.problem)


def _lines(found: "FolderReport") -> Iterator[str]:
    """Lines of the report; unreadable files are all listed."""
    for path, reason in found.unreadable.items():
        yield f"cannot be read: {path} ({reason})"
    if not found.summary:
        return
    yield found.summary
    classes = [f"  {name}: {count} for training, {found.test[name]} for testing" for name, count in found.train.items()]
    yield from _first(classes)
    if found.width and found.height:
        sides = [f"{_sides(found.width)} wide", f"{_sides(found.height)} high"]
        yield f"images are {' and '.join(sides)}; modes: {_tally(found.modes)}; formats: {_tally(found.formats)}"
    duplicates = {
        "in both the training and the test set": found.leaks,
        "in two classes": found.contradictions,
    }
    for where, pairs in duplicates.items():
        if pairs:
            yield f"duplicate images {where}: {len(pairs)}"
        yield from _first(
            [f"  {twin.first} and {twin.second} ({'identical' if twin.same else 'nearly identical'})" for twin in pairs]
        )
    if found.repeated:
        yield f"duplicate images within a class: {found.repeated}"
    yield from (f"note: {note}" for note in (*found.left_out, *found.notes))
    if found.ok:
        yield f"{found.name}: ready to use"


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"  and {more} more (listed by --json)"] if more > 0 else [])]


def _sides(side: "Range") -> str:
    if side.least == side.most:
        return f"{side.most} pixels"
    return f"{side.least} to {side.most} pixels (median {side.median:g})"


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
