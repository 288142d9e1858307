"""Metrics and scores of a run, read from files that may be truncated or corrupted."""

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
    """Parses a JSON object.

    Raises:
        ValueError: for anything else.
        RecursionError: for JSON that is nested too deeply.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def metric_rows(path: Path) -> list[dict[str, Any]]:
    """Logged iterations in a ``metrics.jsonl``, in order; empty if there is no such file.

    Lines that a crash truncated, or that no run wrote, are skipped: a row has a whole number of iterations, above that
    of the row before it, and only numbers.

    Raises:
        InputError: if the file exists but cannot be read.
    """
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return rows
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read {path}: {reason}; move it away to continue without it") from None
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json_object(line)
            if _is_metric_row(row) and (not rows or row["iteration"] > rows[-1]["iteration"]):
                rows.append(row)
    return rows


def score_text(scores: "pd.DataFrame") -> str:
    """Text of a ``scores.json``: one record per evaluated network.

    A folder's name may hold bytes that cannot be decoded in this locale and that the JSON writer rejects; they are
    replaced by readable ones.
    """
    plain = scores.map(lambda value: readable(value) if isinstance(value, str) else value)
    return plain.to_json(orient="records", indent=2) + "\n"


def score_records(path: Path) -> list[dict[str, Any]]:
    """Records of a ``scores.json``, one per evaluated network; empty if there is no such file.

    Raises:
        ValueError: if the file is corrupted, with the reason.
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
    """Whether a row may have been logged by a run; measured values may be any number, infinities included."""
    if not all(map(_is_number, row.values())) or not isinstance(row.get("iteration"), int):
        return False
    return row["iteration"] >= 0 and math.isfinite(row.get("seconds", 0))


def _is_score(record: Mapping[str, Any]) -> bool:
    """Whether a record describes an evaluated network: plain values, among them an accuracy, which may be null."""
    accuracy = record.get("accuracy", "")
    plain = not any(isinstance(value, dict | list) for value in record.values())
    return plain and (accuracy is None or _is_number(accuracy))
