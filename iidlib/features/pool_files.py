"""Files of a pool of pretrained networks: the weights of its members, and ``pool.json``, which describes them."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes

from iidlib.errors import InputError, one_line
from iidlib.features.pool_training import Member
from iidlib.files import atomic_write, check_writable, make_folders
from iidlib.networks import Network

__all__ = ["PoolFacts", "check_keepable", "keep", "load_weights", "read_facts", "read_weights"]

logger = logging.getLogger("iidlib")


@dataclass
class PoolFacts:
    """Content of ``pool.json``."""

    fingerprint: str
    """Identifies the data and settings that the networks were trained with."""
    accuracies: dict[str, float] = field(default_factory=dict)
    """Held-out accuracy by member, in percent."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Training time by network; pools of earlier versions do not record it."""
    ensemble: dict[str, str] = field(default_factory=dict)
    """How each network was trained together with others; empty text if it was not."""

    def add(self, name: str, member: Member) -> None:
        """Adds a member under the name of its file."""
        self.accuracies[name] = member.accuracy
        self.seconds[str(member.number)] = member.seconds
        self.ensemble[str(member.number)] = member.ensemble

    def as_json(self, network: str) -> dict[str, Any]:
        """The facts of a pool of some architecture, as they are written."""
        facts = {"fingerprint": self.fingerprint, "network": network, "accuracies": self.accuracies}
        facts |= {"seconds": self.seconds}
        return facts | ({"ensemble": self.ensemble} if any(self.ensemble.values()) else {})


def read_facts(folder: Path, fingerprint: str, *, explicit: bool, accepted: Collection[str]) -> PoolFacts:
    """Facts in ``pool.json`` about the members that are already in the folder.

    Args:
        folder: folder of the pool.
        fingerprint: fingerprint of the data and settings that the pool is needed for.
        explicit: whether the user named the folder, which must then exist.
        accepted: fingerprints that the folder may have.

    Returns:
        The facts, with `fingerprint` if the folder has none yet.

    Raises:
        InputError: if a named folder does not exist, or ``pool.json`` is corrupted or of other data or settings.
    """
    path = folder / "pool.json"
    if not path.is_file():
        if explicit and not folder.is_dir():
            raise InputError(f"pool.path: no folder {folder}; omit it to train a pool and keep it in the cache")
        return PoolFacts(fingerprint)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        accuracies = {str(name): float(value) for name, value in facts["accuracies"].items()}
        seconds = {str(number): float(value) for number, value in facts.get("seconds", {}).items()}
        ensemble = {str(number): str(how) for number, how in facts.get("ensemble", {}).items()}
        stored = str(facts["fingerprint"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise InputError(f"{path} is corrupted ({error}); remove the folder to train the pool again") from None
    if stored not in accepted:
        raise InputError(
            f"the pool in {folder} was trained with other data or settings ({stored}, not {fingerprint}); "
            "give the settings it was trained with, or another pool.path"
        )
    return PoolFacts(stored, accuracies, seconds, ensemble)


def check_keepable(folder: Path, name: str, *, private: bool) -> None:
    """Checks before any training whether networks could be saved; leaves no files behind.

    Args:
        folder: folder of the pool.
        name: name of a member that is to be trained.
        private: as for `keep`.

    Raises:
        InputError: if the member's file could not be written.
    """
    try:
        check_writable(folder / f"{name}.safetensors")
    except OSError as error:
        raise InputError(_cannot_keep(folder, error, private=private)) from None


def _cannot_keep(folder: Path, error: OSError, *, private: bool) -> str:
    other = "set IID_CACHE to another folder" if private else "give another folder"
    return f"cannot keep the pool in {folder}: {error.strerror or error}; {other}"


def keep(folder: Path, name: str, content: bytes, facts: Mapping[str, Any], *, private: bool) -> bool:
    """Writes a member, then ``pool.json``, which lists it.

    Args:
        folder: folder of the pool.
        name: name of the member.
        content: weights of the member, as they are stored.
        facts: content of ``pool.json``.
        private: whether the folder is in the user's cache, rather than named by the user.

    Returns:
        Whether the member was saved; if the cache cannot be written, this run still uses the networks, with a warning.

    Raises:
        InputError: if a folder that the user named cannot be written.
    """
    try:
        make_folders(folder, private=private)
        atomic_write(folder / f"{name}.safetensors", content, private=private)
        atomic_write(folder / "pool.json", json.dumps(facts, indent=2) + "\n", private=private)
    except OSError as error:
        if not private:
            raise InputError(_cannot_keep(folder, error, private=private)) from None
        logger.warning(
            "%s; this run uses the networks, the next one will train them again",
            _cannot_keep(folder, error, private=private),
        )
        return False
    return True


def read_weights(folder: Path, name: str) -> bytes:
    """Content of a member's file.

    Raises:
        InputError: if it cannot be read.
    """
    path = folder / f"{name}.safetensors"
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(_corrupted(path, error)) from None


def load_weights(folder: Path, name: str, network: Network, unkept: bytes | None = None) -> bytes:
    """Loads a network's weights from its file, or from `unkept` if that could not be saved; returns the content.

    Raises:
        InputError: if the file is corrupted.
    """
    content = read_weights(folder, name) if unkept is None else unkept
    try:
        network.load_state_dict(from_bytes(content))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(_corrupted(folder / f"{name}.safetensors", error)) from None
    return content


def _corrupted(path: Path, error: Exception) -> str:
    return f"{path} is corrupted ({one_line(error)}); remove its folder to train the pool again"
