"""Networks of an interrupted evaluation: kept in the user's cache until the evaluation is complete, by fingerprint."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from iidlib.errors import one_line
from iidlib.files import cache_dir, make_folders, remove_empty
from iidlib.runs.records import json_object

__all__ = ["FinishedNetworks", "KeptRow", "digest_of"]

logger = logging.getLogger("iidlib")

_COLUMNS = {
    "network": str, "evaluation_seed": int, "accuracy": float, "epochs": int, "images": int, "seconds": float,
    "outcome": str,
}  # fmt: skip
"""Columns that every row has, with their types."""

_DAYS = 60
"""Age at which the rows of an evaluation that was never resumed are removed."""


class KeptRow(dict[str, Any]):
    """The row of a network that an earlier call has trained."""


def digest_of(*tensors: torch.Tensor) -> str:
    """Hex digits of the SHA-256 of types, shapes and values; equal on every device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        known = tensor.detach().cpu().contiguous()
        digest.update(f"{known.dtype} {tuple(known.shape)}".encode())
        digest.update(known.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FinishedNetworks:
    """Rows of finished networks, from which `iidlib.evaluate` resumes an interrupted evaluation.

    Without a folder that can be written, nothing is kept, after one warning.

    A network is identified by all that its training depends on: the images, the test images, the protocol, the seed,
    the versions and the hardware. The same object may serve several evaluations; once their rows are saved elsewhere,
    `forget` removes them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Nothing is read or written yet.

        Args:
            folder: where rows are kept; by default ``evaluations`` in the cache.
        """
        self._folder = folder
        self._used: set[Path] = set()
        self._made: list[Path] = []
        self._writable = True

    @property
    def writable(self) -> bool:
        """Whether networks could be kept so far."""
        return self._writable

    def rows(self, facts: Mapping[str, Any]) -> dict[tuple[str, int], KeptRow]:
        """Rows that an interrupted evaluation has left, by network and number.

        Lines that a crash truncated, or that no evaluation wrote, are skipped.

        Args:
            facts: what the scores depend on besides the network and its number, as JSON values.
        """
        found: dict[tuple[str, int], KeptRow] = {}
        lines: list[bytes] = []
        with contextlib.suppress(OSError, RuntimeError):  # `keep` warns; the latter without a home folder
            lines = self._file(facts).read_bytes().splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                row = json_object(line)
                if all(type(row.get(name)) is kind for name, kind in _COLUMNS.items()):
                    found[row["network"], row["evaluation_seed"]] = KeptRow(row)
        return found

    def keep(self, facts: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        """Keeps rows of networks that were just tested; warns once if they cannot be written.

        Args:
            facts: as for `rows`.
            rows: their rows, with the columns of `iidlib.evaluate`.
        """
        if not self._writable:
            return
        try:
            path = self._file(facts)
            # a line that a crash truncated must not swallow the next one
            text = "".join(f"\n{json.dumps(dict(row))}\n" for row in rows)
            try:
                self._append(path, text)
            except FileNotFoundError:  # another evaluation has just removed the empty folder
                self._append(path, text)
        except (OSError, RuntimeError) as error:
            self._writable = False
            logger.warning(
                "finished networks cannot be kept (%s); after an interruption they are trained again", one_line(error)
            )

    def forget(self) -> None:
        """Removes all rows that were read or kept through this object, and their folder if it is empty."""
        for path in self._used:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        remove_empty([*{path.parent for path in self._used}, *self._made])
        self._used.clear()
        self._made.clear()

    def _append(self, path: Path, text: str) -> None:
        self._made = [*make_folders(path.parent, private=True), *self._made]
        _remove_old(path.parent)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _file(self, facts: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        folder = cache_dir() / "evaluations" if self._folder is None else self._folder
        self._used.add(path := folder / f"{key}.jsonl")
        return path


def _remove_old(folder: Path) -> None:
    """Removes evaluations that nobody has resumed."""
    for path in folder.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAYS * 24 * 3600:
                path.unlink()
