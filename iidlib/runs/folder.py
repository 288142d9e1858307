"""A run's folder on disk: settings, metrics, results and the environment that made them.

Every file is written whole or not at all (a temporary file, flushed to disk, then renamed); only ``metrics.jsonl``
grows, a line at a time.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from iidlib import config as configuration
from iidlib.config import RunConfig
from iidlib.errors import InputError
from iidlib.files import atomic_write, make_folders, place_of, remove_empty
from iidlib.locks import locked
from iidlib.runs.environment import environment

__all__ = ["RunFolder", "runs_frame"]

# Temporary files of `atomic_write`, for each file that a run writes in its folder and in that of its checkpoints. Other
# hidden files with a number at the end are the user's.
_UNFINISHED = re.compile(
    r"\.(config\.yaml|environment\.json|metrics\.jsonl|scores\.json|synthetic\.safetensors"
    r"|synthetic(-expanded)?\.png)\.\d+"
)
_UNFINISHED_CHECKPOINT = re.compile(r"\.\d{7,}\.(safetensors|json)\.\d+")


class RunFolder:
    """The folder of one run.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._made: list[Path] = []
        self._begun: dict[Path, tuple[int, int]] = {}

    @property
    def synthetic(self) -> Path:
        """The distilled set; there once the run is finished."""
        return self.path / "synthetic.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run has left its result."""
        return self.synthetic.is_file()

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> "RunFolder":
        """Makes the folder and writes ``config.yaml`` and ``environment.json``.

        Raises:
            InputError: if the path exists and is not an empty folder, or cannot be written.
        """
        folder = cls(path)
        try:
            place = place_of(folder.path)
            if place.exists() and (not place.is_dir() or folder._holds_something(place)):
                raise InputError(
                    f"{path} exists already; nothing was overwritten: give another --out, or --resume to go on with it"
                )
            folder._made = make_folders(folder.path)
            folder.remove_unfinished()
            folder._begin("config.yaml", configuration.to_yaml(config))
            folder._begin("environment.json", json.dumps(environment(), indent=2) + "\n")
        except OSError as error:
            folder.discard()
            raise InputError(f"cannot write the run folder {path}: {error.strerror or error}") from None
        return folder

    def _begin(self, name: str, content: str) -> None:
        """Writes a file and remembers it, so that `discard` can take it back."""
        path = self.path / name
        atomic_write(path, content)
        self._begun[path] = _version(path)

    def discard(self) -> None:
        """Takes back what `create` wrote, for a run that could not begin; of use to whoever has let go of the lock.

        The settings and the environment go, unless somebody has changed them since; so do the folders that `create`
        made, as long as nothing else is in them. Whatever else is there stays, and so does a folder or a link that was
        there before. What cannot be removed stays without an error: the caller has one of its own to tell.
        """
        for path, written in self._begun.items():
            with contextlib.suppress(OSError):
                if _version(path) == written:
                    path.unlink()
        remove_empty(self._made)

    @classmethod
    def reopen(cls, path: str | Path, config: RunConfig) -> "RunFolder":
        """The folder of a run that was begun with the same settings.

        Raises:
            InputError: if there is no run, or it was begun with other settings (the first that differs is named).
        """
        folder = cls(path)
        if not (folder.path / "config.yaml").is_file():
            raise InputError(f"no run to resume at {path} (it has no config.yaml); leave --resume out to begin one")
        begun = folder.config()
        if begun != config:
            mine = dict(line.split(": ", 1) for line in _lines(config))
            theirs = dict(line.split(": ", 1) for line in _lines(begun))
            key = next(key for key in mine if mine[key] != theirs.get(key))
            raise InputError(
                f"the run at {path} was begun with {key}={theirs[key]}, not {mine[key]}; resume it as it was"
            )
        return folder

    @staticmethod
    def _holds_something(place: Path) -> bool:
        """Whether there is more than what a process that was killed while it wrote the settings has left."""
        return any(not re.fullmatch(r"\.config\.yaml\.\d+", path.name) for path in place.iterdir())

    def remove_unfinished(self) -> None:
        """Removes the temporary files of processes that were killed while writing; of use to whoever holds the lock."""
        for folder, names in ((self.path, _UNFINISHED), (self.checkpoints, _UNFINISHED_CHECKPOINT)):
            for path in folder.glob(".*"):
                if names.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are, see `iidlib.runs.checkpoints`."""
        return self.path / "checkpoints"

    def note(self, name: str, value: Any) -> None:
        """Adds to a list in ``environment.json``, which says under what conditions the run was made."""
        path = self.path / "environment.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        atomic_write(path, json.dumps(known | {name: [*known.get(name, []), value]}, indent=2) + "\n")

    def config(self) -> RunConfig:
        """The run's settings.

        Raises:
            InputError: if its ``config.yaml`` is missing or damaged.
        """
        path = self.path / "config.yaml"
        try:
            return configuration.from_yaml(path.read_text(encoding="utf-8"))
        # what cannot be decoded is a ValueError, and so is a wrong setting
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from None

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> pd.DataFrame:
        """The logged iterations, one row each; empty where there are none."""
        return pd.DataFrame(self.metric_rows())

    def metric_rows(self) -> list[dict[str, Any]]:
        """The logged iterations as they were written, up to a line that a crash cut short, or damage made another."""
        path, rows = self.path / "metrics.jsonl", []
        with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
            for line in path.read_bytes().splitlines():
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
                    break
                rows.append(row)
        return rows

    def rewind_metrics(self, iteration: int) -> None:
        """Drops logged iterations at or after `iteration`, which a resumed run computes again."""
        rows = [row for row in self.metric_rows() if row["iteration"] < iteration]
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from working in the folder, for as long as the block or this process lasts.

        Raises:
            InputError: if another process works there; it is named.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock", wait=False))
            except BlockingIOError as holder:
                raise InputError(f"{self.path} is in use by {holder}; wait for it, or give another --out") from None
            except FileExistsError as error:
                raise InputError(str(error.strerror)) from None
            yield

    def write_scores(self, frame: pd.DataFrame) -> None:
        """Writes ``scores.json``: one record for each evaluated network."""
        atomic_write(self.path / "scores.json", frame.to_json(orient="records", indent=2) + "\n")


def _version(path: Path) -> tuple[int, int]:
    """Length and time of a file, by which one that was changed or put in its place is told apart."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _lines(config: RunConfig) -> list[str]:
    """Settings as ``dotted.key: value`` lines."""
    flat: list[str] = []
    for key in configuration.settings():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        flat.append(f"{key}: {value}")
    return flat


def runs_frame(root: str | Path) -> pd.DataFrame:
    """Every evaluated network of every run below a folder, one row each: settings, scores and environment.

    Args:
        root: searched for folders that hold ``config.yaml`` and ``scores.json``.

    Raises:
        InputError: for a file among them that is damaged.

    Returns:
        Columns run, dataset, method, ipc, scale, seed, iterations, and those of the scores; empty without runs.
    """
    frames = []
    for scores in sorted(Path(root).rglob("scores.json")):
        folder = RunFolder(scores.parent)
        if not (folder.path / "config.yaml").is_file():
            continue
        config = folder.config()
        try:
            records = json.loads(scores.read_bytes())
            if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
                raise ValueError("it is not a list of records")
            frame = pd.DataFrame(records)
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{scores} is damaged ({reason}); evaluate the run again") from None
        names = ("dataset", "method", "ipc", "scale", "seed", "iterations")
        for position, name in enumerate(names):
            if name not in frame:
                frame.insert(position, name, getattr(config, name))
        frame.insert(0, "run", folder.path.relative_to(root).as_posix())
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
