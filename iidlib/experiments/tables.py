"""Tables of results: CSV files that runs append to, and those that come with a checkout."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pandas as pd

from iidlib import files
from iidlib.errors import InputError
from iidlib.files import PACKAGE, atomic_write, checkout, user_path
from iidlib.locks import check_lock, locked

__all__ = ["append_results", "append_rows", "check_results", "check_writable", "read_results", "results_dir", "rows_of"]

_NEEDED = ("dataset", "method", "accuracy")

_MEASUREMENT = (
    "dataset", "method", "ipc", "scale", "seed", "network", "networks_seed", "evaluation_seed", "step", "accuracy",
    "seconds",
)  # fmt: skip
"""Columns that identify the training of one network."""


def results_dir() -> Path:
    """Folder of measured results in a checkout, ``data/results``.

    Raises:
        InputError: if the package was installed without it.
    """
    folder = (checkout() or PACKAGE.parent) / "data" / "results"
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}: measured results come with a checkout of the repository, not with a wheel"
        )
    return folder


def rows_of(name: str, **only: object) -> pd.DataFrame:
    """Selects rows of one kind from a table that comes with a checkout.

    A table may hold several datasets, networks and sizes, and a mean over all of them is meaningless.

    Args:
        name: name of the file in `results_dir`, without its suffix.
        **only: required values, by column.

    Returns:
        The rows in order, with numbers as numbers; settings are "" if they are the scale's own.

    Raises:
        InputError: if the package was installed without its tables.
        KeyError: for a column that the table does not have.
    """
    rows = pd.read_csv(results_dir() / f"{name}.csv", dtype={"settings": str})
    if "settings" in rows:
        rows["settings"] = rows["settings"].fillna("")
    for column, value in only.items():
        rows = rows[rows[column] == value]
    return rows.reset_index(drop=True)


def check_writable(path: Path, option: str = "--out") -> None:
    """Checks before a long run that a file can be written after it; leaves nothing behind.

    Args:
        path: the file; its parent folders need not exist.
        option: the option that the path came from, for the message.

    Raises:
        InputError: if it cannot be written.
    """
    path = user_path(path)
    try:
        files.check_writable(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; give another {option}") from None


def read_results(path: Path, needed: Sequence[str] = _NEEDED) -> pd.DataFrame:
    """Rows of a table of results as text, exactly as in the file; empty if there is no file.

    Args:
        path: the CSV file.
        needed: columns that identify a table of results.

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
        if len(set(header)) < len(header):
            raise ValueError("its header has a column twice")
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise ValueError(f"its row {number} has {len(row)} values for {len(header)} columns")
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} is not a table of results ({reason}); it was left unchanged: give another --results"
        ) from None
    return pd.DataFrame(rows, columns=header)


def check_results(path: Path, needed: Sequence[str] = _NEEDED) -> None:
    """Checks before a long run that rows can be appended after it.

    Args:
        path: the CSV file.
        needed: columns that identify a table of results.

    Raises:
        InputError: if the file cannot be written, or is not a table of results.
    """
    check_writable(path, "--results")
    read_results(path, needed)
    try:
        check_lock(_lock_of(user_path(path).resolve()))
    except (FileExistsError, PermissionError) as error:
        raise InputError(str(error.strerror)) from None


def append_results(path: Path, scores: pd.DataFrame) -> None:
    """Appends rows of accuracies to a table of results, see `append_rows`.

    A network whose row an interrupted evaluation has already appended is not added again: its training, which took
    exactly as many seconds, is the same.
    """
    append_rows(path, scores, needed=_NEEDED, once=_MEASUREMENT)


def append_rows(path: Path, rows: pd.DataFrame, *, needed: Sequence[str], once: Sequence[str] = ()) -> None:
    """Appends rows to a table, which is created if it does not exist.

    Existing rows do not change, and columns that one side lacks are left empty; rows that another process appends at
    the same time are kept.

    Args:
        path: the CSV file.
        rows: the rows to append.
        needed: columns that identify such a table.
        once: columns of a measurement; a row that equals an existing one in all of them is not appended, provided both
            sides have ``seconds``.

    Raises:
        InputError: if the file is not such a table.
        OSError: if it cannot be written.
    """
    path = user_path(path).resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock_of(path)):
        known = read_results(path, needed)
        table = pd.concat([known, _new(known, rows, once).astype(object)], ignore_index=True)
        atomic_write(path, table.to_csv(index=False))


def _new(known: pd.DataFrame, rows: pd.DataFrame, once: Sequence[str]) -> pd.DataFrame:
    """The rows that are not in a table yet, as its text shows them."""
    columns = [name for name in once if name in known and name in rows]
    if "seconds" not in columns:
        return rows
    written = rows[columns].astype(object).to_csv(index=False)  # as they will be written
    text = pd.read_csv(StringIO(written), dtype=str, keep_default_na=False)
    old = set(known[columns].itertuples(index=False, name=None))
    lines = zip(text.itertuples(index=False, name=None), text["seconds"], strict=True)
    return rows[[line not in old or not seconds for line, seconds in lines]]


def _lock_of(path: Path) -> Path:
    """Lock of a table: a separate file, because the table itself is replaced."""
    return path.with_name(f".{path.name}.lock")
