"""Tables of results: CSV files to which runs add their rows, and those that come with a checkout."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from iidlib import files
from iidlib.errors import InputError
from iidlib.files import PACKAGE, atomic_write, checkout, user_path
from iidlib.locks import check_lock, locked

__all__ = ["append_results", "append_rows", "check_results", "check_writable", "read_results", "results_dir", "rows_of"]

_NEEDED = ("dataset", "method", "accuracy")


def results_dir() -> Path:
    """The folder of measured numbers that comes with a checkout, ``data/results``.

    Raises:
        InputError: where the package was installed without it.
    """
    folder = (checkout() or PACKAGE.parent) / "data" / "results"
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}: measured results come with a checkout of the repository, not with a wheel"
        )
    return folder


def rows_of(name: str, **only: object) -> pd.DataFrame:
    """Rows of a table that comes with a checkout, those of one kind.

    A table may hold several data sets, networks and sizes, and a mean over all of them means nothing.

    Args:
        name: the file in `results_dir`, without its ending.
        **only: for each column, the value that a row must have.

    Returns:
        The rows in their order, numbers as numbers; settings of the scale's own are "".

    Raises:
        InputError: where the package was installed without its tables.
        KeyError: for a column that the table lacks.
    """
    rows = pd.read_csv(results_dir() / f"{name}.csv", dtype={"settings": str})
    if "settings" in rows:
        rows["settings"] = rows["settings"].fillna("")
    for column, value in only.items():
        rows = rows[rows[column] == value]
    return rows.reset_index(drop=True)


def check_writable(path: Path, option: str = "--out") -> None:
    """Finds out before a long run that a file could not be written after it; leaves nothing behind.

    Args:
        path: the file; folders above it may be absent.
        option: what the user gave it with, for the message.

    Raises:
        InputError: if it cannot be written.
    """
    path = user_path(path)
    try:
        files.check_writable(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; give another {option}") from None


def read_results(path: Path, needed: Sequence[str] = _NEEDED) -> pd.DataFrame:
    """The rows of a table of results as text, exactly as they stand in it; none where there is no file.

    Args:
        path: the CSV file.
        needed: columns without which it is another kind of table.

    Raises:
        InputError: if the file is not a table of results.
    """
    path = user_path(path)
    if not path.exists():
        return pd.DataFrame()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
        for name in needed if header else ():
            if header.count(name) != 1:
                raise ValueError(f"its header has no column {name!r}")
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise ValueError(f"its row {number} has {len(row)} values for {len(header)} columns")
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} is not a table of results ({reason}); it stays as it is: give another --results"
        ) from None
    return pd.DataFrame(rows, columns=header)


def check_results(path: Path, needed: Sequence[str] = _NEEDED) -> None:
    """Finds out before a long run that rows could not be added after it.

    Args:
        path: the CSV file.
        needed: columns without which it is another kind of table.

    Raises:
        InputError: if the file cannot be written, or holds something else than a table of results.
    """
    check_writable(path, "--results")
    read_results(path, needed)
    try:
        check_lock(_lock_of(user_path(path).resolve()))
    except (FileExistsError, PermissionError) as error:
        raise InputError(str(error.strerror)) from None


def append_results(path: Path, scores: pd.DataFrame) -> None:
    """Adds rows of accuracies to a table of results, as `append_rows` does."""
    append_rows(path, scores, needed=_NEEDED)


def append_rows(path: Path, rows: pd.DataFrame, *, needed: Sequence[str]) -> None:
    """Adds rows to a table, made where absent.

    Earlier rows stay as they are, columns that one side lacks stay empty; rows that another process adds at the same
    time are kept.

    Args:
        path: the CSV file.
        rows: what is added.
        needed: columns without which the file is another kind of table.

    Raises:
        InputError: if the file holds something else than such a table.
        OSError: if it cannot be written.
    """
    path = user_path(path).resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock_of(path)):
        table = pd.concat([read_results(path, needed), rows.astype(object)], ignore_index=True)
        atomic_write(path, table.to_csv(index=False))


def _lock_of(path: Path) -> Path:
    """The lock of a table: a file of its own, because the table is replaced."""
    return path.with_name(f".{path.name}.lock")
