"""Networks of an interrupted evaluation: kept in the user's cache until the evaluation is complete, by fingerprint."""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from iidlib.errors import one_line
from iidlib.files import atomic_write, cache_dir, make_folders, remove_empty, user_path
from iidlib.runs.records import json_object

__all__ = ["FinishedNetworks", "FinishedRow"]

logger = logging.getLogger("iidlib")

_COLUMNS = {
    "network": str, "evaluation_seed": int, "accuracy": float, "epochs": int, "images": int, "seconds": float,
    "outcome": str,
}  # fmt: skip
"""Columns that every row has, with their types."""

_EVALUATION = re.compile("[0-9a-f]{24}")
"""Names of the folders of evaluations."""

_OLD = 60 * 24 * 3600
"""Age in seconds at which the rows of an evaluation that was never resumed are removed."""


class FinishedRow(dict[str, Any]):
    """The row of a network that an earlier call has trained."""


class FinishedNetworks:
    """Rows of finished networks, from which `iidlib.evaluate` resumes an interrupted evaluation.

    Without a folder that can be written, nothing is kept, after one warning.

    A network is identified by all that its training depends on: the images, the test images, the protocol, the seed,
    the versions and the hardware. The same object may serve several evaluations; once their rows are saved elsewhere,
    `forget` removes them.

    Attributes:
        writable: whether networks could be kept so far.
        resumed: whether rows of an earlier call were used.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Nothing is read or written yet.

        Args:
            folder: where rows are kept; by default ``evaluations`` in the cache.
        """
        self.writable, self.resumed = True, False
        self._folder = None if folder is None else user_path(folder)
        self._used: set[Path] = set()
        self._made: list[Path] = []

    def rows(
        self, facts: Mapping[str, Any], networks: Collection[str], count: int
    ) -> dict[tuple[str, int], FinishedRow]:
        """Rows that an interrupted evaluation has left, by network and number.

        Files that no evaluation wrote do not count.

        Args:
            facts: what the scores depend on besides the network and its number, as JSON values.
            networks: names of the networks.
            count: number of networks of each name.
        """
        found: dict[tuple[str, int], FinishedRow] = {}
        paths: list[Path] = []
        with contextlib.suppress(OSError, RuntimeError):  # `keep` warns; the latter without a home folder
            paths = sorted(self._evaluation(facts).glob("*.json"))
        for path in paths:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                row = json_object(path.read_bytes())
                if not all(type(row.get(name)) is kind for name, kind in _COLUMNS.items()):
                    continue
                if row["network"] in networks and row["evaluation_seed"] < count:
                    found[row["network"], row["evaluation_seed"]] = FinishedRow(row)
                    self._used.add(path)
                    os.utime(path)  # another evaluation must not take it for one that nobody resumes
        self.resumed |= bool(found)
        return found

    def keep(self, facts: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        """Keeps rows of networks that were just tested; warns once if they cannot be written.

        Args:
            facts: as for `rows`.
            rows: their rows, with the columns of `iidlib.evaluate`.
        """
        if not self.writable:
            return
        try:
            folder = self._evaluation(facts)
            self._remove_old(folder.parent)
            for row in rows:
                path = folder / f"{re.sub(r'[^a-z0-9-]', '-', row['network'])}-{row['evaluation_seed']}.json"
                self._used.add(path)
                try:
                    self._write(path, json.dumps(dict(row)))
                except FileNotFoundError:  # another evaluation has just removed the empty folder
                    self._write(path, json.dumps(dict(row)))
        except (OSError, RuntimeError) as error:
            self.writable = False
            logger.warning(
                "finished networks cannot be kept (%s); after an interruption they are trained again", one_line(error)
            )

    def forget(self) -> None:
        """Removes the rows that were used or kept through this object, and folders that are empty then."""
        for path in self._used:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        evaluations = {path.parent for path in self._used}
        remove_empty([*evaluations, *{path.parent for path in evaluations}, *self._made])
        self._used.clear()
        self._made.clear()

    def _write(self, path: Path, text: str) -> None:
        self._made = [*make_folders(path.parent, private=True), *self._made]
        atomic_write(path, text, private=True)

    def _evaluation(self, facts: Mapping[str, Any]) -> Path:
        """Folder of an evaluation."""
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        return (cache_dir() / "evaluations" if self._folder is None else self._folder) / key

    def _remove_old(self, folder: Path) -> None:
        """Removes evaluations that nobody has resumed."""
        for path in folder.glob("*/*.json"):
            with contextlib.suppress(OSError):
                old = time.time() - path.stat().st_mtime > _OLD
                if old and path not in self._used and _EVALUATION.fullmatch(path.parent.name):
                    path.unlink()
                    remove_empty([path.parent])
