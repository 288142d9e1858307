"""Checkpoints of a run: written atomically, each with a checksum and the conditions that its numbers depend on.

A checkpoint is ``<iteration>.safetensors`` with the state and its sidecar ``<iteration>.json`` with the facts. It is
valid only if both exist and their checksum matches, so a run that died while writing falls back on the one before.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from iidlib.errors import InputError, one_line
from iidlib.files import atomic_write

__all__ = ["Checkpoints"]

KEPT = 2
"""Number of checkpoints that are kept; more than one, because the newest may be corrupted."""

logger = logging.getLogger("iidlib")


class Checkpoints:
    """The checkpoints in a folder.

    Attributes:
        folder: the folder; created with the first checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, iteration: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and removes all but the last two.

        Args:
            iteration: number of iterations done.
            tensors: the state.
            facts: what must still hold when the run is resumed, as JSON values.

        Raises:
            OSError: if it cannot be written; earlier checkpoints are then unchanged.
        """
        path = self.path(iteration)
        self.folder.mkdir(exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content, known = to_bytes(state), {"iteration": iteration, **facts}
        atomic_write(path, content)
        known["sha256"] = _digest(content, known)
        atomic_write(path.with_suffix(".json"), json.dumps(known, indent=2) + "\n")
        for old in self.paths()[:-KEPT]:
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink()
        return path

    def path(self, iteration: int) -> Path:
        """Path of the checkpoint after `iteration` iterations."""
        return self.folder / f"{iteration:07d}.safetensors"

    def paths(self) -> list[Path]:
        """Checkpoints of which both files exist, oldest first; `load` verifies them."""
        files = self.folder.glob("*.safetensors")
        # a number spelled differently is the user's own file, which `save` must not remove
        ours = [path for path in files if re.fullmatch(r"\d+", path.stem) and path == self.path(int(path.stem))]
        names = [path for path in ours if path.is_file() and path.with_suffix(".json").is_file()]
        return sorted(names, key=lambda path: int(path.stem))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the newest valid checkpoint, or None if there are no checkpoints.

        A corrupted one, recognised by its checksum, is skipped with a warning.

        Raises:
            InputError: if there are checkpoints, but all are corrupted.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                content, known = path.read_bytes(), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                if known.pop("sha256") != _digest(content, known):
                    raise ValueError("its checksum does not match")
                _check_facts(known, path)
                return from_bytes(content), known
            except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
                reason = one_line(error)
                logger.warning("checkpoint %s is corrupted (%s) and was skipped", path, reason)
        if paths:
            raise InputError(f"all checkpoints in {self.folder} are corrupted; start again with another --out")
        return None


def _check_facts(facts: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError for facts that `Checkpoints.save` and a run would not have written."""
    if facts["iteration"] != int(path.stem) or not isinstance(facts["iteration"], int):
        raise ValueError(f"it says iteration {facts['iteration']!r}")
    if not isinstance(facts.get("conditions", {}), dict):
        raise ValueError("its conditions are not a JSON object")
    if not isinstance(facts.get("chunk", 0), int):
        raise ValueError("its chunk is not a whole number")
    if not isinstance(facts.get("init", ""), str):
        raise ValueError("its init is not text")
    totals = facts.get("totals", [])
    if not isinstance(totals, list) or not all(isinstance(total, int) for total in totals):
        raise ValueError("its totals are not a list of whole numbers")


def _digest(content: bytes, facts: Mapping[str, Any]) -> str:
    """SHA-256 over a checkpoint's tensors and facts."""
    digest = hashlib.sha256(content)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
