"""Checkpoints of a run: written whole, each with a checksum, and with the conditions that its numbers depend on.

A checkpoint is ``<iteration>.safetensors`` with the state and ``<iteration>.json`` with the facts beside it. It counts
once both are there, and only while their checksum holds, so that a run that died while writing has the one before.
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
"""Checkpoints that stay; the newest may be damaged."""

logger = logging.getLogger("iidlib")


class Checkpoints:
    """The checkpoints in a folder.

    Attributes:
        folder: where they are; made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, iteration: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and keeps the last two.

        Args:
            iteration: iterations done.
            tensors: the state.
            facts: what must still hold when the run goes on, as JSON values.

        Raises:
            OSError: if it cannot be written; the checkpoints before are as they were.
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
        """Where the checkpoint after so many iterations is kept."""
        return self.folder / f"{iteration:07d}.safetensors"

    def paths(self) -> list[Path]:
        """Checkpoints whose both files are there, oldest first; whether they are whole is seen on reading."""
        found = self.folder.glob("*.safetensors")
        # other spellings of a number are files of the user's, which `save` must not remove
        ours = [path for path in found if re.fullmatch(r"\d+", path.stem) and path == self.path(int(path.stem))]
        names = [path for path in ours if path.is_file() and path.with_suffix(".json").is_file()]
        return sorted(names, key=lambda path: int(path.stem))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the newest checkpoint that is whole; None where there are none.

        A damaged one, recognised by its checksum, is passed over with a warning.

        Raises:
            InputError: if there are checkpoints, and none is whole.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                content, known = path.read_bytes(), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                if known.pop("sha256") != _digest(content, known):
                    raise ValueError("its checksum is another")
                _check_facts(known, path)
                return from_bytes(content), known
            except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
                reason = one_line(error)
                logger.warning("checkpoint %s is damaged (%s) and passed over", path, reason)
        if paths:
            raise InputError(f"no checkpoint in {self.folder} is whole; begin anew with another --out")
        return None


def _check_facts(facts: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError for facts of another shape than `Checkpoints.save` and a run give them."""
    if facts["iteration"] != int(path.stem) or not isinstance(facts["iteration"], int):
        raise ValueError(f"it says iteration {facts['iteration']!r}")
    if not isinstance(facts.get("conditions", {}), dict):
        raise ValueError("its conditions are no JSON object")
    if not isinstance(facts.get("chunk", 0), int):
        raise ValueError("its chunk is no whole number")
    if not isinstance(facts.get("init", ""), str):
        raise ValueError("its init is no text")
    totals = facts.get("totals", [])
    if not isinstance(totals, list) or not all(isinstance(total, int) for total in totals):
        raise ValueError("its totals are no list of whole numbers")


def _digest(content: bytes, facts: Mapping[str, Any]) -> str:
    """SHA-256 of a checkpoint's tensors and facts together."""
    digest = hashlib.sha256(content)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
