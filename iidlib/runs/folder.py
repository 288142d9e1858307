"""A run's folder on disk: settings, metrics, results and the environment that produced them.

Every file is written atomically (a temporary file, flushed to disk, then renamed); only ``metrics.jsonl`` grows line by
line.
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
        """Path of the distilled set, which exists once the run is finished."""
        return self.path / "synthetic.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run has written its result."""
        return self.synthetic.is_file()

    @classmethod
    @contextlib.contextmanager
    def begin(cls, path: str | Path, config: RunConfig) -> Iterator["RunFolder"]:
        """Creates the folder, and locks it against other processes within the block.

        The folder is checked again, and its files are written, only once the lock is held: of two processes that start
        at the same time, one gets the folder and the other finds it in use. If the run cannot start, everything it
        wrote is removed; within the block, `discard` does that.

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
        """Checks whether a run can start here, before the data are loaded; `begin` checks again.

        Raises:
            InputError: if the path exists and is not an empty folder, is in use, or cannot be read.
        """
        try:
            self._claim.refuse_full()
        except OSError as error:
            raise InputError(f"cannot write the run folder {self.path}: {error.strerror or error}") from None

    def discard(self) -> None:
        """Removes what `begin` wrote, for a run that could not start.

        Removes the settings and the environment, unless they have been changed since, and the folders that were
        created, if nothing else is in them (now, or when the block of `begin` releases the lock). Everything else
        stays, including a folder or a link that existed before. What cannot be removed stays without an error, because
        the caller has its own to report.
        """
        self._claim.take_back()

    @classmethod
    def reopen(cls, path: str | Path, config: RunConfig, *, more: bool = False) -> "RunFolder":
        """The folder of a run that was started with the same settings, except for ``pool.untrained``.

        Args:
            path: the folder.
            config: the settings.
            more: accept another number of iterations, for a run that is to be continued; the checkpoints later show
                whether it is too small.

        Raises:
            InputError: if there is no run, or it was started with other settings (the message names the first that
                differs).
        """
        folder = cls(path)
        if not (folder.path / "config.yaml").is_file():
            raise InputError(f"no run to resume at {path} (it has no config.yaml); omit --resume to start one")
        started = folder.config()
        # whether weak networks are refused changes no number, and a run that ended because of them may be finished
        started = attrs.evolve(started, pool=attrs.evolve(started.pool, untrained=config.pool.untrained))
        if more:
            started = attrs.evolve(started, iterations=config.iterations)
        if same_dataset(started.dataset, config.dataset):  # the checkpoints show whether the images are the same
            started = attrs.evolve(started, dataset=config.dataset)
        if started != config:
            mine = dict(line.split(": ", 1) for line in _lines(config))
            theirs = dict(line.split(": ", 1) for line in _lines(started))
            key = next(key for key in mine if mine[key] != theirs.get(key))
            raise InputError(
                f"the run at {path} was started with {key}={theirs[key]}, not {mine[key]}; "
                "resume it with the same settings"
            )
        return folder

    @classmethod
    @contextlib.contextmanager
    def resume(cls, path: str | Path, config: RunConfig) -> Iterator["RunFolder"]:
        """The folder of a run that is resumed, locked against other processes within the block.

        Raises:
            InputError: as `reopen` with `more`; or if another process is using it, or it cannot be written.
        """
        folder = cls.reopen(path, config, more=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(folder.lock())
                cls.reopen(path, config, more=True)  # again, now that the folder is locked
                folder.remove_unfinished()
            except OSError as error:
                raise InputError(f"cannot resume in the run folder {path}: {error.strerror or error}") from None
            yield folder

    def write_continued(self, config: RunConfig, totals: Sequence[int]) -> None:
        """Writes ``config.yaml`` for a run that was continued to more iterations.

        Args:
            config: the settings, with all iterations.
            totals: numbers of iterations at which the run was to end before.
        """
        before = ", then ".join(map(str, totals))
        text = f"# continued: iterations was {before}\n{configuration.to_yaml(config)}"
        atomic_write(self.path / "config.yaml", text)

    def rename_scores(self, iterations: int) -> None:
        """Renames the scores of a set that is about to be replaced to ``scores-ITERATIONS.json``.

        The scores of an incomplete evaluation of that set are removed.
        """
        (self.path / "scores-incomplete.json").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.path / "scores.json").replace(self.path / f"scores-{iterations}.json")

    def remove_unfinished(self) -> None:
        """Removes temporary files of processes that were killed while writing; only the lock's holder may call it."""
        self._claim.remove_unfinished()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, see `iidlib.runs.checkpoints`."""
        return self.path / "checkpoints"

    def note(self, name: str, value: Any) -> None:
        """Appends to a list in ``environment.json``, the record of the conditions of the run.

        A corrupted file is set aside, with a warning, and a new one is started.
        """
        path = self.path / "environment.json"
        known: dict[str, Any] = {}
        try:
            known = json_object(path.read_bytes())
            listed = known.get(name, [])
            if not isinstance(listed, list):
                raise ValueError(f"{name} is not a list")
        except FileNotFoundError:
            listed = []
        except (ValueError, RecursionError) as error:
            known, listed = environment(), []
            logger.warning("%s is corrupted (%s); it is now %s", path, one_line(error), set_aside(path).name)
        atomic_write(path, json.dumps(known | {name: [*listed, value]}, indent=2) + "\n")

    def noted(self, name: str) -> dict[str, Any]:
        """The last value that `note` added under a name; empty if there is none, or the file cannot be read."""
        try:
            listed = json_object((self.path / "environment.json").read_bytes()).get(name)
        except (OSError, ValueError, RecursionError):
            return {}
        last = listed[-1] if isinstance(listed, list) and listed else {}
        return last if isinstance(last, dict) else {}

    def config(self) -> RunConfig:
        """Settings of the run.

        Raises:
            InputError: if its ``config.yaml`` is missing or corrupted.
        """
        path = self.path / "config.yaml"
        try:
            return configuration.from_yaml(path.read_text(encoding="utf-8"))
        # a decoding error is a ValueError, and so is a wrong setting
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is corrupted: {' '.join(str(error).split())}") from None

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> pd.DataFrame:
        """Logged iterations, one row each; empty if there are none."""
        return pd.DataFrame(self.metric_rows())

    def metric_rows(self) -> list[dict[str, Any]]:
        """Logged iterations as they were written, in order, see `iidlib.runs.records.metric_rows`.

        Raises:
            InputError: if the file exists but cannot be read.
        """
        return metric_rows(self.path / "metrics.jsonl")

    def rewind_metrics(self, iteration: int) -> None:
        """Drops logged iterations from `iteration` on, which a resumed run computes again."""
        rows = [row for row in self.metric_rows() if row["iteration"] < iteration]
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder against other processes until the block, or this process, ends.

        Raises:
            InputError: if another process is using it; the message names that process.
            OSError: if the folder cannot be written.
        """
        with self._claim.lock():
            yield

    def scores(self) -> list[dict[str, Any]]:
        """Records of ``scores.json``, one per evaluated network; empty if there is no such file.

        Raises:
            InputError: for a corrupted file.
        """
        try:
            return score_records(self.path / "scores.json")
        except ValueError as error:
            again = f"iid evaluate {shlex.quote(str(self.path))}"
            reason = f"{self.path / 'scores.json'} is corrupted ({one_line(error)})"
            raise InputError(f"{reason}; evaluate the run again to replace it: {again}") from None

    def scored(self) -> bool:
        """Whether there are readable scores."""
        try:
            return bool(self.scores())
        except InputError:
            return False

    def write_scores(self, frame: pd.DataFrame) -> None:
        """Writes ``scores.json``, one record per evaluated network.

        A corrupted file is set aside, with a warning.
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
