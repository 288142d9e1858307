"""A run's folder on disk: settings, metrics, results and the environment that made them.

Every file is written whole or not at all (a temporary file, flushed to disk, then renamed); only ``metrics.jsonl``
grows, a line at a time.
"""

import contextlib
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pandas as pd

from iidlib import config as configuration
from iidlib.config import RunConfig
from iidlib.errors import InputError, one_line
from iidlib.files import (
    atomic_write,
    set_aside,
    user_path,
)
from iidlib.names import same_dataset
from iidlib.runs.claim import Claim
from iidlib.runs.environment import environment
from iidlib.runs.records import json_object, metric_rows, score_records, score_text

__all__ = ["RunFolder"]

logger = logging.getLogger("iidlib")


class RunFolder:
    """The folder of one run.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self._claim = Claim(self.path)

    @property
    def synthetic(self) -> Path:
        """The distilled set; there once the run is finished."""
        return self.path / "synthetic.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run has left its result."""
        return self.synthetic.is_file()

    @classmethod
    @contextlib.contextmanager
    def begin(cls, path: str | Path, config: RunConfig) -> Iterator["RunFolder"]:
        """Makes the folder, and keeps it from other processes for as long as the block lasts.

        What is there is looked at again, and the files are written, only once the lock is held, so that of two
        processes that begin at once one has the folder, and the other finds it in use. If the run cannot begin, what it
        wrote is taken back. Within the block that is up to `discard`.

        Raises:
            InputError: if the path exists and is not an empty folder, is in use, or cannot be written.
        """
        folder = cls(path)
        with folder._claim.begin(
            lambda: {
                "config.yaml": configuration.to_yaml(config),
                "environment.json": json.dumps(environment(), indent=2) + "\n",
            }
        ):
            yield folder

    def check_free(self) -> None:
        """Finds out, before the data are loaded, whether a run can begin here; `begin` looks again.

        Raises:
            InputError: if the path exists and is not an empty folder, is in use, or cannot be read.
        """
        try:
            self._claim.refuse_full()
        except OSError as error:
            raise InputError(f"cannot write the run folder {self.path}: {error.strerror or error}") from None

    def discard(self) -> None:
        """Takes back what `begin` wrote, for a run that could not begin.

        The settings and the environment go, unless somebody has changed them since; so do the folders that were made,
        as long as nothing else is in them: now, or once the block of `begin` has let go of the lock. Whatever else is
        there stays, and so does a folder or a link that was there before. What cannot be removed stays without an
        error: the caller has one of its own to tell.
        """
        self._claim.take_back()

    @classmethod
    def reopen(cls, path: str | Path, config: RunConfig, *, more: bool = False) -> "RunFolder":
        """The folder of a run that was begun with the same settings, ``pool.untrained`` aside.

        Args:
            path: the folder.
            config: the settings.
            more: accept another number of iterations, for a run that is to be continued; whether it is too small, its
                checkpoints say.

        Raises:
            InputError: if there is no run, or it was begun with other settings (the first that differs is named).
        """
        folder = cls(path)
        if not (folder.path / "config.yaml").is_file():
            raise InputError(f"no run to resume at {path} (it has no config.yaml); leave --resume out to begin one")
        begun = folder.config()
        # whether weak networks are refused changes no number, and a run that they ended is to be finished with them
        begun = attrs.evolve(begun, pool=attrs.evolve(begun.pool, untrained=config.pool.untrained))
        if more:
            begun = attrs.evolve(begun, iterations=config.iterations)
        if same_dataset(begun.dataset, config.dataset):  # whether the images are the same is for the checkpoints to say
            begun = attrs.evolve(begun, dataset=config.dataset)
        if begun != config:
            mine = dict(line.split(": ", 1) for line in _lines(config))
            theirs = dict(line.split(": ", 1) for line in _lines(begun))
            key = next(key for key in mine if mine[key] != theirs.get(key))
            raise InputError(
                f"the run at {path} was begun with {key}={theirs[key]}, not {mine[key]}; resume it as it was"
            )
        return folder

    @classmethod
    @contextlib.contextmanager
    def resume(cls, path: str | Path, config: RunConfig) -> Iterator["RunFolder"]:
        """The folder of a run that goes on, kept from other processes for as long as the block lasts.

        Raises:
            InputError: as `reopen` with `more`; or if another process works there, or nothing can be written.
        """
        folder = cls.reopen(path, config, more=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(folder.lock())
                cls.reopen(path, config, more=True)  # as it is now that nobody else works there
                folder.remove_unfinished()
            except OSError as error:
                raise InputError(f"cannot go on in the run folder {path}: {error.strerror or error}") from None
            yield folder

    def write_continued(self, config: RunConfig, totals: Sequence[int]) -> None:
        """Writes ``config.yaml`` for a run that was continued to more iterations.

        Args:
            config: the settings, with all iterations.
            totals: the numbers of iterations at which it was to end before.
        """
        told = ", then ".join(map(str, totals))
        text = f"# continued: iterations was {told}\n{configuration.to_yaml(config)}"
        atomic_write(self.path / "config.yaml", text)

    def rename_scores(self, iterations: int) -> None:
        """Renames the scores of a set that is about to be replaced; they stay as ``scores-ITERATIONS.json``.

        What an evaluation of that set left unfinished goes.
        """
        (self.path / "scores-incomplete.json").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.path / "scores.json").replace(self.path / f"scores-{iterations}.json")

    def remove_unfinished(self) -> None:
        """Removes the temporary files of processes that were killed while writing; of use to whoever holds the lock."""
        self._claim.remove_unfinished()

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are, see `iidlib.runs.checkpoints`."""
        return self.path / "checkpoints"

    def note(self, name: str, value: Any) -> None:
        """Adds to a list in ``environment.json``, which says under what conditions the run was made.

        A corrupted one is set aside, with a warning, and a new one begun.
        """
        path = self.path / "environment.json"
        known: dict[str, Any] = {}
        try:
            known = json_object(path.read_bytes())
            listed = known.get(name, [])
            if not isinstance(listed, list):
                raise ValueError(f"{name} is no list")
        except FileNotFoundError:
            listed = []
        except (ValueError, RecursionError) as error:
            known, listed = environment(), []
            logger.warning("%s is corrupted (%s); it is now %s", path, one_line(error), set_aside(path).name)
        atomic_write(path, json.dumps(known | {name: [*listed, value]}, indent=2) + "\n")

    def noted(self, name: str) -> dict[str, Any]:
        """What was added last under a name by `note`; empty where there is nothing, or the file cannot be read."""
        try:
            listed = json_object((self.path / "environment.json").read_bytes()).get(name)
        except (OSError, ValueError, RecursionError):
            return {}
        last = listed[-1] if isinstance(listed, list) and listed else {}
        return last if isinstance(last, dict) else {}

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
        """The logged iterations as they were written, in order, see `iidlib.runs.records.metric_rows`.

        Raises:
            InputError: if the file is there and cannot be read.
        """
        return metric_rows(self.path / "metrics.jsonl")

    def rewind_metrics(self, iteration: int) -> None:
        """Drops logged iterations at or after `iteration`, which a resumed run computes again."""
        rows = [row for row in self.metric_rows() if row["iteration"] < iteration]
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from working in the folder, for as long as the block or this process lasts.

        Raises:
            InputError: if another process works there; it is named.
            OSError: if the folder cannot be written.
        """
        with self._claim.lock():
            yield

    def scores(self) -> list[dict[str, Any]]:
        """The records of ``scores.json``, one for each evaluated network; none where there is no such file.

        Raises:
            InputError: for a corrupted file.
        """
        try:
            return score_records(self.path / "scores.json")
        except ValueError as error:
            again = f"iid evaluate {shlex.quote(str(self.path))}"
            reason = f"{self.path / 'scores.json'} is damaged ({one_line(error)})"
            raise InputError(f"{reason}; evaluate the run again, and it is replaced: {again}") from None

    def scored(self) -> bool:
        """Whether there are scores that can be read."""
        try:
            return bool(self.scores())
        except InputError:
            return False

    def write_scores(self, frame: pd.DataFrame) -> None:
        """Writes ``scores.json``: one record for each evaluated network.

        A corrupted one is set aside, with a warning.
        """
        path = self.path / "scores.json"
        if path.exists() and not self.scored():
            logger.warning("%s was corrupted; it is now %s", path, set_aside(path).name)
        atomic_write(path, score_text(frame))


def _lines(config: RunConfig) -> list[str]:
    """Settings as ``dotted.key: value`` lines."""
    flat: list[str] = []
    for key in configuration.settings():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        flat.append(f"{key}: {value}")
    return flat
