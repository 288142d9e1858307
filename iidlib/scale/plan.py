"""The points of a sweep: their folders, what has become of each, and the table of all.

A point that has finished is known by its fingerprint: the notebook's code, the parameters, the data and the library.
"""

import hashlib
import importlib.util
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from secrets import token_hex
from typing import Any

import pandas as pd
import yaml

from iidlib.experiments.notebook_source import code_of
from iidlib.files import atomic_write
from iidlib.runs.environment import source_digest
from iidlib.scale.batch import Batch
from iidlib.scale.summary import write_html
from iidlib.scale.task import Ended, Task, files_of, place_for

__all__ = ["Plan", "Point"]

logger = logging.getLogger("iidlib")

NOTE = "point.json"
"""File in a point's folder that says what has become of it."""

STATUS = "status.json"
"""File in a sweep's folder that says how far it is."""


@dataclass
class Point:
    """A point of a sweep."""

    number: int
    parameters: dict[str, Any]
    fingerprint: str
    folder: Path
    notebook: str
    done: dict[str, Any] | None = None
    """The note of a point that has finished."""
    failure: dict[str, Any] | None = None
    """The note of a point that has failed."""
    token: str = ""
    """Name of the file by which a worker recognises the folder, while the point is executed."""

    @property
    def name(self) -> str:
        """Name of the point, and of its folder."""
        return self.folder.name

    def begin(self, task: Task) -> None:
        """Makes the folder ready; one that another notebook or other parameters have left is moved aside."""
        known = _note(self.folder)
        if known and known.get("fingerprint") != self.fingerprint:
            aside = _unused(self.folder.parent / "replaced", self.name)
            aside.parent.mkdir(exist_ok=True)
            self.folder.replace(aside)
            logger.info("%s has changed and is executed again; it is now in %s", self.name, aside)
        self.folder.mkdir(exist_ok=True)
        for path, content in task.inputs.items():
            if not (self.folder / path).is_file() or (self.folder / path).read_bytes() != content:
                atomic_write(self.folder / path, content)
        self._write_note(status="begun")

    def task(self, notebook: Path, takes_out: bool, timeout: float | None, apart: bool) -> Task:
        """The task of executing the notebook.

        Args:
            notebook: the notebook.
            takes_out: whether it has a parameter ``out``.
            timeout: seconds after which it is stopped.
            apart: whether a worker may lack the folder, so that it receives what an earlier execution has left there.
        """
        extra = {"out": "{folder}"} if takes_out and "out" not in self.parameters else {}
        options = [part for name, value in extra.items() for part in ("-r", name, value)]
        command = ("papermill", f".source-{notebook.name}", notebook.name, "-f", "parameters.yaml", *options)
        self.token = f".task-{token_hex(8)}"
        kept = self._left() if apart else {}
        inputs = kept | {
            f".source-{notebook.name}": notebook.read_bytes(),
            "parameters.yaml": yaml.safe_dump(self.parameters, allow_unicode=True).encode(),
            self.token: b"",
        }
        commands = ((*command, "--kernel", "python3", "--no-progress-bar"),)
        return Task(self.name, commands, self.folder, self.token, inputs, timeout)

    def _left(self) -> dict[str, bytes]:
        """Files that an execution of the same point has left, such as checkpoints."""
        if _note(self.folder).get("fingerprint") != self.fingerprint:
            return {}
        return {name: content for name, content in files_of(self.folder) if name != NOTE}

    def tidy(self) -> None:
        """Removes the files that only an execution needs."""
        for name in (f".source-{self.notebook}", self.token):
            if name:
                (self.folder / name).unlink(missing_ok=True)

    def keep(self, outcome: Ended) -> None:
        """Writes what the point has left, and what has become of it unless it was only stopped."""
        for path, content in outcome.files.items():
            target = place_for(path, self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(target, content)
        self.tidy()
        if outcome.stopped:
            return
        error = outcome.error or _problem(self.folder / "scores.csv")
        facts = {"status": "failed" if error else "done", "error": error}
        self._write_note(**facts, seconds=outcome.seconds, worker=outcome.worker)
        note = _note(self.folder)
        self.done, self.failure = (None, note) if error else (note, None)
        write_html(self.folder / self.notebook)

    def _write_note(self, **facts: Any) -> None:
        known = {"fingerprint": self.fingerprint, "parameters": self.parameters} | facts
        atomic_write(self.folder / NOTE, json.dumps(known, indent=2, default=str) + "\n")

    def scores(self) -> pd.DataFrame:
        """What the notebook has written as its scores, as text; empty if it has failed, or wrote none."""
        return _scores(self.folder / "scores.csv") if self.done else pd.DataFrame()

    def row(self) -> dict[str, Any]:
        """Row of the point in the sweep's table."""
        note = self.done or self.failure or {"status": "missing"}
        return {
            "point": self.number,
            **self.parameters,
            "status": note["status"],
            "error": note.get("error", ""),
            "seconds": note.get("seconds", float("nan")),
            "worker": note.get("worker", ""),
            "notebook": f"{self.name}/{self.notebook}",
        }


@dataclass
class Plan:
    """The points of a sweep, and what has become of each."""

    folder: Path
    points: list[Point]
    written: float = -math.inf
    """Reading of the monotonic clock when the table was last written."""

    @classmethod
    def of(cls, notebook: Path, parameters: list[dict[str, Any]], folder: Path) -> "Plan":
        """Finds the folders of the points that have finished."""
        code, library = code_of(notebook), source_digest()
        width = max(3, len(str(len(parameters) - 1)))
        places = [path.parent for path in sorted(folder.glob(f"point-*/{NOTE}"))]
        notes = {place: _note(place) for place in places if place.name.removeprefix("point-").isdecimal()}
        finished = {note["fingerprint"]: place for place, note in notes.items() if note and note["status"] == "done"}
        points = []
        for number, given in enumerate(parameters):
            facts = [code, given, _data(given), library]
            fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
            usual = folder / f"point-{number:0{width}d}"
            place = finished.get(fingerprint, usual)
            one = Point(number, given, fingerprint, place, notebook.name)
            if fingerprint in finished:
                one.done = notes[place]
            points.append(one)
        taken = {point.folder for point in points if point.done}
        free = max([int(path.name.partition("-")[2]) for path in notes] + [len(points) - 1]) + 1
        for point in points:
            if not point.done and point.folder in taken:  # by a point that had this number before
                point.folder, free = folder / f"point-{free:0{width}d}", free + 1
        return cls(folder, points)

    def write_table(self, at_most_every: float = 0.0) -> None:
        """Writes ``sweep.csv`` and, if the package for it is there, the same as Parquet."""
        if time.monotonic() - self.written < at_most_every:
            return
        ended = [point for point in self.points if point.done or point.failure]
        frames = [_joined(point.row(), point.scores()) for point in ended]
        self.written = time.monotonic()
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        atomic_write(self.folder / "sweep.csv", table.to_csv(index=False))
        if importlib.util.find_spec("pyarrow"):
            text = [name for name, column in table.items() if column.dtype == object]
            atomic_write(self.folder / "sweep.parquet", table.astype(dict.fromkeys(text, str)).to_parquet(index=False))

    def write_status(self, batch: Batch | None) -> None:
        """Writes how far the sweep is, for ``iid sweep FOLDER --status``; None once it has ended."""
        known = {
            "points": len(self.points),
            "done": sum(point.done is not None for point in self.points),
            "failed": {point.name: point.failure["error"] for point in self.points if point.failure},
            "ended": batch is None,
            "running": batch.running if batch else {},
            "workers": batch.workers if batch else 0,
            "seconds_left": batch.seconds_left if batch else None,
            "at": time.time(),
        }
        atomic_write(self.folder / STATUS, json.dumps(known, indent=2) + "\n")


def _note(folder: Path) -> dict[str, Any]:
    """The note in a point's folder; empty without one."""
    try:
        known = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and {"fingerprint", "status"} <= {*known} else {}


def _data(parameters: Mapping[str, Any]) -> list[Any]:
    """What identifies a point's own images: names, sizes and times of the files in a folder that it names."""
    found: list[Any] = []
    for value in parameters.values():
        if isinstance(value, str) and value.startswith("folder:"):
            root = Path(value.partition(":")[2]).expanduser()
            files = sorted(path for path in root.rglob("*") if path.is_file())
            found += [(path.relative_to(root).as_posix(), *_size_and_time(path)) for path in files]
    return found


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _unused(folder: Path, name: str) -> Path:
    """A path in a folder that does not exist yet."""
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


def _problem(scores: Path) -> str:
    """Why a point's scores cannot be read; "" if they can, or if there are none."""
    try:
        _scores(scores)
    except (OSError, ValueError) as problem:
        return f"scores.csv cannot be read: {' '.join(str(problem).split())}"
    return ""


def _scores(path: Path) -> pd.DataFrame:
    """A point's scores, as text; empty if it wrote none."""
    if not path.is_file():
        return pd.DataFrame()
    return pd.read_csv(StringIO(path.read_text(encoding="utf-8")), dtype=str, keep_default_na=False)


def _joined(row: Mapping[str, Any], scores: pd.DataFrame) -> pd.DataFrame:
    """Row of a point, repeated for each of its scores."""
    table = pd.DataFrame([dict(row)] * max(1, len(scores)))
    return table.join(scores[[name for name in scores if name not in row]])
