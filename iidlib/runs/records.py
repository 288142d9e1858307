"""What a run has logged and how it was evaluated, read from files that may be cut short or corrupted."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iidlib.errors import InputError, one_line
from iidlib.files import readable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["json_object", "metric_rows", "score_records", "score_text"]


def json_object(text: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: for anything else.
        RecursionError: for lists without end in lists.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def metric_rows(path: Path) -> list[dict[str, Any]]:
    """The logged iterations in a ``metrics.jsonl``, in order; none where there is no such file.

    A line that a crash cut short, or that is none of a run's, is left out: a row has a whole number of iterations,
    above that of the row before it, and numbers.

    Raises:
        InputError: if the file is there and cannot be read.
    """
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return rows
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; move it away to do without it") from None
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json_object(line)
            if _is_metric_row(row) and (not rows or row["iteration"] > rows[-1]["iteration"]):
                rows.append(row)
    return rows


def score_text(scores: "pd.DataFrame") -> str:
    """The text of a ``scores.json``: a record for each evaluated network.

    A folder's name may hold bytes that the locale does not know, which the writer of JSON refuses; they are made
    readable.
    """
    plain = scores.map(lambda value: readable(value) if isinstance(value, str) else value)
    return plain.to_json(orient="records", indent=2) + "\n"


def score_records(path: Path) -> list[dict[str, Any]]:
    """The records of a ``scores.json``, one for each evaluated network; none where there is no such file.

    Raises:
        ValueError: for a corrupted file, with the reason.
    """
    try:
        records = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, RecursionError) as error:
        raise ValueError(one_line(error)) from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("it is not a list of records")
    for record in records:
        if not _is_score(record):
            raise ValueError(f"{str(record)[:80]} is not the record of an evaluated network")
    return records


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_metric_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is one that a run has logged; what the step measured may be any number, infinities included."""
    if not all(map(_is_number, row.values())) or not isinstance(row.get("iteration"), int):
        return False
    return row["iteration"] >= 0 and math.isfinite(row.get("seconds", 0))


def _is_score(record: Mapping[str, Any]) -> bool:
    """Whether a record is an evaluated network's: one value for each column, and an accuracy, which may be null."""
    accuracy = record.get("accuracy", "")
    plain = not any(isinstance(value, dict | list) for value in record.values())
    return plain and (accuracy is None or _is_number(accuracy))
